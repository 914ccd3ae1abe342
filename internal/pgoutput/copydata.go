package pgoutput

import "encoding/binary"

// FrameXLogData and FrameKeepalive are the first bytes of what a server sends
// in CopyData: one [XLogData] or one [Keepalive].
const (
	FrameXLogData  = byte(kindXLogData)
	FrameKeepalive = byte(kindKeepalive)
)

// XLogData carries one message.
type XLogData struct {
	// Start is where in the log the message belongs: for a change its own
	// record, which may be below the commits of transactions that came before.
	// It is 0 for R and Y, and for a B or S that an O follows. It is no position to
	// resume from.
	Start LSN
	// WALEnd is the same as Start in logical replication.
	WALEnd LSN
	// Clock is the server's, when it sent this.
	Clock Timestamp
	// Data is the message, for [Decoder.Decode]. It points into what was parsed.
	Data []byte
}

// ParseXLogData reads a frame that begins with FrameXLogData.
func ParseXLogData(data []byte) (XLogData, error) {
	r, err := frame(data, kindXLogData)
	if err != nil {
		return XLogData{}, err
	}
	x := XLogData{Start: LSN(r.uint64("the start")), WALEnd: LSN(r.uint64("the end of the log")), Clock: r.time("the clock")}
	x.Data = r.data[r.off:len(r.data):len(r.data)]
	if r.what == "" && len(x.Data) == 0 {
		r.short("the message")
	}
	r.off = len(r.data)
	if err := r.done(kindXLogData); err != nil {
		return XLogData{}, err
	}
	return x, nil
}

// Keepalive is what a server sends when it has nothing else to say.
type Keepalive struct {
	// WALEnd is up to where the server has decoded. With no transaction open and
	// nothing held back, it may be confirmed.
	WALEnd LSN
	// Clock is the server's, when it sent this.
	Clock Timestamp
	// ReplyRequested: without a status update soon, the server hangs up.
	ReplyRequested bool
}

// ParseKeepalive reads a frame that begins with FrameKeepalive.
func ParseKeepalive(data []byte) (Keepalive, error) {
	r, err := frame(data, kindKeepalive)
	if err != nil {
		return Keepalive{}, err
	}
	k := Keepalive{WALEnd: LSN(r.uint64("the end of the log")), Clock: r.time("the clock"), ReplyRequested: r.flags("the flags", 1) == 1}
	if err := r.done(kindKeepalive); err != nil {
		return Keepalive{}, err
	}
	return k, nil
}

// frame checks a frame's first byte and returns a reader behind it.
func frame(data []byte, want Kind) (reader, error) {
	r := reader{data: data}
	got := Kind(r.uint8("its kind"))
	if r.what == "" && got != want {
		r.fail(0, "the frame is no "+want.String())
	}
	if r.what != "" {
		return r, r.done(got)
	}
	return r, nil
}

// Status is the standby status update: what a reader tells the server.
type Status struct {
	// Write is what was received. It may run ahead of Flush, and is for display.
	Write LSN
	// Flush is what will never be asked for again: the server forgets the log up
	// to there. It is an EndLSN or a keepalive's WALEnd, nothing computed. 0 leaves
	// it where it is.
	Flush LSN
	// Apply is what was put to use; for display, too.
	Apply LSN
	// Clock is the reader's.
	Clock Timestamp
	// ReplyRequested asks the server for a keepalive at once.
	ReplyRequested bool
}

// AppendStatus appends the frame of s to dst.
func AppendStatus(dst []byte, s Status) []byte {
	dst = append(dst, 'r')
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.Write))
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.Flush))
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.Apply))
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.Clock))
	if s.ReplyRequested {
		return append(dst, 1)
	}
	return append(dst, 0)
}

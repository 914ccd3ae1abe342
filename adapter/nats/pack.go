package nats

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// A pack is one message of a log with several events. The server's work on a message
// bounds the bus, not that on its bytes; so where nobody else reads the messages, an
// append is one of them. docs/design/025 has the figures.
//
// The header Onewrite-Pack holds the offset of the first event and their number. The
// body is, for each event, its length and
//
//	flags | topic | source | type | content type | transaction | time | id | key |
//	sequence | index | headers | data
//
// where what is the same as in the event before is left out; the flags tell. Numbers
// are varints, texts have their length before them.
const hdrPack = private + "Pack"

// hdrFirst is the offset of an event that is alone in its message, in a log in which it
// is not the message's sequence.
const hdrFirst = private + "First"

// packBytes is where a pack ends; a larger event is a message by itself.
const packBytes = 1 << 20

// What the flags of an event tell. The lowest five say which of its topic, source, type,
// content type and transaction are as in the event before.
const (
	sameTime = 1 << (iota + 5)
	withTime
	withData
	withHeader
	txLast
)

var errPack = errors.New("a pack that is not one")

// appendPacked adds e to a pack in which it follows before; nil: it is the first.
func appendPacked(dst []byte, e, before *onewrite.Event) []byte {
	none := onewrite.Event{}
	if before == nil {
		before = &none
	}
	flags := uint64(0)
	flag := func(on bool, f uint64) bool {
		if on {
			flags |= f
		}
		return on
	}
	at := e.Time.UnixMicro()
	flag(!e.Time.IsZero(), withTime)
	flag(cloudevents.Settle(e.Data, e.ContentType) != nil, withData)
	flag(len(e.Header) > 0, withHeader)
	flag(e.Tx.Last && e.Tx.ID != "", txLast)
	texts := [...]struct{ now, was string }{
		{e.Topic, before.Topic}, {e.Source, before.Source}, {e.Type, before.Type}, {e.ContentType, before.ContentType}, {e.Tx.ID, before.Tx.ID},
	}
	for i := range texts {
		flag(texts[i].now == texts[i].was, 1<<i)
	}
	same := flag(!e.Time.IsZero() && at == before.Time.UnixMicro(), sameTime)
	dst = binary.AppendUvarint(dst, flags)
	for i := range texts {
		if flags&(1<<i) == 0 {
			dst = appendText(dst, texts[i].now)
		}
	}
	if !e.Time.IsZero() && !same {
		dst = binary.AppendVarint(dst, at)
	}
	dst = appendText(appendText(appendText(dst, e.ID), e.Key), e.Seq)
	if e.Tx.ID != "" {
		dst = binary.AppendVarint(dst, int64(e.Tx.Index))
	}
	if len(e.Header) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(e.Header)))
		for k, v := range e.Header {
			dst = appendText(appendText(dst, k), v)
		}
	}
	return append(dst, e.Data...)
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// pack writes the leading events as one message whose first has offset first, at most
// about limit bytes of them, and says how many. One event is a message as others read it.
func (c *encoder) pack(subjects string, events []onewrite.Event, first, shift uint64, limit int) (m *natsgo.Msg, n int) {
	c.body = c.body[:0]
	for n < len(events) {
		c.one = appendPacked(c.one[:0], &events[n], previous(events, n))
		if n > 0 && len(c.body)+len(c.one) > limit {
			break
		}
		c.body = append(binary.AppendUvarint(c.body, uint64(len(c.one))), c.one...)
		n++
	}
	if n == 1 {
		m = c.encode(subjects+subjectOf(events[0].Topic), &events[0])
		if shift > 0 {
			c.set(hdrFirst, strconv.FormatUint(first, 10))
		}
		return m, 1
	}
	if c.msg.Header == nil {
		c.msg.Header = natsgo.Header{}
	}
	clear(c.msg.Header)
	c.slab = c.slab[:0]
	c.msg.Subject, c.msg.Reply, c.msg.Data = subjects+"onewrite-pack", "", c.body
	c.set(hdrPack, strconv.FormatUint(first, 10)+" "+strconv.Itoa(n))
	return &c.msg, n
}

func previous(events []onewrite.Event, i int) *onewrite.Event {
	if i == 0 {
		return nil
	}
	return &events[i-1]
}

// place returns the offset of the first event of a message and the number of events.
func place(h natsgo.Header, seq uint64) (first uint64, n int, err error) {
	if v := h[hdrFirst]; len(v) > 0 {
		if first, err = strconv.ParseUint(v[0], 10, 64); err != nil {
			return 0, 0, fmt.Errorf("header %s is not a number", hdrFirst)
		}
		return first, 1, nil
	}
	v := h[hdrPack]
	if len(v) == 0 {
		return seq, 1, nil
	}
	a, b, _ := strings.Cut(v[0], " ")
	first, err = strconv.ParseUint(a, 10, 64)
	if err == nil {
		n, err = strconv.Atoi(b)
	}
	if err != nil || n < 1 || n > onewrite.MaxBatch {
		return 0, 0, fmt.Errorf("header %s is %q", hdrPack, v[0])
	}
	return first, n, nil
}

// unpack hands over the events of a message that wants says yes to, each with its
// offset; of the others it reads the topic alone.
func unpack(h natsgo.Header, data []byte, first uint64, wants func(offset uint64, topic string) bool, take func(offset uint64, e onewrite.Event)) error {
	if h[hdrPack] == nil {
		e, err := decode(h, data)
		if err == nil && wants(first, e.Topic) {
			take(first, e)
		}
		return err
	}
	r := packReader{}
	for offset := first; len(data) > 0; offset++ {
		n, w := binary.Uvarint(data)
		if w <= 0 || n > uint64(len(data)-w) {
			return errPack
		}
		r.rest, data = data[w:w+int(n)], data[w+int(n):]
		r.common()
		if r.bad {
			return errPack
		}
		if !wants(offset, r.e.Topic) {
			continue
		}
		e := r.event()
		if r.bad {
			return errPack
		}
		take(offset, e)
	}
	return nil
}

// packReader reads a pack. Of each event it has read common, and then maybe event.
type packReader struct {
	rest  []byte
	bad   bool
	flags uint64
	e     onewrite.Event // what events share with the one before
}

func (r *packReader) uvarint() uint64 { return readNumber(r, binary.Uvarint) }
func (r *packReader) varint() int64   { return readNumber(r, binary.Varint) }

func readNumber[T int64 | uint64](r *packReader, read func([]byte) (T, int)) T {
	v, w := read(r.rest)
	if w <= 0 {
		r.bad, r.rest = true, nil
		return 0
	}
	r.rest = r.rest[w:]
	return v
}

func (r *packReader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.bad, r.rest = true, nil
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

// common reads what the next event may share with the one before.
func (r *packReader) common() {
	r.flags = r.uvarint()
	for i, field := range [...]*string{&r.e.Topic, &r.e.Source, &r.e.Type, &r.e.ContentType, &r.e.Tx.ID} {
		if r.flags&(1<<i) == 0 {
			*field = string(r.bytes())
		}
	}
	if r.flags&withTime == 0 {
		r.e.Time = time.Time{}
	} else if r.flags&sameTime == 0 {
		r.e.Time = time.UnixMicro(r.varint()).UTC()
	}
}

// event reads the rest of it. Its texts are one allocation; nothing holds the pack.
func (r *packReader) event() onewrite.Event {
	e := r.e
	id, key, seq := r.bytes(), r.bytes(), r.bytes()
	texts := string(append(append(append(make([]byte, 0, len(id)+len(key)+len(seq)), id...), key...), seq...))
	e.ID, e.Key, e.Seq = texts[:len(id)], texts[len(id):len(id)+len(key)], texts[len(id)+len(key):]
	if e.Tx.ID != "" {
		e.Tx.Index, e.Tx.Last = int(r.varint()), r.flags&txLast != 0
	}
	if r.flags&withHeader != 0 {
		n := r.uvarint()
		if n > uint64(len(r.rest)) {
			r.bad = true
			return e
		}
		h := make(map[string]string, n)
		for range n {
			k := string(r.bytes())
			v := string(r.bytes())
			if !cloudevents.IsAttribute(k) || !cloudevents.Reserved(k) {
				h[k] = v
			}
		}
		if len(h) > 0 {
			e.Header = h
		}
	}
	if r.flags&withData != 0 {
		e.Data = append(make([]byte, 0, len(r.rest)), r.rest...)
	}
	return e
}

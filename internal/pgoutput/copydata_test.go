package pgoutput

import (
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
)

func TestXLogData(t *testing.T) {
	data := unhex(t, "'w'"+lsn1+lsn2+time1+"'E'")
	want := XLogData{Start: 1<<32 | 2, WALEnd: 3<<32 | 4, Clock: 1e6, Data: []byte("E")}
	got, err := ParseXLogData(data)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if &got.Data[0] != &data[25] || cap(got.Data) != 1 {
		t.Error("Data is a copy, or reaches beyond the frame")
	}
	for n := range data {
		frameError(t, data[:n:n], parseXLogData, min(n, 25))
	}
	frameError(t, unhex(t, "'k'"+lsn1+lsn2+time1+"'E'"), parseXLogData, 0)
}

func TestKeepalive(t *testing.T) {
	for reply, want := range map[string]Keepalive{
		"00": {WALEnd: 1<<32 | 2, Clock: -1},
		"01": {WALEnd: 1<<32 | 2, Clock: -1, ReplyRequested: true},
	} {
		data := unhex(t, "'k'"+lsn1+time2+reply)
		if got, err := ParseKeepalive(data); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
		for n := range data {
			frameError(t, data[:n:n], parseKeepalive, n)
		}
		frameError(t, append(data, 0), parseKeepalive, len(data))
	}
	frameError(t, unhex(t, "'k'"+lsn1+time2+"02"), parseKeepalive, 17)
	frameError(t, unhex(t, "'w'"+lsn1+time2+"00"), parseKeepalive, 0)
}

func parseXLogData(data []byte) error  { _, err := ParseXLogData(data); return err }
func parseKeepalive(data []byte) error { _, err := ParseKeepalive(data); return err }

// frameError expects a FormatError not behind at.
func frameError(t *testing.T, data []byte, parse func([]byte) error, at int) {
	t.Helper()
	var format *FormatError
	if err := parse(data); !errors.As(err, &format) || format.Offset > at {
		t.Errorf("%x: the error is %v", data, err)
	} else if len(data) > 0 && format.Kind != Kind(data[0]) {
		t.Errorf("%x: the error is of kind %s", data, format.Kind)
	}
}

func TestAppendStatus(t *testing.T) {
	for want, s := range map[string]Status{
		"ff72000000010000000200000003000000040000000000000005ffffffffffffffff01":      {Write: 1<<32 | 2, Flush: 3<<32 | 4, Apply: 5, Clock: -1, ReplyRequested: true},
		"ff720000000000000000000000000000000000000000000000000000000000000000" + "00": {},
	} {
		if got := hex.EncodeToString(AppendStatus([]byte{0xff}, s)); got != want {
			t.Errorf("%+v is %s, want %s", s, got, want)
		}
	}
	room := make([]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() { AppendStatus(room, Status{Flush: 1}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

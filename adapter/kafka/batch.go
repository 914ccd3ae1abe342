package kafka

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/onewrite/onewrite/internal/cloudevents"
)

// packer writes records in the form in which the brokers store them, the record batch of
// version 2 (https://kafka.apache.org/documentation/#recordbatch), several batches one
// behind the other. It is used again when what it wrote is durable.
type packer struct {
	attrs []cloudevents.Attr
	body  []byte // of a record
	buf   []byte
	cuts  []cut
	now   int64 // milliseconds since 1970
}

// cut is where a batch ends.
type cut struct{ to, records int }

// Where the fields of a batch are which are not known before its last record.
const (
	lengthAt = 8
	crcAt    = 17
	attrsAt  = 21
	deltaAt  = 23
	countAt  = 57
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// start is where batch i begins.
func (p *packer) start(i int) int {
	if i == 0 {
		return 0
	}
	return p.cuts[i-1].to
}

// reset forgets what was written.
func (p *packer) reset(now time.Time) {
	p.buf, p.cuts, p.now = p.buf[:0], p.cuts[:0], now.UnixMilli()
}

// open begins a batch.
func (p *packer) open() {
	p.cuts = append(p.cuts, cut{})
	b := append(p.buf, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) // base offset, length
	b = append(b, 0xff, 0xff, 0xff, 0xff, 2)               // leader epoch: not known; version
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)            // checksum, attributes, offset of the last record
	b = binary.BigEndian.AppendUint64(b, uint64(p.now))    // the time of the first
	b = binary.BigEndian.AppendUint64(b, uint64(p.now))    // and of the newest
	for range 8 + 2 + 4 {
		b = append(b, 0xff) // no producer, no epoch, no sequence
	}
	p.buf = append(b, 0, 0, 0, 0)
}

// close ends the batch that was opened.
func (p *packer) close() {
	n := len(p.cuts) - 1
	c, b := &p.cuts[n], p.buf[p.start(n):]
	c.to = len(p.buf)
	binary.BigEndian.PutUint32(b[lengthAt:], uint32(len(b)-lengthAt-4))
	binary.BigEndian.PutUint32(b[deltaAt:], uint32(c.records-1))
	binary.BigEndian.PutUint32(b[countAt:], uint32(c.records))
	binary.BigEndian.PutUint32(b[crcAt:], crc32.Checksum(b[attrsAt:], castagnoli))
}

// packed is a record of the bus.
type packed struct {
	mark, pos []byte // headers of our own; no pos: not that one
	attrs     []cloudevents.Attr
	key       string
	data      []byte // nil: no value
}

// size is what it takes, as [sizeOf] says of what is read back, without the mark.
func (r *packed) size() int {
	n := recordOverhead + len(r.key) + len(r.data) + headerOverhead + len(markHeader)
	if r.pos != nil {
		n += headerOverhead + len(posHeader) + len(r.pos)
	}
	for i := range r.attrs {
		n += headerOverhead + len(r.attrs[i].Name) + len(r.attrs[i].Value)
	}
	return n
}

// add adds a record that takes no more than size to a batch that stays below limit.
func (p *packer) add(r *packed, size, limit int) {
	switch n := len(p.cuts); {
	case n == 0:
		p.open()
	case len(p.buf)-p.start(n-1)+size > limit:
		p.close()
		p.open()
	}
	c := &p.cuts[len(p.cuts)-1]
	b := append(p.body[:0], 0, 0) // attributes, time since the first record
	b = binary.AppendVarint(b, int64(c.records))
	c.records++
	if r.key == "" {
		b = binary.AppendVarint(b, -1)
	} else {
		b = appendText(b, r.key)
	}
	if r.data == nil {
		b = binary.AppendVarint(b, -1)
	} else {
		b = appendText(b, r.data)
	}
	n := 1 + len(r.attrs)
	if r.pos != nil {
		n++
	}
	b = binary.AppendVarint(b, int64(n))
	b = appendText(appendText(b, markHeader), r.mark)
	if r.pos != nil {
		b = appendText(appendText(b, posHeader), r.pos)
	}
	for i := range r.attrs {
		b = appendText(appendText(b, r.attrs[i].Name), r.attrs[i].Value)
	}
	p.body = b
	p.buf = appendText(p.buf, b)
}

func appendText[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendVarint(b, int64(len(s))), s...)
}

package postgres

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strconv"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/masking"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// Values of [Config.Toast].
const (
	// ToastOmit leaves a large value that an update did not touch out of the row.
	ToastOmit = "omit"
	// ToastDebezium writes Debezium's placeholder in its place.
	ToastDebezium = "debezium"
)

const placeholder = `"__debezium_unavailable_value"`

// envelope makes events of changes. All in them follows from the log, so that a
// repeat has the same bytes.
type envelope struct {
	name   string // of the source
	seed   []byte // what the ids of this log's events have in common
	toast  string
	hasher *masking.Hasher
	masked columnFunc // column, made once
	buf    []byte
	named  []byte // what the newest id is made of
	worded []byte // id, sequence and key of the newest event
	xid    uint32
	tx     string // xid, in digits
}

func newEnvelope(cfg Config, system uint64) *envelope {
	seed := binary.BigEndian.AppendUint64([]byte("onewrite/postgres/"), system)
	v := &envelope{name: cfg.Name, seed: append(seed, cfg.Name...), toast: cfg.Toast, hasher: masking.NewHasher(cfg.MaskKey)}
	v.masked = v.column
	return v
}

// change is one row change on its way to an event.
type change struct {
	table  *table
	kind   string // the event's type
	op     byte
	before pgoutput.Tuple // nil: null
	whole  bool           // before is a whole row; else it has the columns of the key alone
	after  pgoutput.Tuple // nil: null
	reread bool           // a column of after was read again
	origin *string        // where it was replicated from; nil: nowhere

	// Where it is. A snapshot's row has no transaction; its place is that of the
	// watermark.
	lsn   pgoutput.LSN // of the commit
	at    time.Time
	xid   uint32 // 0 for a snapshot's row
	index uint32 // of the change in its transaction, or of the row in its chunk
	sub   uint8
	order int // of the event in its transaction, from 0
	count int // of the table's events in it, until this one

	size int // about how large the event will be
}

// event renders a change.
func (v *envelope) event(c *change) onewrite.Event {
	row := c.after
	if row == nil {
		row = c.before
	}
	v.worded = v.key(v.words(c), c.table, row)
	all := string(v.worded)
	e := onewrite.Event{
		ID: all[:36], Seq: all[36 : 36+seqLen], Key: all[36+seqLen:],
		Source: v.name, Topic: c.table.topic, Type: c.kind, Time: c.at, ContentType: "application/json",
	}
	if c.xid != 0 {
		e.Tx = onewrite.Tx{ID: v.digits(c.xid), Index: c.order}
	}
	b := append(v.buf[:0], `{"before":`...)
	b = v.row(b, c.table, c.before, !c.whole)
	b = append(b, `,"after":`...)
	b = v.row(b, c.table, c.after, false)
	b = v.origin(append(b, ','), c, c.table.source)
	b = unchanged(b, c.table, c.after)
	if c.reread {
		b = append(b, `,"reread":true`...)
	}
	if c.origin != nil {
		b = append(b, `,"origin":`...)
		b = cloudevents.AppendString(b, *c.origin)
	}
	b = append(b, `},"op":"`...)
	b = append(b, c.op)
	b = append(b, `","ts_ms":`...)
	b = strconv.AppendInt(b, c.at.UnixMilli(), 10)
	b = v.transaction(b, c)
	v.buf = b
	e.Data = bytes.Clone(b)
	return e
}

// origin appends where a change is from, all but the closing brace: table is what
// tableOrigin says of it.
func (v *envelope) origin(b []byte, c *change, table []byte) []byte {
	b = append(b, `"source":{"version":"1","connector":"postgresql","name":`...)
	b = cloudevents.AppendString(b, v.name)
	b = append(b, `,"ts_ms":`...)
	b = strconv.AppendInt(b, c.at.UnixMilli(), 10)
	b = append(b, `,"snapshot":"`...)
	b = strconv.AppendBool(b, c.xid == 0)
	b = append(b, '"')
	b = append(b, table...)
	b = append(b, `,"txId":`...)
	if c.xid == 0 {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendUint(b, uint64(c.xid), 10)
	}
	b = append(b, `,"lsn":`...)
	return strconv.AppendUint(b, uint64(c.lsn), 10)
}

func (v *envelope) transaction(b []byte, c *change) []byte {
	b = append(b, `,"transaction":`...)
	if c.xid == 0 {
		return append(b, "null}"...)
	}
	b = append(b, `{"id":"`...)
	b = strconv.AppendUint(b, uint64(c.xid), 10)
	b = append(b, `","total_order":`...)
	b = strconv.AppendInt(b, int64(c.order)+1, 10)
	b = append(b, `,"data_collection_order":`...)
	b = strconv.AppendInt(b, int64(c.count), 10)
	return append(b, "}}"...)
}

// tally counts a transaction's events of a table, until this one.
func (t *table) tally(xid uint32) int {
	if t.seen != xid {
		t.seen, t.count = xid, 0
	}
	t.count++
	return t.count
}

// row appends a row; of one that is not whole, the columns of the key.
func (v *envelope) row(b []byte, t *table, row pgoutput.Tuple, keyOnly bool) []byte {
	if row == nil {
		return append(b, "null"...)
	}
	b = append(b, '{')
	n := 0
	for i := range row {
		if keyOnly && !t.inOld(i) {
			continue
		}
		c := &row[i]
		if t.columns[i].mask.Kind == masking.Drop || c.Kind == pgoutput.ColumnUnchanged && v.toast != ToastDebezium {
			continue
		}
		if n++; n > 1 {
			b = append(b, ',')
		}
		b = append(b, t.columns[i].json...)
		b = v.column(b, c, &t.columns[i])
	}
	return append(b, '}')
}

// column appends a value as its mask lets it be seen.
func (v *envelope) column(b []byte, c *pgoutput.Column, col *tableColumn) []byte {
	if c.Kind == pgoutput.ColumnText {
		switch col.mask.Kind {
		case masking.Hash:
			return cloudevents.AppendString(b, v.hasher.Sum(c.Data))
		case masking.Truncate:
			return cloudevents.AppendString(b, masking.First(c.Data, col.mask.Chars))
		}
	}
	return appendColumn(b, c, col.typ)
}

func appendColumn(b []byte, c *pgoutput.Column, t valueType) []byte {
	switch c.Kind {
	case pgoutput.ColumnNull:
		return append(b, "null"...)
	case pgoutput.ColumnUnchanged:
		return append(b, placeholder...)
	}
	return appendValue(b, c.Data, t)
}

// unchanged names the columns that the log did not carry.
func unchanged(b []byte, t *table, row pgoutput.Tuple) []byte {
	n := 0
	for i := range row {
		if row[i].Kind != pgoutput.ColumnUnchanged || t.columns[i].mask.Kind == masking.Drop {
			continue
		}
		if n++; n == 1 {
			b = append(b, `,"unchanged":[`...)
		} else {
			b = append(b, ',')
		}
		b = cloudevents.AppendString(b, t.columns[i].name)
	}
	if n > 0 {
		b = append(b, ']')
	}
	return b
}

// inOld reports whether an old row that is not whole has a column.
func (t *table) inOld(i int) bool {
	return slices.Contains(t.old, i)
}

// key appends the event's key, as masks let it be seen.
func (v *envelope) key(b []byte, t *table, row pgoutput.Tuple) []byte {
	return t.keyBy(b, row, v.masked)
}

// appendKey appends the key without masks, by which rows are told apart.
func (t *table) appendKey(b []byte, row pgoutput.Tuple) []byte {
	return t.keyBy(b, row, func(b []byte, c *pgoutput.Column, col *tableColumn) []byte { return appendColumn(b, c, col.typ) })
}

// columnFunc appends the value of a column.
type columnFunc func(b []byte, c *pgoutput.Column, col *tableColumn) []byte

// keyBy appends a key: its columns as JSON in the order of their names, or the table's
// name, one lane, where there are none.
func (t *table) keyBy(b []byte, row pgoutput.Tuple, column columnFunc) []byte {
	if len(t.key) == 0 || row == nil {
		return append(b, t.topic...)
	}
	b = append(b, '{')
	for n, i := range t.key {
		if n > 0 {
			b = append(b, ',')
		}
		b = append(b, t.columns[i].json...)
		b = column(b, &row[i], &t.columns[i])
	}
	return append(b, '}')
}

// seqLen is the length of an event's sequence: the commit's place, the change's number
// in the transaction, and the event's within the change.
const seqLen = 16 + 1 + 8 + 2

// digits writes the number of a transaction, which many events have in common.
func (v *envelope) digits(xid uint32) string {
	if v.tx == "" || v.xid != xid {
		v.xid, v.tx = xid, strconv.FormatUint(uint64(xid), 10)
	}
	return v.tx
}

// words returns the id and the sequence of a change, until it is called again. The time of the commit is in the
// id too: after a backup was put back, other transactions end at the same places, and a
// consumer that remembers ids would take them for those that it has.
func (v *envelope) words(c *change) []byte {
	var where [8 + 4 + 1 + 1 + 8]byte
	binary.BigEndian.PutUint64(where[:], uint64(c.lsn))
	binary.BigEndian.PutUint32(where[8:], c.index)
	where[12] = c.sub
	if c.xid == 0 {
		where[13] = 1
	}
	binary.BigEndian.PutUint64(where[14:], uint64(c.at.UnixMicro()))
	v.named = append(append(v.named[:0], v.seed...), where[:]...)
	sum := sha1.Sum(v.named) // RFC 9562 version 5: a name's hash, no secret
	sum[6] = sum[6]&0x0f | 0x50
	sum[8] = sum[8]&0x3f | 0x80
	v.worded = slices.Grow(v.worded[:0], 36+seqLen)
	words := v.worded[:36+seqLen]
	hex.Encode(words[0:8], sum[0:4])
	hex.Encode(words[9:13], sum[4:6])
	hex.Encode(words[14:18], sum[6:8])
	hex.Encode(words[19:23], sum[8:10])
	hex.Encode(words[24:36], sum[10:16])
	words[8], words[13], words[18], words[23] = '-', '-', '-', '-'
	hex.Encode(words[36:52], where[:8])
	words[52] = '.'
	hex.Encode(words[53:61], where[8:12])
	hex.Encode(words[61:63], where[12:13])
	return words
}

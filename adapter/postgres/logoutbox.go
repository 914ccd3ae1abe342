package postgres

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/outbox"
)

// outboxRows reads rows of the outbox from the log. They become the same events, byte
// for byte, as when they are read from the ring.
type outboxRows struct {
	rel   uint32
	at    [len(outboxColumns)]int // where each column is
	texts texts
	fresh bool // the server has described it since the last row: what it publishes may be other rows
}

// outboxColumns are what an event is made of.
var outboxColumns = [...]string{"seq", "xid", "created", "id", "topic", "key", "type", "content_type", "headers", "payload", "payload_bytes"}

const (
	colSeq = iota
	colXID
	colCreated
	colID
	colTopic
	colKey
	colType
	colContentType
	colHeaders
	colPayload
	colPayloadBytes
)

var errOutboxForm = errors.New("postgres: a row of the outbox has an unexpected form; was the table altered? Compare it with onewrite migrate --print")

// describe takes the outbox's columns.
func (o *outboxRows) describe(rel *pgoutput.Relation) error {
	o.rel, o.texts, o.fresh = rel.ID, texts{}, true
	for i, name := range outboxColumns {
		o.at[i] = -1
		for j, c := range rel.Columns {
			if c.Name == name {
				o.at[i] = j
			}
		}
		if o.at[i] < 0 {
			return errOutboxForm
		}
	}
	return nil
}

// outboxRow is what the log has of an event.
type outboxRow struct {
	event onewrite.Event
	seq   int64
	xid   uint64
}

// row makes an event of a row.
func (o *outboxRows) row(source string, t pgoutput.Tuple) (r outboxRow, err error) {
	var v [len(outboxColumns)][]byte
	for i, at := range o.at {
		switch c := t[at]; c.Kind {
		case pgoutput.ColumnText:
			v[i] = c.Data
		case pgoutput.ColumnNull:
		default:
			return r, errOutboxForm
		}
	}
	e := &r.event
	if r.seq, err = strconv.ParseInt(string(v[colSeq]), 10, 64); err != nil {
		return r, errOutboxForm
	}
	if r.xid, err = strconv.ParseUint(string(v[colXID]), 10, 64); err != nil {
		return r, errOutboxForm
	}
	if e.Time, err = time.Parse("2006-01-02 15:04:05.999999-07", string(v[colCreated])); err != nil {
		return r, errOutboxForm
	}
	e.Time = e.Time.UTC()
	var number [20]byte
	putSeq(number[:], r.seq)
	e.ID, e.Seq, e.Key, e.Source = string(v[colID]), string(number[:]), string(v[colKey]), source
	e.Topic = o.texts.of(v[colTopic])
	e.Type = e.Topic
	if v[colType] != nil {
		e.Type = o.texts.of(v[colType])
	}
	if v[colHeaders] != nil {
		if err := json.Unmarshal(v[colHeaders], &e.Header); err != nil {
			return r, fmt.Errorf("postgres: headers of event %s: not an object of strings", e.ID)
		}
	}
	switch b := v[colPayloadBytes]; {
	case v[colPayload] != nil:
		e.Data = append(make([]byte, 0, len(v[colPayload])), v[colPayload]...)
	case b != nil:
		if len(b) < 2 || b[0] != '\\' || b[1] != 'x' {
			return r, errOutboxForm
		}
		e.Data = make([]byte, hex.DecodedLen(len(b)-2))
		if _, err := hex.Decode(e.Data, b[2:]); err != nil {
			return r, errOutboxForm
		}
	default:
		return r, nil
	}
	if v[colContentType] != nil {
		e.ContentType = o.texts.of(v[colContentType])
	} else {
		e.ContentType = outbox.DefaultContentType(e.Data, v[colPayloadBytes] != nil)
	}
	return r, nil
}

// maxTail bounds the events of the outbox that wait for what comes after them.
const (
	maxTail      = 1000
	maxTailBytes = 1 << 20
)

// outboxRow makes an item of a row of the outbox. The row change before it may be the
// last of its transaction, which shows at the next one or at the end: until then the
// events of the outbox wait behind it. Where the ring alone is read the log may have the
// row all the same, until migrate takes the outbox out of the publication: it counts as
// a change, as the places in the transaction are the same with either setting.
func (r *logReader) outboxRow(m *pgoutput.Message) error {
	if !r.cfg.Pushed {
		r.tx.index++
		return nil
	}
	row, err := r.outbox.row(r.cfg.Name, m.New)
	if err != nil {
		return err
	}
	if r.outbox.fresh || r.member.oid == 0 && !r.tx.looked { // sooner than the watch: the ring has rows from before that come first
		r.side.Lock()
		err := r.lookAtOutbox(r.alive)
		r.side.Unlock()
		if err != nil {
			return err
		}
		r.outbox.fresh, r.tx.looked = false, true
	}
	// The log may have some rows of a transaction and not others where the publication has
	// a condition, for instance; and a row that was loaded has the number of another one.
	if r.member.oid == 0 || uint32(row.xid) != r.tx.xid {
		r.tx.index++
		return nil
	}
	r.tx.outbox = row.xid
	if !r.skipped(0) {
		p := logPlace{slot: r.at.slot, line: r.at.line, done: r.at.done, when: r.at.when, tx: r.tx.lsn, ends: r.tx.ends, index: r.tx.index + 1, snaps: r.at.snaps}
		r.tail = append(r.tail, item{event: &row.event, at: p, xid: row.xid, seq: row.seq})
		if r.tailSize += row.event.Size(); r.tailSize >= maxTailBytes || len(r.tail) >= maxTail {
			last := len(r.tail) - 1 // the newest is kept: it may be the last of all
			newest := r.tail[last]
			r.tail = r.tail[:last]
			r.pushHeld()
			r.tail, r.tailSize = append(r.tail, newest), newest.event.Size()
		}
	}
	r.tx.index++
	return nil
}

// pushHeld pushes what was held back: a row change, and events of the outbox behind it.
func (r *logReader) pushHeld() {
	if r.held != nil {
		r.push(r.held)
		r.held = nil
	}
	for i := range r.tail {
		r.push(&r.tail[i])
	}
	clear(r.tail)
	r.tail, r.tailSize = r.tail[:0], 0
}

// notPublished is the trouble where the log does not tell the outbox.
const notPublished = "the outbox is not in the publication: its events come from the ring, up to a second late; run onewrite migrate as the owner of the tables"

// membership is the outbox's entry in the publication.
type membership struct {
	oid     uint32 // 0: the log does not tell what is inserted into it
	altered int64  // the transaction that has made or altered the publication
}

func outboxMember(ctx context.Context, conn *pgx.Conn, source string) (m membership, err error) {
	err = conn.QueryRow(ctx, `SELECT coalesce(max(r.oid) FILTER (WHERE r.prqual IS NULL AND r.prattrs IS NULL AND p.pubinsert AND p.pubviaroot), 0), coalesce(max(p.xmin::text::bigint), 0)
		FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = 'onewrite.outbox'::regclass WHERE p.pubname = $1`, publicationOf(source)).Scan(&m.oid, &m.altered)
	return m, explain(err)
}

// lookAtOutbox looks whether the log tells what is inserted into the outbox. An error:
// since when it does is another time than at the start, and what was inserted before has
// to come first, from the ring.
func (r *logReader) lookAtOutbox(ctx context.Context) error {
	member, err := outboxMember(ctx, r.cat.conn, r.cfg.Name)
	switch {
	case err != nil:
		return err
	case r.member == nil:
		r.member = &member
	case *r.member != member:
		return errors.New("postgres: the outbox was taken out of the publication, or put into it, or the publication was altered")
	}
	r.cfg.trouble("outbox", map[bool]string{true: notPublished}[member.oid == 0])
	return nil
}

package postgres

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/outbox"
)

// selection is what a row of the outbox is read as; size bounds a page by bytes.
const selection = `seq, id, created, topic, key, type, content_type, headers::text, payload, payload_bytes,
	200 + coalesce(octet_length(payload), 0) + coalesce(octet_length(payload_bytes), 0) + coalesce(octet_length(key), 0) + coalesce(octet_length(headers::text), 0) AS size`

// page wraps a selection of rows: at most $1 rows, in the order of seq, as long
// as what went before them is less than $2 bytes. Its first row is no event: it
// holds the snapshot that the statement saw, the number of rows found, the end of
// the log and the last number given out.
const page = `
	WITH s AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snap, pg_current_wal_insert_lsn()::text AS lsn),
	d AS MATERIALIZED (SELECT * FROM (%s) u ORDER BY seq LIMIT $1),
	w AS (SELECT d.*, sum(size) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) - size AS before FROM d)
	SELECT (SELECT count(*) FROM d) AS seq, NULL::uuid AS id, NULL::timestamptz AS created, s.snap AS topic, s.lsn AS key, (SELECT last_value::text FROM onewrite.seq) AS type, NULL AS content_type, NULL AS headers, NULL AS payload, NULL::bytea AS payload_bytes, 0 AS place FROM s
	UNION ALL
	SELECT seq, id, created, topic, key, type, content_type, headers, payload, payload_bytes, 1 FROM w WHERE before < $2
	ORDER BY place, seq`

var (
	// tailSQL reads what became visible since a snapshot: $3 is its xmax, $4 its
	// transactions in progress.
	tailSQL = fmt.Sprintf(page, `SELECT `+selection+` FROM onewrite.outbox WHERE xid >= (SELECT $3::text::xid8)
		UNION ALL SELECT `+selection+` FROM onewrite.outbox WHERE xid = ANY ((SELECT $4::text::xid8[])::xid8[])`)
	// pieceSQL reads on inside a frozen pair of snapshots, $1 and $2, between the
	// numbers $3 and $4, as long as what went before is less than $5 bytes. The
	// condition on xid is no index condition on purpose: the block ranges of seq
	// are the way to the rows.
	pieceSQL = `SELECT seq, id, created, topic, key, type, content_type, headers, payload, payload_bytes FROM (
		SELECT *, sum(size) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) - size AS before FROM (SELECT ` + selection + ` FROM onewrite.outbox WHERE seq > $3 AND seq <= $4
		AND NOT pg_visible_in_snapshot(xid, (SELECT $1::text::pg_snapshot)) AND pg_visible_in_snapshot(xid, (SELECT $2::text::pg_snapshot))) u) w
		WHERE before < $5 ORDER BY seq`
)

// rowOverhead is what selection counts for a row beside its payload, key and
// headers.
const rowOverhead = 200

// rows are events with their numbers.
type rows struct {
	events []onewrite.Event
	seqs   []int64
}

func (r *rows) len() int { return len(r.seqs) }

// last is the number of the last one.
func (r *rows) last() int64 { return r.seqs[len(r.seqs)-1] }

// room makes room for n.
func (r *rows) room(n int) {
	r.events, r.seqs = make([]onewrite.Event, 0, n), make([]int64, 0, n)
}

// cut takes the first n away, which become the caller's.
func (r *rows) cut(n int) (head rows) {
	head = rows{r.events[:n:n], r.seqs[:n:n]}
	r.events, r.seqs = r.events[n:], r.seqs[n:]
	return head
}

// result is what a page holds.
type result struct {
	rows
	snap  string
	lsn   string // the end of the log after the snapshot was taken
	given string // the last number given out
	more  bool   // the page was cut by rows or bytes
}

// texts keeps one copy of the words that come again and again.
type texts map[string]string

func (t texts) of(b []byte) string {
	if s, ok := t[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(t) < 1000 {
		t[s] = s
	}
	return s
}

// run reads one page.
func (s *Source) run(ctx context.Context, sql string, limit int, args ...any) (result, error) {
	args = append([]any{limit, s.cfg.MaxBatchBytes}, args...)
	answer, err := s.conn.Query(ctx, sql, args...)
	if err != nil {
		return result{}, explain(err)
	}
	defer answer.Close()
	var out result
	found, first := int64(0), true
	for answer.Next() {
		v := answer.RawValues()
		if first {
			first = false
			found, out.snap, out.lsn, out.given = int64(binary.BigEndian.Uint64(v[0])), string(v[3]), string(v[4]), string(v[5])
			if found > 0 {
				out.room(int(min(found, int64(limit))))
			}
			continue
		}
		if err := s.decode(v, &out.rows); err != nil {
			return result{}, err
		}
	}
	if err := answer.Err(); err != nil {
		return result{}, explain(err)
	}
	if first {
		return result{}, errors.New("postgres: the page came without its head")
	}
	out.more = int64(out.len()) < found || found == int64(limit)
	return out, nil
}

// piece reads a piece of a frozen difference. It is cut where the bytes that
// were read reach the budget. About expect rows are in it.
func (s *Source) piece(ctx context.Context, from, to string, after, upto int64, expect int) (out result, err error) {
	answer, err := s.conn.Query(ctx, pieceSQL, from, to, after, upto, s.cfg.MaxBatchBytes)
	if err != nil {
		return result{}, explain(err)
	}
	defer answer.Close()
	out.room(expect)
	size := 0
	for answer.Next() {
		v := answer.RawValues()
		if err := s.decode(v, &out.rows); err != nil {
			return result{}, err
		}
		size += rowOverhead + len(v[4]) + len(v[7]) + len(v[8]) + len(v[9])
	}
	out.more = size >= s.cfg.MaxBatchBytes
	return out, explain(answer.Err())
}

// epoch2000 is where PostgreSQL counts microseconds from.
var epoch2000 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// decode makes an event of a row in the binary format. The values are valid
// only until the next row, so all is copied.
func (s *Source) decode(v [][]byte, out *rows) error {
	if len(v[0]) != 8 || len(v[1]) != 16 || len(v[2]) != 8 {
		return errors.New("postgres: a row of the outbox has an unexpected form; was the table altered? Compare it with onewrite migrate --print")
	}
	out.events = append(out.events, onewrite.Event{})
	e := &out.events[len(out.events)-1]
	seq := int64(binary.BigEndian.Uint64(v[0]))
	out.seqs = append(out.seqs, seq)
	// One allocation for the id, the number and the key.
	words := make([]byte, 56, 128)
	id := words[:36]
	hex.Encode(id[0:8], v[1][0:4])
	hex.Encode(id[9:13], v[1][4:6])
	hex.Encode(id[14:18], v[1][6:8])
	hex.Encode(id[19:23], v[1][8:10])
	hex.Encode(id[24:36], v[1][10:16])
	id[8], id[13], id[18], id[23] = '-', '-', '-', '-'
	putSeq(words[36:56], seq)
	all := string(append(words, v[4]...))
	e.ID, e.Seq, e.Key = all[:36], all[36:56], all[56:]
	e.Source = s.cfg.Name
	e.Time = epoch2000.Add(time.Duration(int64(binary.BigEndian.Uint64(v[2]))) * time.Microsecond)
	e.Topic = s.texts.of(v[3])
	e.Type = e.Topic
	if v[5] != nil {
		e.Type = s.texts.of(v[5])
	}
	if v[7] != nil {
		if err := json.Unmarshal(v[7], &e.Header); err != nil {
			return fmt.Errorf("postgres: headers of event %s: not an object of strings", e.ID)
		}
	}
	switch {
	case v[8] != nil:
		e.Data = append(make([]byte, 0, len(v[8])), v[8]...)
	case v[9] != nil:
		e.Data = append(make([]byte, 0, len(v[9])), v[9]...)
	default:
		return nil
	}
	if v[6] != nil {
		e.ContentType = s.texts.of(v[6])
	} else {
		e.ContentType = outbox.DefaultContentType(e.Data, v[9] != nil)
	}
	return nil
}

// putSeq writes a number in as many digits as b has, so that text compares as
// numbers do.
func putSeq(b []byte, n int64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
}

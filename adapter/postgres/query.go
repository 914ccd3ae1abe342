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
// holds the snapshot that the statement saw and the number of rows found.
const page = `
	WITH s AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snap, pg_current_wal_insert_lsn()::text AS lsn),
	d AS MATERIALIZED (SELECT * FROM (%s) u ORDER BY seq LIMIT $1),
	w AS (SELECT d.*, sum(size) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) - size AS before FROM d)
	SELECT (SELECT count(*) FROM d) AS seq, NULL::uuid AS id, NULL::timestamptz AS created, s.snap AS topic, s.lsn AS key, NULL AS type, NULL AS content_type, NULL AS headers, NULL AS payload, NULL::bytea AS payload_bytes, 0 AS place FROM s
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

// row is an event with its number.
type row struct {
	event onewrite.Event
	seq   int64
}

// result is what a page holds.
type result struct {
	rows []row
	snap string
	lsn  string // the end of the log after the snapshot was taken
	more bool   // the page was cut by rows or bytes
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
	rows, err := s.conn.Query(ctx, sql, args...)
	if err != nil {
		return result{}, explain(err)
	}
	defer rows.Close()
	var out result
	found, first := int64(0), true
	for rows.Next() {
		v := rows.RawValues()
		if first {
			first = false
			found, out.snap, out.lsn = int64(binary.BigEndian.Uint64(v[0])), string(v[3]), string(v[4])
			if found > 0 {
				out.rows = make([]row, 0, min(found, int64(limit)))
			}
			continue
		}
		out.rows = append(out.rows, row{})
		if err := s.decode(v, &out.rows[len(out.rows)-1]); err != nil {
			return result{}, err
		}
	}
	if err := rows.Err(); err != nil {
		return result{}, explain(err)
	}
	if first {
		return result{}, errors.New("postgres: the page came without its head")
	}
	out.more = int64(len(out.rows)) < found || found == int64(limit)
	return out, nil
}

// piece reads a piece of a frozen difference. It is cut where the bytes that
// were read reach the budget.
func (s *Source) piece(ctx context.Context, from, to string, after, upto int64) (out result, err error) {
	rows, err := s.conn.Query(ctx, pieceSQL, from, to, after, upto, s.cfg.MaxBatchBytes)
	if err != nil {
		return result{}, explain(err)
	}
	defer rows.Close()
	out.rows = make([]row, 0, 1024)
	size := 0
	for rows.Next() {
		out.rows = append(out.rows, row{})
		v := rows.RawValues()
		if err := s.decode(v, &out.rows[len(out.rows)-1]); err != nil {
			return result{}, err
		}
		size += rowOverhead + len(v[4]) + len(v[7]) + len(v[8]) + len(v[9])
	}
	out.more = size >= s.cfg.MaxBatchBytes
	return out, explain(rows.Err())
}

// epoch2000 is where PostgreSQL counts microseconds from.
var epoch2000 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// decode makes an event of a row in the binary format. The values are valid
// only until the next row, so all is copied.
func (s *Source) decode(v [][]byte, r *row) error {
	if len(v[0]) != 8 || len(v[1]) != 16 || len(v[2]) != 8 {
		return errors.New("postgres: a row of the outbox has an unexpected form; was the table altered? Compare it with onewrite migrate --print")
	}
	e := &r.event
	r.seq = int64(binary.BigEndian.Uint64(v[0]))
	e.Seq = fmtSeq(r.seq)
	var id [36]byte
	hex.Encode(id[0:8], v[1][0:4])
	hex.Encode(id[9:13], v[1][4:6])
	hex.Encode(id[14:18], v[1][6:8])
	hex.Encode(id[19:23], v[1][8:10])
	hex.Encode(id[24:36], v[1][10:16])
	id[8], id[13], id[18], id[23] = '-', '-', '-', '-'
	e.ID = string(id[:])
	e.Source = s.cfg.Name
	e.Time = epoch2000.Add(time.Duration(int64(binary.BigEndian.Uint64(v[2]))) * time.Microsecond)
	e.Topic = s.texts.of(v[3])
	e.Key = string(v[4])
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

// fmtSeq writes a number in 20 digits, so that text compares as numbers do.
func fmtSeq(n int64) string {
	var b [20]byte
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return string(b[:])
}

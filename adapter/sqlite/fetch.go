package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
	"github.com/onewrite/onewrite/outbox"
)

// statements are prepared once: asking costs a few microseconds then.
type statements struct {
	dataVersion, begin, commit, rollback, meta, schema, rows, layout *sql.Stmt
}

func (st *statements) prepare(ctx context.Context, c *sql.Conn) error {
	for _, p := range []struct {
		to  **sql.Stmt
		sql string
	}{
		{&st.dataVersion, "PRAGMA data_version"},
		{&st.begin, "BEGIN"},
		{&st.commit, "COMMIT"},
		{&st.rollback, "ROLLBACK"},
		{&st.meta, "SELECT file, epoch, (" + highWater + ") FROM onewrite_meta"},
		{&st.schema, "PRAGMA schema_version"},
		// The row at the cursor itself shows whether it still is the one that
		// was handed over.
		{&st.rows, `SELECT seq, topic, key, payload, payload_bytes, lower(id), type, content_type, headers, created, op, layout, "before", "after"
			FROM onewrite_outbox WHERE seq >= ? ORDER BY seq LIMIT ?`},
		{&st.layout, "SELECT spec FROM onewrite_layout WHERE id = ?"},
	} {
		s, err := c.PrepareContext(ctx, p.sql)
		if err != nil {
			return err
		}
		*p.to = s
	}
	return nil
}

func (st *statements) close() {
	for _, s := range []*sql.Stmt{st.dataVersion, st.begin, st.commit, st.rollback, st.meta, st.schema, st.rows, st.layout} {
		if s != nil {
			_ = s.Close()
		}
	}
}

// row is a row of the outbox as the driver gives it.
type row struct {
	seq, layout                                                                 int64
	topic, key, payload, bytes, id, kind, media, headers, created, op, old, new any
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func (r *row) size() int {
	blob, _ := r.bytes.([]byte)
	return 200 + len(text(r.topic)) + len(text(r.key)) + len(text(r.payload)) + len(blob) + len(text(r.headers)) + len(text(r.old)) + len(text(r.new))
}

// errBroken says that the history changed under the reader.
var errBroken = errors.New("the history is broken")

// fetch reads the next rows in one short read transaction: a long one would
// keep the WAL from being checkpointed.
func (s *Source) fetch(ctx context.Context) (onewrite.Batch, error) {
	rows, schema, err := s.snapshot()
	if err == nil {
		err = sabotage.At("sqlite.fetch")
	}
	switch {
	case errors.Is(err, errBroken):
		return onewrite.Batch{}, s.disown(ctx, err.Error())
	case err != nil:
		return onewrite.Batch{}, fmt.Errorf("sqlite: read %s: %w", s.path, err)
	}
	if schema != s.schema {
		if err := s.verify(ctx); err != nil {
			return onewrite.Batch{}, err
		}
		s.schema = schema
	}
	return s.batch(rows)
}

// snapshot returns the rows after the cursor and the version of the schema.
func (s *Source) snapshot() (rows []row, schema int64, err error) {
	st := &s.stmts
	if _, err := st.begin.Exec(); err != nil {
		return nil, 0, err
	}
	defer func() {
		end := st.commit
		if err != nil {
			end = st.rollback
		}
		if _, endErr := end.Exec(); err == nil {
			err = endErr
		}
	}()
	var file string
	var epoch, high int64
	if err := st.meta.QueryRow().Scan(&file, &epoch, &high); err != nil {
		return nil, 0, err
	}
	switch {
	case file != s.at.file:
		return nil, 0, fmt.Errorf("the file is another one now; it will be read again")
	case epoch > s.at.epoch:
		return nil, 0, fmt.Errorf("%w", onewrite.ErrFenced)
	case epoch < s.at.epoch:
		return nil, 0, fmt.Errorf("an older copy was restored into the file: %w", errBroken)
	case high < s.at.seq:
		return nil, 0, fmt.Errorf("the file holds less than was read before: %w", errBroken)
	}
	if err := st.schema.QueryRow().Scan(&schema); err != nil {
		return nil, 0, err
	}
	if rows, err = s.readRows(); err != nil {
		return nil, 0, err
	}
	for i := range rows {
		if rows[i].op != nil {
			if err := s.loadLayout(rows[i].layout); err != nil {
				return nil, 0, err
			}
		}
	}
	return rows, schema, nil
}

// readRows reads up to a batch, and sets more if there are rows left.
func (s *Source) readRows() ([]row, error) {
	result, err := s.stmts.rows.Query(s.at.seq, onewrite.MaxBatch+2)
	if err != nil {
		return nil, err
	}
	defer result.Close()
	var rows []row
	size, more := 0, false
	for result.Next() {
		var r row
		var lay sql.NullInt64
		if err := result.Scan(&r.seq, &r.topic, &r.key, &r.payload, &r.bytes, &r.id, &r.kind, &r.media, &r.headers, &r.created,
			&r.op, &lay, &r.old, &r.new); err != nil {
			return nil, err
		}
		r.layout = lay.Int64
		if r.seq == s.at.seq {
			if id := text(r.id); s.at.id != "" && id != s.at.id {
				return nil, fmt.Errorf("an older copy was restored into the file: %w", errBroken)
			}
			continue
		}
		if len(rows) == onewrite.MaxBatch || len(rows) > 0 && size+r.size() > s.cfg.MaxBatchBytes {
			more = true
			break
		}
		size += r.size()
		rows = append(rows, r)
	}
	if err := result.Err(); err != nil {
		return nil, err
	}
	s.more = more
	return rows, nil
}

func (s *Source) loadLayout(id int64) error {
	if s.layouts[id] != nil {
		return nil
	}
	var spec string
	if err := s.stmts.layout.QueryRow(id).Scan(&spec); err != nil {
		return fmt.Errorf("layout %d of a row change: %w; restore the table onewrite_layout from a backup", id, err)
	}
	l := &layout{}
	if err := json.Unmarshal([]byte(spec), l); err != nil {
		return fmt.Errorf("layout %d of a row change: %w; restore the table onewrite_layout from a backup", id, err)
	}
	s.layouts[id] = l
	return nil
}

// batch makes events of rows and moves the cursor.
func (s *Source) batch(rows []row) (onewrite.Batch, error) {
	events := make([]onewrite.Event, len(rows))
	seqs := make([]int64, len(rows))
	for i := range rows {
		e, err := s.event(&rows[i])
		if err != nil {
			return onewrite.Batch{}, fmt.Errorf("sqlite: source %s: row %d: %w", s.cfg.Name, rows[i].seq, err)
		}
		events[i], seqs[i] = e, rows[i].seq
	}
	at := s.at
	if n := len(rows); n > 0 {
		s.at.seq, s.at.id = seqs[n-1], events[n-1].ID
		if sabotage.Bug == "delete-on-read" {
			_ = s.Ack(context.Background(), s.at.pos())
		}
	}
	return onewrite.Batch{Events: events, Pos: s.at.pos(), PosAt: func(i int) onewrite.Pos {
		p := at
		p.seq, p.id = seqs[i], events[i].ID
		return p.pos()
	}}, nil
}

// event makes an event of a row. It cannot fail for a row that its own triggers
// or an application wrote; what is odd about one whose checks were switched off
// is left out or passed on, and the bus or the destination decides.
func (s *Source) event(r *row) (onewrite.Event, error) {
	e := onewrite.Event{ID: text(r.id), Source: s.cfg.Name, Topic: text(r.topic), Key: text(r.key), Seq: sequence(r.seq)}
	if at, err := time.Parse(time.RFC3339Nano, text(r.created)); err == nil {
		e.Time = at.UTC()
	}
	if r.op != nil {
		return e, s.change(&e, r)
	}
	if e.Type = text(r.kind); e.Type == "" {
		e.Type = e.Topic
	}
	binary := false
	switch payload := r.payload.(type) {
	case string:
		e.Data = []byte(payload)
	default:
		if blob, ok := r.bytes.([]byte); ok {
			e.Data, binary = append([]byte{}, blob...), true
		}
	}
	if e.Data != nil {
		if e.ContentType = text(r.media); e.ContentType == "" {
			e.ContentType = outbox.DefaultContentType(e.Data, binary)
		}
	}
	if h := text(r.headers); h != "" {
		if err := json.Unmarshal([]byte(h), &e.Header); err != nil {
			s.log.Warn("the headers of an event are no JSON object of strings and were left out", "id", e.ID)
			e.Header = nil
		}
	}
	return e, nil
}

// sequence writes the number so that it compares as text.
func sequence(n int64) string {
	const zeros = "00000000000000000000"
	s := fmt.Sprint(n)
	return zeros[:max(0, len(zeros)-len(s))] + strings.TrimPrefix(s, "-")
}

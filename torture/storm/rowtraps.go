package storm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onewrite/onewrite/torture/history"
)

// trap is something that PostgreSQL is silent about and that row changes get lost by.
type trap struct {
	says  string // of the gap
	after string // what is said of the outbox, a moment later
	cure  bool   // onewrite migrate has to be run
	whole bool   // no change is lost all the same
	do    func(*storm, context.Context, *history.Fault) error
}

var traps = map[string]trap{
	"slot dropped":          {says: "dropped and made again", do: (*storm).dropSlot},
	"slot moved":            {says: "was moved by another", do: (*storm).moveSlot},
	"slot lost":             {says: "of no more use", do: (*storm).loseSlot},
	"publication dropped":   {says: "is gone", cure: true, do: statements("DROP PUBLICATION onewrite_shop")},
	"publication made anew": {says: "put back", cure: true, do: statements("DROP PUBLICATION onewrite_shop", `CREATE PUBLICATION onewrite_shop FOR TABLE rows.anew, rows.bare, rows.bulk, rows.churn, rows.idle, rows.mark, rows.pair, rows.parts, rows.plain, rows.whole, rows.wide WITH (publish_via_partition_root)`)},
	"table put back":        {says: "rows.plain was taken out", cure: true, do: statements("ALTER PUBLICATION onewrite_shop DROP TABLE rows.plain", "ALTER PUBLICATION onewrite_shop ADD TABLE rows.plain")},
	"table made anew":       {says: "rows.anew is not in the publication", cure: true, do: statements(tableAnew)},
	"identity full":         {says: "replica identity of rows.plain", cure: true, whole: true, do: statements("ALTER TABLE rows.plain REPLICA IDENTITY FULL")},
	"identity back":         {says: "replica identity of rows.plain", cure: true, whole: true, do: statements("ALTER TABLE rows.plain REPLICA IDENTITY DEFAULT")},
	"restored":              {says: "another history", after: "went back in time", do: (*storm).restore},
	"promoted":              {says: "is gone", do: (*storm).promote},
	"promoted with slot":    {whole: true, do: (*storm).promote},
	"another cluster":       {says: "is not in the publication", cure: true, do: reload(0)},
	"cluster of 18":         {says: "is not in the publication", cure: true, do: reload(18)},
}

// tableAnew is another table of the same name; of the rows of the first nothing is said.
const tableAnew = `BEGIN; INSERT INTO shadow.log (tbl, key, op) VALUES ('anew', '', 't'); DROP TABLE rows.anew; CREATE TABLE rows.anew (v bigint NOT NULL, more int DEFAULT 7, note text, id int PRIMARY KEY);
	CALL shadow.watch('anew'); INSERT INTO rows.anew SELECT 2, 3, 'another', i FROM generate_series(20, 70) i; COMMIT`

// Traps are the names of what may be in [Config.Traps].
func Traps() []string { return slices.Sorted(maps.Keys(traps)) }

// capture waits until the log is read, with the slot that changes are captured by.
func (s *storm) capture(ctx context.Context) error {
	if s.Rows == "" || s.Idle {
		return nil
	}
	err := s.until(ctx, "the slot is made", func() bool {
		var made bool
		err := s.db.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM onewrite.log WHERE slot <> '')`).Scan(&made)
		return err == nil && made
	})
	s.captured.Store(s.now())
	return err
}

// trapped does a trap, proves that onewrite says so, and heals it.
func (s *storm) trapped(name string) func(context.Context, *history.Fault) error {
	t := traps[name]
	return func(ctx context.Context, f *history.Fault) error {
		f.On = "row changes"
		if err := s.read(ctx); err != nil { // what is read by now is not in the gap
			return err
		}
		f.At = s.now()
		ear := s.listen(t)
		if err := t.do(s, ctx, f); err != nil {
			return err
		}
		f.Until = s.now()
		loud := false
		if t.says != "" {
			f.Says = "gap"
			if loud = s.heard(ctx, ear); loud {
				s.labels.hit("loud")
			}
		}
		s.scribble(ctx, 5)
		if t.cure {
			if err := s.copies[0].command(ctx, "migrate"); err != nil {
				return err
			}
		}
		if err := s.readAgain(ctx); err != nil {
			return err
		}
		if loud && !t.whole { // only a gap that was told excuses
			f.Healed = s.now()
		}
		return nil
	}
}

// ear remembers what was said before.
type ear struct {
	trap
	gap  string
	gaps float64
	log  int64
}

func (s *storm) listen(t trap) ear {
	e := ear{trap: t, gaps: s.gaps()}
	if st, err := s.copies[0].status(); err == nil && st.Sources["shop"].Gap != nil {
		e.gap = *st.Sources["shop"].Gap
	}
	if info, err := os.Stat(s.copies[0].log.Name()); err == nil {
		e.log = info.Size()
	}
	return e
}

// heard waits for ten seconds until the gap is in the status, the metrics and the log.
func (s *storm) heard(ctx context.Context, e ear) bool {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		text, err := os.ReadFile(s.copies[0].log.Name())
		if err != nil || !strings.Contains(string(text[min(e.log, int64(len(text))):]), e.says) || s.gaps() <= e.gaps {
			continue
		}
		out, err := s.copies[0].make("status", "--json").Output()
		var st status
		if err != nil || json.Unmarshal(out, &st) != nil {
			continue
		}
		if gap := st.Sources["shop"].Gap; gap != nil && *gap != e.gap && (strings.Contains(*gap, e.says) || e.after != "" && strings.Contains(*gap, e.after)) {
			return true
		}
	}
	return false
}

// gaps is how many the metrics count.
func (s *storm) gaps() float64 {
	res, err := s.copies[0].http.Get("http://" + s.copies[0].addr + "/metrics")
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	_, rest, _ := strings.Cut(string(text), `onewrite_source_gaps_total{source="shop"} `)
	n, _ := strconv.ParseFloat(strings.TrimSpace(rest[:max(0, strings.IndexByte(rest, '\n'))]), 64)
	return n
}

// read waits until a row that is written now has come.
func (s *storm) read(ctx context.Context) error {
	v := s.fresh()
	for err := s.mark(ctx, v); err != nil; err = s.mark(ctx, v) {
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return s.until(ctx, "a row arrives that was written now", func() bool { return s.rowFile().came(v) })
}

func (s *storm) rowFile() *rowFile {
	for _, k := range s.sinks {
		if f, ok := k.(*rowFile); ok {
			return f
		}
	}
	return nil
}

// readAgain waits until all tables were read again, and what is written now arrives.
func (s *storm) readAgain(ctx context.Context) error {
	if err := s.read(ctx); err != nil {
		return err
	}
	return s.until(ctx, "the snapshots are on the bus", func() bool {
		var done bool
		err := s.db.QueryRowContext(ctx, `SELECT bool_and(finished >= wanted) FROM onewrite.captured`).Scan(&done)
		return err == nil && done
	})
}

// scribble changes n rows, each in a transaction of its own, as far as the server
// takes it.
func (s *storm) scribble(ctx context.Context, n int) {
	for i := range n {
		id := 1 + i%400
		q := fmt.Sprintf("INSERT INTO rows.plain VALUES (%d, %d, 0, 'scribble', NULL) ON CONFLICT (id) DO UPDATE SET v = excluded.v, note = 'scribbled'", id, s.fresh())
		if i%5 == 4 {
			q = fmt.Sprintf("DELETE FROM rows.plain WHERE id = %d", id)
		}
		_ = s.db.simply(ctx, q)
	}
}

// statements runs them, with changes in between.
func statements(list ...string) func(*storm, context.Context, *history.Fault) error {
	return func(s *storm, ctx context.Context, f *history.Fault) error {
		for _, q := range list {
			if err := s.db.simply(ctx, q); err != nil {
				return err
			}
			s.scribble(ctx, 25)
		}
		f.Proof = fmt.Sprintf("%.60s", list[0])
		return nil
	}
}

// unattended does something to the slot while onewrite is frozen and its session ended.
func (s *storm) unattended(ctx context.Context, do func(slot string) error) (err error) {
	if _, err := s.copies[0].freeze(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.copies[0].signal(sigCont, false)) }()
	var slot string
	if err := s.db.QueryRowContext(ctx, `SELECT slot FROM onewrite.log`).Scan(&slot); err != nil {
		return err
	}
	if err := s.until(ctx, "nobody reads the slot", func() bool {
		var free bool
		_, _ = s.db.ExecContext(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active`, slot)
		err := s.db.QueryRowContext(ctx, `SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1`, slot).Scan(&free)
		return err == nil && free
	}); err != nil {
		return err
	}
	s.scribble(ctx, 25)
	return do(slot)
}

func (s *storm) dropSlot(ctx context.Context, f *history.Fault) error {
	return s.unattended(ctx, func(slot string) error {
		if _, err := s.db.ExecContext(ctx, `SELECT pg_drop_replication_slot($1)`, slot); err != nil {
			return err
		}
		s.scribble(ctx, 25)
		return s.db.QueryRowContext(ctx, `SELECT 'begins again at ' || lsn FROM pg_create_logical_replication_slot($1, 'pgoutput')`, slot).Scan(&f.Proof)
	})
}

func (s *storm) moveSlot(ctx context.Context, f *history.Fault) error {
	return s.unattended(ctx, func(slot string) error {
		return s.db.QueryRowContext(ctx, `SELECT 'moved to ' || end_lsn FROM pg_replication_slot_advance($1, pg_current_wal_lsn())`, slot).Scan(&f.Proof)
	})
}

// loseSlot lets the server give the slot up.
func (s *storm) loseSlot(ctx context.Context, f *history.Fault) error {
	set := func(list ...string) error {
		for _, name := range list {
			if err := s.db.simply(ctx, "ALTER SYSTEM "+name); err != nil {
				return err
			}
		}
		return s.db.simply(ctx, `SELECT pg_reload_conf()`)
	}
	if err := set("SET max_slot_wal_keep_size = '16MB'", "SET min_wal_size = '32MB'", "SET max_wal_size = '32MB'"); err != nil {
		return err
	}
	err := s.unattended(ctx, func(slot string) error {
		return s.until(ctx, "the slot is lost", func() bool {
			s.scribble(ctx, 5)
			_ = s.db.simply(ctx, `SELECT pg_switch_wal()`)
			_ = s.db.simply(ctx, `CHECKPOINT`)
			var status string
			err := s.db.QueryRowContext(ctx, `SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1`, slot).Scan(&status)
			f.Proof = "wal_status is " + status
			return err == nil && status == "lost"
		})
	})
	return errors.Join(err, set("RESET max_slot_wal_keep_size", "RESET min_wal_size", "RESET max_wal_size"))
}

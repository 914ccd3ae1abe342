package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// follower reads a source as the pipeline does: what fails is opened again where the
// events that were stored end. It applies what comes.
type follower struct {
	*rig
	state map[string]replica // by topic
	kinds map[string]int     // events by topic and type
	ids   map[string]bool
	again int // events that came a second time
	gaps  []*onewrite.Gap
	marks int
}

const gapDDL = `CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int); CREATE TABLE other (id serial, pad text);
	INSERT INTO a SELECT i, 0 FROM generate_series(1, 50) i; INSERT INTO b SELECT i, 0 FROM generate_series(1, 20) i`

func newFollower(t *testing.T, pg *servers.PG) *follower {
	t.Helper()
	f := &follower{rig: newRig(t, pg, gapDDL, "public.a", "public.b")}
	f.forget()
	return f
}

func (f *follower) forget() {
	f.state, f.kinds, f.ids = map[string]replica{"public.a": {}, "public.b": {}}, map[string]int{}, map[string]bool{}
}

// begin reads the first snapshot and some changes.
func (f *follower) begin() {
	f.t.Helper()
	f.settle()
	sql(f.t, f.conn, `UPDATE a SET n = n + 1 WHERE id <= 10`, `DELETE FROM a WHERE id = 50`, `INSERT INTO b VALUES (100, 1)`)
	f.settle()
	if len(f.gaps) > 0 {
		f.t.Fatalf("a first start is no gap: %v", f.gaps[0])
	}
	f.equal()
	if f.kinds["public.a snapshot"] != 50 || f.kinds["public.b snapshot"] != 20 || f.kinds["public.a update"] < 10 {
		f.t.Fatalf("what came: %v", f.kinds)
	}
	f.kinds = map[string]int{}
}

// try opens the source; ErrStandby and what a server says that is starting are waited
// for, as the pipeline would.
func (f *follower) try() (err error) {
	f.t.Helper()
	f.close()
	eventually(f.t, "the source opens", func() bool {
		f.src, err = OpenSource(f.t.Context(), f.cfg, f.pos)
		if err != nil {
			f.src = nil
		}
		return err == nil || errors.Is(err, onewrite.ErrGap)
	})
	if src := f.src; src != nil {
		f.t.Cleanup(func() { _ = src.Close() })
	}
	return err
}

func (f *follower) close() {
	if f.src != nil {
		_ = f.src.Close()
		f.src = nil
	}
}

// step reads for a moment. An error is one of Read, or a Gap.
func (f *follower) step() error {
	f.t.Helper()
	if f.src == nil {
		if err := f.try(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), 100*time.Millisecond)
	defer cancel()
	b, err := f.src.Read(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		f.close()
		return err
	}
	if b.Gap != nil {
		if b.Gap.From == "" || b.Gap.To == "" || b.Gap.Reason == "" || b.Gap.Cure != "" {
			f.t.Errorf("a gap that was healed: %+v", b.Gap)
		}
		if strings.HasPrefix(b.Gap.Reason, "row changes: ") { // the outbox has its own word on it
			f.gaps = append(f.gaps, b.Gap)
		}
	}
	for _, e := range b.Events {
		if f.ids[e.ID] {
			f.again++
		}
		f.ids[e.ID] = true
		f.kinds[e.Topic+" "+e.Type]++
		f.state[e.Topic].apply(f.t, e)
	}
	if len(b.Events) > 0 {
		f.pos = b.Pos
		f.src.(interface{ Stored(onewrite.Pos) }).Stored(b.Pos)
	}
	return nil
}

// until reads until a condition holds. A gap that is held ends the test.
func (f *follower) until(what string, ok func() bool) {
	f.t.Helper()
	eventually(f.t, what, func() bool {
		f.t.Helper()
		if err := f.step(); errors.Is(err, onewrite.ErrGap) {
			f.t.Fatalf("%s: %v", what, err)
		}
		return ok()
	})
}

// settle reads until all is here that the tables have: the snapshots are finished, and
// a row that is written now has come.
func (f *follower) settle() {
	f.t.Helper()
	f.until("the snapshots are on the bus", func() bool {
		return one[bool](f.t, f.conn, `SELECT coalesce(bool_and(finished = wanted), false) FROM onewrite.captured`)
	})
	f.marks++
	id := 1_000_000 + f.marks
	sql(f.t, f.conn, fmt.Sprintf(`INSERT INTO a VALUES (%d, 0); INSERT INTO b VALUES (%d, 0)`, id, id))
	f.until("a row that is written now", func() bool {
		key := fmt.Sprintf(`{"id":%d}`, id)
		return f.state["public.a"][key] != nil && f.state["public.b"][key] != nil
	})
}

// equal compares what came with the tables. Rows that were deleted in a gap linger:
// nobody is told of them.
func (f *follower) equal(lingering ...string) {
	f.t.Helper()
	for _, table := range []string{"a", "b"} {
		want := tableAsJSON(f.t, f.conn, `SELECT '{"id":' || id || '}', n::text FROM `+table)
		if len(want) == 0 {
			f.t.Fatal("nothing is compared")
		}
		got := maps.Clone(f.state["public."+table])
		for _, key := range lingering {
			if want[key] == "" {
				delete(got, key)
			}
		}
		for key, n := range want {
			var have json.RawMessage
			if row := got[key]; row != nil {
				have = row["n"]
			}
			if string(have) != n {
				f.t.Errorf("%s %s: n is %s, want %s", table, key, have, n)
			}
			delete(got, key)
		}
		for key := range got {
			f.t.Errorf("%s %s came and is not in the table", table, key)
		}
	}
}

// noGap proves that reading goes on, with no gap and no event again.
func (f *follower) noGap() {
	f.t.Helper()
	n := len(f.gaps)
	again := f.again
	if err := f.try(); err != nil {
		f.t.Fatalf("no gap was to be met: %v", err)
	}
	f.settle()
	if len(f.gaps) > n {
		f.t.Errorf("no gap was to be met: %v", f.gaps[n])
	}
	if f.again > again {
		f.t.Errorf("%d events came again", f.again-again)
	}
}

// held proves that a gap is an error at Open, as often as it is tried.
func (f *follower) held(says string) *onewrite.Gap {
	f.t.Helper()
	var g *onewrite.Gap
	for range 2 {
		err := f.try()
		if err == nil {
			f.t.Fatalf("no gap is met, want %q", says)
		}
		if !errors.As(err, &g) || !strings.Contains(g.Reason, says) || g.Cure == "" || g.From == "" || g.To == "" {
			f.t.Fatalf("gap %+v, want %q", err, says)
		}
	}
	return g
}

// heals proves that reading goes on by itself, with a gap that says so and a new
// snapshot of every table.
func (f *follower) heals(says string, lingering ...string) {
	f.t.Helper()
	n := len(f.gaps)
	f.kinds = map[string]int{}
	if f.src == nil {
		if err := f.try(); err != nil {
			f.t.Fatalf("a gap is held, and was to be healed: %v", err)
		}
	}
	f.until("a gap is told", func() bool { return len(f.gaps) > n })
	if g := f.gaps[n]; !strings.Contains(g.Reason, says) {
		f.t.Errorf("gap %v, want %q", g, says)
	}
	if len(f.ids) > 0 && f.kinds["public.a snapshot"]+f.kinds["public.b snapshot"] > 0 {
		f.t.Error("events came before the gap was told")
	}
	f.settle()
	if len(f.gaps) != n+1 {
		f.t.Errorf("the gap was told %d times", len(f.gaps)-n)
	}
	if a, b := f.kinds["public.a snapshot"], f.kinds["public.b snapshot"]; a < 40 || b < 20 {
		f.t.Errorf("%d and %d rows were read again", a, b)
	}
	f.equal(lingering...)
	f.noGap()
	f.equal(lingering...)
}

// fails proves that a reader meets within ten seconds what was done to it.
func (f *follower) fails(what string) {
	f.t.Helper()
	began := time.Now()
	var err error
	eventually(f.t, what+" is met", func() bool { err = f.step(); return err != nil })
	if took := time.Since(began); took > 10*time.Second {
		f.t.Errorf("%s: met after %v", what, took)
	}
	f.close()
}

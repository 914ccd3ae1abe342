package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// rig is a database whose row changes are read.
type rig struct {
	t      *testing.T
	url    string
	conn   *pgx.Conn
	tables []string
	cfg    Config
	src    onewrite.Source
	pos    onewrite.Pos
}

func newRig(t *testing.T, pg *servers.PG, ddl string, tables ...string) *rig {
	t.Helper()
	r := &rig{t: t, url: pg.NewDatabase(t), tables: tables}
	r.conn = dial(t, r.url)
	sql(t, r.conn, ddl)
	r.migrate()
	r.cfg = Config{Name: "shop", URL: r.url, BusID: "bus1", Tables: tables, Logger: (&logs{}).logger()}
	return r
}

func (r *rig) migrate(again ...string) []string {
	r.t.Helper()
	applied, err := Migrate(r.t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables, Messages: r.cfg.Messages, DDL: r.cfg.DDL, Masks: r.cfg.Masks, Snapshot: true, Again: again}})
	if err != nil {
		r.t.Fatal(err)
	}
	return applied
}

// open opens the source where the events that were read last ended.
func (r *rig) open() {
	r.t.Helper()
	if r.src != nil {
		_ = r.src.Close()
	}
	if err := r.tryOpen(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	src := r.src
	r.t.Cleanup(func() { _ = src.Close() })
}

// tryOpen opens the source when the place of the reader before is free: the server sees
// the end of a session that was cut a moment later.
func (r *rig) tryOpen(ctx context.Context) (err error) {
	r.t.Helper()
	eventually(r.t, "the place of the reader before is free", func() bool {
		r.src, err = OpenSource(ctx, r.cfg, r.pos)
		return !errors.Is(err, onewrite.ErrStandby)
	})
	return err
}

// read reads one batch and says that it is stored.
func (r *rig) read() onewrite.Batch {
	r.t.Helper()
	b := r.readUnstored()
	if len(b.Events) > 0 {
		r.pos = b.Pos
		if s, ok := r.src.(interface{ Stored(onewrite.Pos) }); ok {
			s.Stored(b.Pos)
		}
	}
	return b
}

// readUnstored reads one batch, which the bus does not get.
func (r *rig) readUnstored() onewrite.Batch {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	b, err := r.src.Read(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// events reads n events.
func (r *rig) events(n int) (events []onewrite.Event) {
	r.t.Helper()
	for len(events) < n {
		events = append(events, r.read().Events...)
	}
	if len(events) > n {
		r.t.Fatalf("%d events came, want %d: %s", len(events), n, events[n].Data)
	}
	return events
}

// told is what a test compares.
type told struct {
	Topic, Type, Key string
	Before, After    string
	Unchanged        string
}

func rowOf(t *testing.T, e onewrite.Event) told {
	t.Helper()
	var env struct {
		Before, After json.RawMessage
		Source        struct{ Unchanged json.RawMessage }
		Op            string
	}
	if err := json.Unmarshal(e.Data, &env); err != nil {
		t.Fatalf("%v: %s", err, e.Data)
	}
	return told{Topic: e.Topic, Type: e.Type, Key: e.Key, Before: string(env.Before), After: string(env.After), Unchanged: string(env.Source.Unchanged)}
}

func TestRowChanges(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE orders (id bigint PRIMARY KEY, customer text, total numeric(10,2)); INSERT INTO orders VALUES (1, 'ann', 10)`, "public.orders")
		r.open()
		got := []told{rowOf(t, r.events(1)[0])}
		sql(t, r.conn, `INSERT INTO orders VALUES (2, 'bob "x"', 5)`, `UPDATE orders SET total = 6 WHERE id = 2`, `UPDATE orders SET id = 3 WHERE id = 2`, `DELETE FROM orders WHERE id = 1`,
			`BEGIN; INSERT INTO orders VALUES (9, 'rolled', 1); ROLLBACK`, `TRUNCATE orders`)
		events := r.events(6)
		for _, e := range events {
			got = append(got, rowOf(t, e))
		}
		want := []told{
			{"public.orders", "snapshot", `{"id":1}`, "null", `{"id":1,"customer":"ann","total":"10.00"}`, ""},
			{"public.orders", "insert", `{"id":2}`, "null", `{"id":2,"customer":"bob \"x\"","total":"5.00"}`, ""},
			{"public.orders", "update", `{"id":2}`, "null", `{"id":2,"customer":"bob \"x\"","total":"6.00"}`, ""},
			{"public.orders", "delete", `{"id":2}`, `{"id":2}`, "null", ""},
			{"public.orders", "insert", `{"id":3}`, "null", `{"id":3,"customer":"bob \"x\"","total":"6.00"}`, ""},
			{"public.orders", "delete", `{"id":1}`, `{"id":1}`, "null", ""},
			{"public.orders", "truncate", "public.orders", "null", "null", ""},
		}
		for i := range want {
			if i >= len(got) || got[i] != want[i] {
				t.Errorf("event %d: %+v, want %+v", i, got[i], want[i])
			}
		}
		if e := events[2]; e.Tx.ID == "" || e.Tx.Index != 0 || e.Tx.Last || !events[3].Tx.Last || events[3].Tx.Index != 1 || events[3].Tx.ID != e.Tx.ID {
			t.Errorf("the two of a new key: %+v %+v", e.Tx, events[3].Tx)
		}
	})
}

// After a backup was put back another transaction may end at the place where one did
// that was read: its events are others. What is read again has the same id.
func TestIDsOfTwoHistories(t *testing.T) {
	v := newEnvelope(Config{Name: "shop"}, 7)
	id := func(at int64) string {
		return string(v.words(&change{lsn: 4711, index: 3, xid: 9, at: time.UnixMicro(at).UTC()})[:36])
	}
	one, again, other := id(1_795_941_665_366_723), id(1_795_941_665_366_723), id(1_795_941_665_366_724)
	if one == other {
		t.Error("two transactions have one id")
	}
	if one != again {
		t.Error("one transaction has two ids")
	}
}

package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/servers"
)

// whole is the chunk of a table without a key; it has the rows with these ids.
func (d *desk) whole(where, sees string, ids ...string) *chunk {
	d.t.Helper()
	ch := d.f.newChunk(captured{rel: 1, wanted: 1, where: where}, snapPlace{rel: 1, wanted: 1}, &progress{})
	ch.table = newTable(1, "shop", "public", "t1", d.table(1).columns, nil)
	ch.more = func() (rows []pgoutput.Tuple, err error) {
		for _, id := range ids {
			rows = append(rows, rowAs(id, "v"))
		}
		ids = nil
		return rows, nil
	}
	var err error
	if ch.snap, err = parseSnapshot(sees); err != nil {
		d.t.Fatal(err)
	}
	return ch
}

// change is one of that table: from and to are ids, "" is none.
func (d *desk) change(ch *chunk, xid uint32, from, to string) *change {
	c := &change{table: ch.table, xid: xid, whole: true, op: 'u', kind: "update"}
	if from == "" {
		c.op, c.kind = 'c', "insert"
	} else {
		c.before = rowAs(from, "v")
	}
	if to == "" {
		c.op, c.kind = 'd', "delete"
	} else {
		c.after = rowAs(to, "v")
	}
	return c
}

// told returns what went out, as types and ids.
func (d *desk) told() string {
	d.t.Helper()
	d.r.flush()
	d.r.made.makeEvents(d.r.queue.items)
	var words []string
	last := ""
	for _, i := range d.r.queue.items {
		var env struct{ After struct{ ID json.Number } }
		if err := json.Unmarshal(i.event.Data, &env); err != nil {
			d.t.Fatal(err)
		}
		if i.event.Seq <= last || i.event.Tx.ID != "" {
			d.t.Errorf("sequence %s after %s, transaction %q", i.event.Seq, last, i.event.Tx.ID)
		}
		last = i.event.Seq
		words = append(words, map[string]string{"truncate": "-", "snapshot": env.After.ID.String()}[i.event.Type])
	}
	d.r.queue.items = nil
	return strings.Join(words, " ")
}

// The rows of a table without a key are those at the high mark: what was committed between
// the marks came before them, also where their snapshot does not see it.
func TestKeylessRowsAreThoseAtTheMark(t *testing.T) {
	for _, c := range []struct {
		name, where string
		changes     func(d *desk, ch *chunk) []*change
		err         error
		want        string
	}{
		{"nothing", "", nil, nil, "- 1 1 2 3"},
		{"seen", "", func(d *desk, ch *chunk) []*change {
			return []*change{d.change(ch, 50, "", "3"), d.change(ch, 51, "7", ""), {table: ch.table, xid: 50, op: 't'}}
		}, nil, "- 1 1 2 3"},
		{"unseen", "", func(d *desk, ch *chunk) []*change {
			return []*change{d.change(ch, 60, "1", ""), d.change(ch, 60, "", "4"), d.change(ch, 61, "2", "5"), d.change(ch, 62, "", "1"), d.change(ch, 62, "1", ""), d.change(ch, 63, "5", "6"), d.change(ch, 63, "", "3")}
		}, nil, "- 1 3 4 6 3"},
		{"unseen, with a condition", "v > 0", func(d *desk, ch *chunk) []*change {
			return []*change{d.change(ch, 60, "1", ""), d.change(ch, 60, "", "4"), d.change(ch, 61, "2", "5"), d.change(ch, 61, "99", "")}
		}, nil, "1 3"},
		{"of a row that was not read", "", func(d *desk, ch *chunk) []*change { return []*change{d.change(ch, 60, "9", "")} }, errStray, "- 1 1 2 3"},
		{"an unseen TRUNCATE", "", func(_ *desk, ch *chunk) []*change { return []*change{{table: ch.table, xid: 60, op: 't'}} }, errAgain, ""},
		{"without the old row", "", func(d *desk, ch *chunk) []*change {
			c := d.change(ch, 60, "1", "2")
			c.before, c.whole = nil, false
			return []*change{c}
		}, errAgain, ""},
		{"without a large value", "", func(d *desk, ch *chunk) []*change {
			c := d.change(ch, 60, "1", "2")
			c.after[1] = pgoutput.Column{Kind: pgoutput.ColumnUnchanged}
			return []*change{c}
		}, errAgain, ""},
		{"more than there is room for", "", func(d *desk, ch *chunk) []*change {
			c := d.change(ch, 50, "", "2")
			c.after[1].Data = make([]byte, heldBytes)
			return []*change{c, d.change(ch, 50, "", "2")}
		}, errAgain, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDesk(t, 1)
			ch := d.whole(c.where, "60:60:", "1", "1", "2", "3")
			d.mark(ch, "low")
			if c.changes != nil {
				for _, one := range c.changes(d, ch) {
					d.f.saw(one)
				}
			}
			ch.last = true
			d.mark(ch, "high")
			if err := <-ch.result; !errors.Is(err, c.err) {
				t.Errorf("%v, want %v", err, c.err)
			}
			if got := d.told(); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// waits says that the snapshot of a table waits for a transaction.
const waits = "begins when the transactions that are open now have ended"

// keylessRig reads a table log without a key whose first snapshot is over, and returns
// what says that the next one waits.
func keylessRig(t *testing.T, pg *servers.PG, rows int) (r *rig, waiting chan struct{}) {
	t.Helper()
	r = newRig(t, pg, fmt.Sprintf(`CREATE TABLE log (v int); INSERT INTO log SELECT i FROM generate_series(1, %d) i; CREATE TABLE other (n int)`, rows), "public.log")
	waiting = make(chan struct{}, 1)
	r.cfg.Trouble = func(_, problem string) {
		if strings.Contains(problem, waits) {
			waiting <- struct{}{}
		}
	}
	r.open()
	r.events(rows)
	r.whole()
	return r, waiting
}

// tells returns what comes until a row of log is told, as types and rows.
func (r *rig) tells(last string) (list []string) {
	r.t.Helper()
	for !slices.Contains(list, last) {
		for _, e := range r.read().Events {
			w := e.Type
			row := rowOf(r.t, e)
			for _, v := range []string{row.Before, row.After} {
				if v != "null" {
					w += " " + strings.Trim(v, `{"v:}`)
				}
			}
			list = append(list, w)
		}
	}
	return list
}

// What is done to a table without a key while its snapshot waits for a transaction that is
// open comes as what it was, and before the rows.
func TestKeylessChangesWhileTheSnapshotWaits(t *testing.T) {
	for how, want := range map[string]string{
		"DELETE FROM log WHERE v = 2": "delete 2, insert 9, truncate, snapshot 1, snapshot 9",
		"TRUNCATE log":                "truncate, insert 9, truncate, snapshot 9",
		"INSERT INTO log VALUES (5); DELETE FROM log WHERE v = 5":                      "insert 5, delete 5, insert 9, truncate, snapshot 1, snapshot 2, snapshot 9",
		"BEGIN; UPDATE log SET v = 7 WHERE v = 1; DELETE FROM log WHERE v = 7; COMMIT": "update 1 7, delete 7, insert 9, truncate, snapshot 2, snapshot 9",
	} {
		t.Run(how, func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				r, waiting := keylessRig(t, pg, 2)
				busy := dial(t, r.url)
				sql(t, busy, `BEGIN`, `INSERT INTO other VALUES (1)`)
				r.migrate("public.log")
				<-waiting
				sql(t, r.conn, how, `INSERT INTO log VALUES (9)`)
				sql(t, busy, `COMMIT`)
				if got := strings.Join(r.tells("snapshot 9"), ", "); got != want {
					t.Errorf("%s, want %s", got, want)
				}
			})
		})
	}
}

// A condition of the snapshot says nothing of changes, and its rows do not take the place
// of what a copy has.
func TestKeylessChangesBesideACondition(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r, waiting := keylessRig(t, pg, 2)
		busy := dial(t, r.url)
		sql(t, busy, `BEGIN`, `INSERT INTO other VALUES (1)`)
		if _, err := r.migrateWhere(nil, "v > 100", "public.log"); err != nil {
			t.Fatal(err)
		}
		<-waiting
		sql(t, r.conn, `INSERT INTO log VALUES (5)`, `INSERT INTO log VALUES (500)`, `DELETE FROM log WHERE v = 2`)
		sql(t, busy, `COMMIT`)
		if got := strings.Join(r.tells("snapshot 500"), ", "); got != "insert 5, insert 500, delete 2, snapshot 500" {
			t.Error(got)
		}
	})
}

// What came of a first snapshot that was cut off, and is deleted before it is read anew, is
// told; the rows of the new one begin with an empty copy.
func TestKeylessFirstSnapshotCutOff(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE log (v int); INSERT INTO log SELECT i FROM generate_series(1, 5000) i`, "public.log")
		r.open()
		got := bag{}
		for _, e := range r.read().Events {
			got.apply(t, e)
		}
		before := got.size()
		_ = r.src.Close()
		sql(t, r.conn, `DELETE FROM log WHERE v <= 100`, `DELETE FROM log WHERE v = 5000`, `INSERT INTO log VALUES (0)`)
		r.open()
		kinds := map[string]int{}
		for kinds["snapshot"] < 4900 {
			for _, e := range r.read().Events {
				kinds[e.Type]++
				if e.Type == "delete" && strings.Contains(string(e.Data), `"v":5000}`) {
					continue // of a row that had not come
				}
				got.apply(t, e)
			}
		}
		if before < 100 || before == 5000 || kinds["delete"] != 101 || kinds["insert"] != 1 || kinds["truncate"] != 1 || kinds["snapshot"] != 4900 {
			t.Errorf("%d rows came at first, then %v", before, kinds)
		}
		if got.size() != 4900 || got[`{"v":0}`] != 1 || got[`{"v":4999}`] != 1 {
			t.Errorf("the copy has %d rows", got.size())
		}
	})
}

// The rows of a table whose name another one had are the copy, which goes by the name: also
// in the life of the first reader, and whatever the other one was.
func TestKeylessTableOfANameThatWasTold(t *testing.T) {
	for name, c := range map[string]struct{ key, before, with string }{
		"dropped":            {"", "", `DROP TABLE log`},
		"renamed":            {"", "", `ALTER TABLE log RENAME TO old`},
		"it had a key":       {"PRIMARY KEY", "", `DROP TABLE log`},
		"dropped, then made": {"", `DROP TABLE log`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				r := newRig(t, pg, `CREATE TABLE log (v int `+c.key+`); INSERT INTO log VALUES (1), (2)`, "public.log")
				told := &toldTroubles{}
				r.cfg.Trouble = told.add
				r.open()
				copied := bag{}
				for _, e := range r.events(2) {
					copied.apply(t, e)
				}
				r.whole()
				if c.before != "" {
					sql(t, r.conn, c.before)
					eventually(t, "it is noticed", func() bool { return told.has("the table public.log was dropped") })
				}
				sql(t, r.conn, `BEGIN; `+c.with+`; CREATE TABLE log (v int); INSERT INTO log VALUES (7); COMMIT`)
				r.migrate()
				for copied[`{"v":7}`] == 0 {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					b, err := r.src.Read(ctx)
					cancel()
					if err != nil { // it looked before migrate had run
						r.open()
						continue
					}
					for _, e := range b.Events {
						copied.apply(t, e)
					}
				}
				if copied.size() != 1 {
					t.Errorf("the table has one row, the copy %v", copied)
				}
			})
		})
	}
}

// A source whose tables were out of the configuration has been read before: its rows are the
// copy when they are read again.
func TestKeylessTakenOutAndInAgain(t *testing.T) {
	for _, script := range []bool{false, true} {
		each(t, func(t *testing.T, pg *servers.PG) {
			r := newRig(t, pg, `CREATE TABLE log (v int); INSERT INTO log VALUES (1), (2)`, "public.log")
			r.open()
			r.events(2)
			r.whole()
			_ = r.src.Close()
			eventually(t, "the slot is free", func() bool {
				return one[bool](t, r.conn, `SELECT NOT bool_or(active) FROM pg_replication_slots WHERE database = current_database()`)
			})
			tables := r.tables
			r.tables, r.cfg.Tables = nil, nil
			r.bring(script)
			r.src = nil
			r.open()
			sql(t, r.conn, `SELECT onewrite.publish('a', 'k', '1'::text)`)
			r.events(1) // from now on no place in the log is on the bus
			sql(t, r.conn, `DELETE FROM log WHERE v = 1`)
			r.tables, r.cfg.Tables = tables, tables
			r.bring(script)
			r.open()
			if got := strings.Join(r.tells("snapshot 2"), ", "); got != "truncate, snapshot 2" {
				t.Errorf("%s", got)
			}
		})
	}
}

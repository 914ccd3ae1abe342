package postgres

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/servers"
)

// desk is a backfill whose marks and changes are a test's to give.
type desk struct {
	t *testing.T
	r *logReader
	f *backfill
}

func newDesk(t *testing.T, tables ...uint32) *desk {
	r := &logReader{cfg: Config{Known: &Known{}}, queue: newLogQueue(), made: newEnvelope(Config{Name: "shop"}, 1), changed: make(chan struct{}, 1)}
	var list []captured
	for _, rel := range tables {
		list = append(list, captured{rel: rel, name: fmt.Sprint("public.t", rel), wanted: 1})
	}
	r.fill = newBackfill(r, "", list)
	return &desk{t: t, r: r, f: r.fill}
}

func (d *desk) table(rel uint32) *table {
	return newTable(rel, "shop", "public", fmt.Sprint("t", rel), []tableColumn{{name: "id", typ: builtIn[23], oid: 23}, {name: "v", typ: builtIn[25], oid: 25}}, []string{"id"})
}

func rowAs(id, v string) pgoutput.Tuple {
	return pgoutput.Tuple{{Kind: pgoutput.ColumnText, Data: []byte(id)}, {Kind: pgoutput.ColumnText, Data: []byte(v)}}
}

// chunk is one that was read from a place on; it has the rows with these ids.
func (d *desk) chunk(rel uint32, from []string, sees string, ids ...string) *chunk {
	d.t.Helper()
	ch := d.f.newChunk(captured{rel: rel, wanted: 1}, snapPlace{rel: rel, wanted: 1, key: from}, &progress{})
	ch.table, ch.order = d.table(rel), []int{0}
	for _, id := range ids {
		ch.rows = append(ch.rows, rowAs(id, "read"))
	}
	ch.end.key = ch.placeOf(rowAs(ids[len(ids)-1], ""), ch.order)
	var err error
	if ch.snap, err = parseSnapshot(sees); err != nil {
		d.t.Fatal(err)
	}
	return ch
}

func (d *desk) mark(ch *chunk, word string) {
	d.t.Helper()
	d.r.tx.lsn++
	if err := d.f.mark(d.r, []byte(d.f.nonce+":"+ch.mark(word))); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) update(rel, xid uint32, id string) {
	d.f.saw(&change{table: d.table(rel), kind: "update", op: 'u', after: rowAs(id, "new"), xid: xid})
}

// out returns the keys of what went out since, and where the snapshots are.
func (d *desk) out() string {
	d.r.flush()
	d.r.made.makeEvents(d.r.queue.items)
	var b strings.Builder
	for _, i := range d.r.queue.items {
		fmt.Fprint(&b, strings.TrimPrefix(i.event.Topic, "public."), i.event.Key, " ")
	}
	d.r.queue.items = nil
	return b.String()
}

// A chunk's transaction has a lock on its table. It never waits for the session by which
// the reader looks into the database: that may be waiting for a lock on the same table,
// behind an ALTER TABLE that waits for the chunk's.
func TestChunkWaitsForNoReader(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		conn := dial(t, url)
		sql(t, conn, `CREATE DOMAIN code AS text; CREATE TYPE mood AS ENUM ('fine'); CREATE TABLE t (id code PRIMARY KEY, moods mood[])`, `BEGIN`)
		var rel uint32
		if err := conn.QueryRow(t.Context(), `SELECT 't'::regclass::oid`).Scan(&rel); err != nil {
			t.Fatal(err)
		}
		d := newDesk(t, rel)
		d.r.cat = catalog{conn: dial(t, url), types: map[uint32]valueType{}}
		d.r.side.Lock()
		defer d.r.side.Unlock()
		ch := &chunk{of: captured{rel: rel}}
		done := make(chan error, 1)
		go func() { done <- d.f.describe(t.Context(), conn, ch) }()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it waits for the reader")
		}
		if c := ch.table.columns; len(c) != 2 || c[0].typ != builtIn[25] || c[1].typ.form != formArray {
			t.Errorf("columns %+v", c)
		}
	})
}

// A chunk that was read ahead does not go out when the one before it is read again: its
// rows would be passed over.
func TestChunkBehindOneThatIsReadAgain(t *testing.T) {
	d := newDesk(t, 1)
	d.update(1, 50, "2") // the log has it, but the first chunk does not see it
	first, second := d.chunk(1, nil, "50:51:50", "1", "2"), d.chunk(1, []string{"", "2"}, "51:51:", "3", "4")
	for _, ch := range []*chunk{first, second} {
		d.mark(ch, "low")
		d.mark(ch, "high")
		if err := <-ch.result; !errors.Is(err, errAgain) || d.out() != "" {
			t.Fatalf("chunk %d: %v", ch.id, err)
		}
	}
	first, second = d.chunk(1, nil, "51:51:", "1", "2"), d.chunk(1, []string{"", "2"}, "51:51:", "3", "4")
	for _, ch := range []*chunk{first, second} {
		d.mark(ch, "low")
		d.mark(ch, "high")
		if err := <-ch.result; err != nil {
			t.Fatal(err)
		}
	}
	if got := d.out(); got != `t1{"id":1} t1{"id":2} t1{"id":3} t1{"id":4} ` {
		t.Error(got)
	}
	if at := d.r.snapPlaceOf(captured{rel: 1, wanted: 1}); fmt.Sprint(at.key) != "[ 4]" {
		t.Errorf("the snapshot is at %v", at.key)
	}
}

// The windows of two tables overlap, and each has the changes of its own.
func TestWindowsOfTwoTables(t *testing.T) {
	d := newDesk(t, 1, 2)
	a, b := d.chunk(1, nil, "60:60:", "1", "2", "3"), d.chunk(2, nil, "60:60:", "1", "2", "3")
	d.mark(a, "low")
	d.update(1, 51, "1")
	d.update(2, 52, "1") // before b's window: b sees it
	d.mark(b, "low")
	d.update(1, 53, "2")
	d.update(2, 54, "3")
	d.mark(a, "high")
	if got := d.out(); got != `t1{"id":3} ` {
		t.Error(got)
	}
	d.update(1, 55, "2") // behind a's window
	d.update(2, 56, "2")
	d.mark(b, "high")
	if got := d.out(); got != `t2{"id":1} ` {
		t.Error(got)
	}
	// What only the snapshot of one table sees is not forgotten for the other, which is
	// being read.
	d.f.busy[2] = true
	d.update(2, 61, "9")
	c := d.chunk(2, []string{"", "3"}, "61:62:61", "4")
	d.mark(c, "low")
	e := d.chunk(1, []string{"", "3"}, "70:70:", "4")
	d.mark(e, "low")
	d.mark(e, "high")
	if err := <-e.result; err != nil {
		t.Error(err)
	}
	d.mark(c, "high")
	if err := <-c.result; !errors.Is(err, errAgain) {
		t.Errorf("a chunk that misses a transaction of before: %v", err)
	}
}

// A transaction that the log had before a snapshot was asked for may not be visible yet
// either.
func TestUnseenBeforeTheSnapshotWasWanted(t *testing.T) {
	d := newDesk(t, 1)
	d.f.set([]captured{{rel: 1, wanted: 1, finished: 1}})
	d.update(1, 50, "1")
	d.f.set([]captured{{rel: 1, wanted: 1}})
	d.f.tables[1] = captured{rel: 1, wanted: 1}
	for _, c := range []struct {
		sees string
		want error
	}{{"50:51:50", errAgain}, {"51:51:", nil}} {
		ch := d.chunk(1, nil, c.sees, "1")
		d.mark(ch, "low")
		d.mark(ch, "high")
		if err := <-ch.result; !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.sees, err, c.want)
		}
	}
}

// What was seen of a table whose snapshot has to wait does not grow for ever.
func TestForgottenTransactions(t *testing.T) {
	d := newDesk(t, 1, 2)
	for xid := range uint32(100) {
		d.update(1, 100+xid, "1")
		d.update(2, 100+xid, "1")
	}
	ch := d.chunk(1, nil, "150:300:", "1")
	d.mark(ch, "low")
	d.mark(ch, "high")
	if a, b := len(d.f.recent[1]), len(d.f.recent[2]); a != 50 || b != 50 {
		t.Errorf("%d and %d transactions are noted, want 50", a, b)
	}
}

func TestProgressOfASnapshot(t *testing.T) {
	p := &progress{}
	p.about.Store(1000)
	if now, _ := p.now(time.Second); now.Left >= 0 {
		t.Errorf("%+v: nothing was read yet", now)
	}
	p.rows.Store(250)
	if now, rate := p.now(5 * time.Second); now.Left != 15*time.Second || rate != 50 || now.Rows != 250 || now.About != 1000 {
		t.Errorf("%+v, %v rows/s", now, rate)
	}
	p.rows.Store(1200) // the estimate was wrong
	if now, _ := p.now(5 * time.Second); now.Left >= 0 {
		t.Errorf("%+v", now)
	}
}

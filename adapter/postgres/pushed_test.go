package postgres

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/servers"
)

var pushedCapture = MigrateOptions{Capture: Capture{Source: "shop", Pushed: true}}

// pushing opens a source, and waits until the log tells what is published.
func (r *rig) pushing() {
	r.t.Helper()
	r.open()
	b := r.src.(*Both)
	for b.log.Load() == nil || b.at == nil || b.at.done <= b.log.Load().begin.done {
		sql(r.t, r.conn, `SELECT onewrite.publish('mark', 'k', 'mark'::text)`)
		for _, e := range r.read().Events {
			if e.Topic != "mark" {
				r.t.Fatalf("%s came", e.Topic)
			}
		}
	}
	b.pushed.timer.Stop() // no sweep tells what follows
}

// An event is the same, whichever way it came.
func TestPushedBytes(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, pushedCapture)
		conn := dial(t, url)
		r := &rig{t: t, url: url, conn: conn, cfg: Config{Name: "shop", URL: url, BusID: "bus1", Pushed: true}}
		r.pushing()
		sql(t, conn, `SET TimeZone = 'Asia/Kolkata'`,
			`BEGIN; INSERT INTO onewrite.outbox (topic, key, payload) VALUES ('a.b', 'k', '{"n": 1}'), ('a', NULL, 'plain "text" \ und Ünïcödé 🎈'), ('a', '', ''); COMMIT`,
			`INSERT INTO onewrite.outbox (topic, payload_bytes) VALUES ('bytes', '\x00ff5c27'), ('bytes', '\x')`,
			`INSERT INTO onewrite.outbox (topic) VALUES ('tombstone')`,
			`INSERT INTO onewrite.outbox (topic, key, type, content_type, headers, payload, id) VALUES ('full', E'k\n2', 'Typed', 'application/xml', '{"traceparent": "00-x", "X-Y": "ü \" z"}', '<a/>', '0123abcd-0000-4000-8000-00000000ffff')`,
			`INSERT INTO onewrite.outbox (topic, payload) SELECT 'large', repeat('é', 200000)`,
			`BEGIN; SAVEPOINT s; INSERT INTO onewrite.outbox (topic, payload) VALUES ('gone', 'x'); ROLLBACK TO s; INSERT INTO onewrite.outbox (topic, payload) VALUES ('kept', 'y'); COMMIT`)
		const n = 9
		told := r.events(n)
		_ = r.src.Close()
		s := open(t, url, "")
		var got []onewrite.Event
		for len(got) < n {
			events := read(t, s).Events
			events = slices.DeleteFunc(events, func(e onewrite.Event) bool { return e.Topic == "mark" })
			got = append(got, events...)
		}
		for i := range got {
			if !reflect.DeepEqual(told[i], got[i]) {
				t.Errorf("the log tells %+v,\nthe ring %+v", told[i], got[i])
			}
		}
	})
}

// A reader that stops at any place, goes on there from the log or the ring, and loses
// its slot now and then, has seen each event once and in order.
func TestPushedRestartAnywhere(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, pushedCapture)
		conn := dial(t, url)
		rings, lost, told := 0, 0, 0
		var newest pgoutput.LSN
		r := restarts{url: url, writers: 4, each: 1200, reads: 150, cut: 12}
		r.config = func(n int, pos onewrite.Pos) Config {
			place, _, err := splitPlaces(pos)
			if err != nil {
				t.Fatal(err)
			}
			whole := place == nil || place.tx == 0 // else the ring would tell the transaction from its beginning
			if whole && n%7 == 5 {
				sql(t, conn, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database() AND NOT active`)
				lost++
			}
			cfg := Config{MaxBatchBytes: 60_000, Pushed: !whole || n%4 > 0}
			if !cfg.Pushed {
				rings++
			}
			return cfg
		}
		r.took = func(src onewrite.Source, pos onewrite.Pos, n int) {
			if p, _, err := splitPlaces(pos); err != nil {
				t.Fatal(err)
			} else if p != nil && p.done != newest {
				told, newest = told+1, p.done
			}
			if s, ok := src.(*Both); ok {
				s.Stored(pos)
			}
			if n%3 == 0 {
				if err := src.Ack(t.Context(), pos); err != nil {
					t.Fatal(err)
				}
			}
		}
		n := r.run(t)
		t.Logf("%d restarts, %d of the ring alone, %d slots lost, %d batches of the log", n, rings, lost, told)
		if n < 12 || rings < 2 || lost < 1 || told < 50 {
			t.Error("the test is too tame")
		}
	})
}

// next reads one event, and goes on until ok; what fails is opened again.
func (r *rig) next(data string, ok func() bool) {
	r.t.Helper()
	came := false
	eventually(r.t, data, func() bool {
		ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Second)
		defer cancel()
		b, err := r.src.Read(ctx)
		if err != nil {
			r.open()
		}
		for _, e := range b.Events {
			if came || string(e.Data) != data {
				r.t.Fatalf("%s came", e.Data)
			}
			came, r.pos = true, b.Pos
		}
		return came && ok()
	})
}

// What the log does not tell is found in the ring, and said.
func TestPushedForgets(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, pushedCapture)
		conn := dial(t, url)
		var said logs
		trouble := make(chan string, 100)
		r := &rig{t: t, url: url, conn: conn, cfg: Config{Name: "shop", URL: url, BusID: "bus1", Pushed: true, Logger: said.logger(), Trouble: func(name, problem string) {
			if name == "outbox" && problem != "" {
				select {
				case trouble <- problem:
				default:
				}
			}
		}}}
		r.pushing()
		sql(t, conn, `SELECT onewrite.publish('a', 'k', '1'::text)`)
		r.events(1)
		r.src.(*Both).pushed.timer.Reset(time.Millisecond)
		sql(t, conn, `ALTER PUBLICATION onewrite_shop DROP TABLE onewrite.outbox`, `SELECT onewrite.publish('a', 'k', '2'::text)`)
		r.next("2", func() bool { return len(trouble) > 0 })
		if p := <-trouble; p != notPublished {
			t.Errorf("it says %q", p)
		}
		if _, err := Migrate(t.Context(), url, pushedCapture); err != nil {
			t.Fatal(err)
		}
		sql(t, conn, `SELECT onewrite.publish('a', 'k', '3'::text)`)
		again := r.src
		r.next("3", func() bool { return r.src != again })
		// A slot that is gone while nobody reads is no gap: the ring has it all.
		_ = r.src.Close()
		sql(t, conn, `SELECT onewrite.publish('a', 'k', '4'::text)`, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`, `SELECT onewrite.publish('a', 'k', '5'::text)`)
		r.src = nil
		r.open()
		for i, e := range r.events(2) {
			if string(e.Data) != fmt.Sprint(i+4) {
				t.Errorf("%s came", e.Data)
			}
		}
		if !strings.Contains(said.String(), "the ring of the outbox has what the log lost") {
			t.Errorf("it says\n%s", said.String())
		}
		// No slot, no log: the ring alone.
		_ = r.src.Close()
		sql(t, conn, `DROP PUBLICATION onewrite_shop`, `SELECT onewrite.publish('a', 'k', '6'::text)`)
		r.src = nil
		r.open()
		if e := r.events(1)[0]; string(e.Data) != "6" {
			t.Errorf("%s came", e.Data)
		}
	})
}

// The outbox is put into the publication while it is read: what was committed before comes
// first, from the ring.
func TestPushedPutIn(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, pushedCapture)
		conn := dial(t, url)
		sql(t, conn, `ALTER PUBLICATION onewrite_shop DROP TABLE onewrite.outbox`)
		r := &rig{t: t, url: url, conn: conn, cfg: Config{Name: "shop", URL: url, BusID: "bus1", Pushed: true}}
		r.open()
		b := r.src.(*Both)
		for b.log.Load() == nil || b.ring.looks <= b.pushed.looks+1 {
			sql(t, conn, `SELECT onewrite.publish('mark', 'k', 'mark'::text)`)
			r.read()
		}
		b.pushed.timer.Stop() // the next look is not soon
		if b.pushed.due {
			t.Fatal("the ring is looked at now")
		}
		sql(t, conn, `SELECT onewrite.publish('a', 'k', '1'::text)`)
		if _, err := Migrate(t.Context(), url, pushedCapture); err != nil {
			t.Fatal(err)
		}
		sql(t, conn, `SELECT onewrite.publish('a', 'k', '2'::text)`)
		var came []string
		eventually(t, "both", func() bool {
			batch, err := r.src.Read(t.Context())
			if err != nil {
				r.open()
			}
			for _, e := range batch.Events {
				came = append(came, string(e.Data))
			}
			return len(came) >= 2
		})
		if !slices.Equal(came, []string{"1", "2"}) {
			t.Errorf("%q came", came)
		}
		if r.src == b {
			t.Error("the source was not opened again")
		}
	})
}

// The log tells a commit before others see it, by as long as a synchronous standby takes.
// A sweep in that time does not forget that it was told.
func TestPushedBeforeVisible(t *testing.T) {
	pg := servers.NewPostgres(t, 18, servers.Set("max_connections", "60"))
	url := newOutbox(t, pg, pushedCapture)
	conn := dial(t, url)
	r := &rig{t: t, url: url, conn: conn, cfg: Config{Name: "shop", URL: url, BusID: "bus1", Pushed: true}}
	r.pushing()
	setting := func(v string) {
		sql(t, conn, `SET synchronous_commit = local`, `ALTER SYSTEM SET synchronous_standby_names = '`+v+`'`, `SELECT pg_reload_conf()`)
		eventually(t, "the setting holds", func() bool {
			return one[string](t, conn, `SELECT current_setting('synchronous_standby_names')`) == v
		})
	}
	setting("nobody")
	writer, done := dial(t, url), make(chan error, 1)
	want := func(data string) {
		t.Helper()
		if e := r.events(1)[0]; string(e.Data) != data {
			t.Fatalf("%s came, want %s", e.Data, data)
		}
	}
	for waits := false; !waits; { // until the server has taken the setting over
		go func() {
			_, err := writer.Exec(context.Background(), `SELECT onewrite.publish('a', 'k', 'early'::text)`)
			done <- err
		}()
		want("early")
		eventually(t, "it commits or waits", func() bool {
			waits = one[bool](t, conn, `SELECT coalesce(wait_event = 'SyncRep', false) FROM pg_stat_activity WHERE pid = $1`, writer.PgConn().PID())
			return waits || len(done) > 0
		})
		if !waits {
			<-done
			sql(t, conn, `UPDATE onewrite.outbox SET payload = 'seen' WHERE payload = 'early'`)
		}
	}
	if n := one[int](t, conn, `SELECT count(*) FROM onewrite.outbox WHERE payload = 'early'`); n != 0 {
		t.Fatal("it is visible already")
	}
	if _, found, err := r.src.(*Both).ring.sweep(t.Context()); found || err != nil {
		t.Fatal(found, err)
	}
	for i := range 3 { // at each there is a sweep
		r.src.(*Both).pushed.due = true
		sql(t, conn, fmt.Sprintf(`SELECT onewrite.publish('a', 'k', 'mark%d'::text)`, i))
		want(fmt.Sprint("mark", i))
	}
	setting("")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.src.(*Both).pushed.due = true
	sql(t, conn, `SELECT onewrite.publish('a', 'k', 'end'::text)`)
	want("end")
}

// Rows of captured tables and of the outbox come in the order of their transaction, and
// the last row change is marked as such, wherever it stands.
func TestPushedWithTables(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		conn := dial(t, url)
		sql(t, conn, `CREATE TABLE orders (id int PRIMARY KEY)`)
		if _, err := Migrate(t.Context(), url, MigrateOptions{Capture: Capture{Source: "shop", Tables: []string{"public.orders"}, Pushed: true}}); err != nil {
			t.Fatal(err)
		}
		r := &rig{t: t, url: url, conn: conn, tables: []string{"public.orders"}, cfg: Config{Name: "shop", URL: url, BusID: "bus1", Tables: []string{"public.orders"}, Pushed: true}}
		r.pushing()
		pub := func(n int) string { return fmt.Sprintf(`SELECT onewrite.publish('event', 'k', '%d'::text);`, n) }
		sql(t, conn, `BEGIN;`+pub(0)+`INSERT INTO orders VALUES (1), (2);`+pub(1)+pub(2)+`COMMIT`, `BEGIN; INSERT INTO orders VALUES (3);`+pub(3)+`UPDATE orders SET id = 4 WHERE id = 3; COMMIT`,
			`BEGIN; INSERT INTO orders VALUES (5);`+pub(4)+`COMMIT`)
		var got []string
		for _, e := range r.events(11) {
			word := e.Type + " " + e.Key
			if e.Topic == "event" {
				word = string(e.Data)
				if e.Tx != (onewrite.Tx{}) {
					t.Errorf("event %s has the transaction %+v", e.Data, e.Tx)
				}
			} else if e.Tx.Last {
				word += " last"
			}
			got = append(got, word)
		}
		want := []string{"0", `insert {"id":1}`, `insert {"id":2} last`, "1", "2", `insert {"id":3}`, "3", `delete {"id":3}`, `insert {"id":4} last`, `insert {"id":5} last`, "4"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("came %q,\nwant %q", got, want)
		}
		// One that is larger than the bus takes at once, cut at each batch.
		sql(t, conn, `BEGIN; INSERT INTO orders VALUES (10); INSERT INTO onewrite.outbox (topic, key, payload) SELECT 'event', 'k', i FROM generate_series(100, 3599) i; COMMIT`)
		next := 100
		for rows := 0; next < 3600 || rows < 1; {
			b := r.read()
			for _, e := range b.Events {
				if e.Topic != "event" {
					rows++
					continue
				}
				if string(e.Data) != fmt.Sprint(next) {
					t.Fatalf("%s came, want %d", e.Data, next)
				}
				next++
			}
			if next < 3600 {
				r.open()
			}
		}
	})
}

// What a transaction adds is seen, and nothing else; a join sees what either saw.
func TestPassedTransactions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSnapshot(t, "s")
		o := drawSnapshot(t, "o")
		o = of(s.xmin+o.xmax-o.xmin, nil)
		seen := map[uint64]bool{}
		for range rapid.IntRange(1, 20).Draw(t, "n") {
			x := s.xmin + rapid.Uint64Range(0, 60).Draw(t, "x")
			seen[x] = true
			o = o.add(x)
		}
		base := s
		for x := range seen {
			s = s.add(x)
		}
		joined := base.join(o)
		for x := base.xmin - 1; x < base.xmin+80; x++ {
			if s.has(x) != (base.has(x) || seen[x]) {
				t.Fatalf("%s with %v: %s says %v of %d", base.text, seen, s.text, s.has(x), x)
			}
			if joined.has(x) != (base.has(x) || o.has(x)) {
				t.Fatalf("%s joined with %s: %s says %v of %d", base.text, o.text, joined.text, joined.has(x), x)
			}
		}
		for _, s := range []snapshot{s, joined} {
			if again, err := parseSnapshot(s.text); err != nil || again.xmax != s.xmax || again.array() != s.array() {
				t.Fatalf("%s is read as %+v, %v", s.text, again, err)
			}
		}
	})
}

// With outbox: ring the log may have the outbox all the same, until migrate takes it out
// of the publication: what the ring tells is not told again.
func TestFromTheLogBackToTheRing(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY)`, "public.a")
		if _, err := Migrate(t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables, Pushed: true}}); err != nil {
			t.Fatal(err)
		}
		r.cfg.Pushed = true
		r.pushing()
		sql(t, r.conn, `SELECT onewrite.publish('o', 'k', 'first'::text)`)
		if e := r.events(1)[0]; e.Topic != "o" {
			t.Fatalf("%s came", e.Topic)
		}
		r.whole() // or a snapshot reads what follows
		r.cfg.Pushed = false
		r.open()
		sql(t, r.conn, `BEGIN; INSERT INTO a VALUES (1); SELECT onewrite.publish('o', 'k', 'second'::text); INSERT INTO a VALUES (2); COMMIT`, `INSERT INTO a VALUES (3)`)
		events, rows, marked, asked := 0, 0, false, false
		for rows < 4 || !marked {
			for _, e := range r.read().Events {
				switch e.Topic {
				case "o":
					events++
				case "mark":
					marked = true
				default:
					if rows++; e.Tx.Last != (rows > 1) {
						t.Errorf("row %d: %+v", rows, e.Tx)
					}
				}
			}
			if rows == 3 && !asked {
				asked = true
				sql(t, r.conn, `SELECT onewrite.publish('mark', 'k', 'mark'::text)`, `INSERT INTO a VALUES (4)`)
			}
		}
		if events != 1 {
			t.Errorf("the event came %d times", events)
		}
	})
}

package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// newFromStandby is a database whose log is read from a standby of its server.
func newFromStandby(t *testing.T) *failover {
	t.Helper()
	o := &failover{primary: servers.NewPostgres(t, 18), standby: servers.NewPostgres(t, 18)}
	o.follower = newFollower(t, o.primary)
	o.moved = o.join(o.primary, o.standby, 1)
	o.redial()
	o.cfg.LogURL = o.moved
	return o
}

// The log comes from the standby, in whole, also when it or the primary was away.
func TestLogFromStandby(t *testing.T) {
	t.Parallel()
	o := newFromStandby(t)
	relay := o.primary.NewRole(t) // which may not say what transactions are open
	if _, err := Migrate(t.Context(), o.url, MigrateOptions{RelayRole: relay.Name, Capture: Capture{Source: "shop", Tables: o.tables, Snapshot: true}}); err != nil {
		t.Fatal(err)
	}
	sql(t, o.conn, `ALTER ROLE "`+relay.Name+`" REPLICATION`)
	o.cfg.URL, o.cfg.LogURL = relay.URL(o.url), relay.URL(o.moved)
	var said atomic.Pointer[string]
	o.cfg.Trouble = func(name, problem string) {
		if name == "log" {
			said.Store(&problem)
		}
	}
	o.begin()
	if n := one[int](t, o.conn, `SELECT count(*)::int FROM pg_replication_slots WHERE slot_type = 'logical'`); n != 0 {
		t.Errorf("the primary has %d logical slots", n)
	}
	if n := one[int](t, dial(t, o.moved), `SELECT count(*)::int FROM pg_replication_slots WHERE active AND NOT temporary AND slot_name = $1`, o.slot()); n != 1 {
		t.Errorf("%d slots on the standby are read", n)
	}
	examined := func(check string) (said string) {
		t.Helper()
		for _, f := range Examine(t.Context(), o.cfg.URL, MigrateOptions{Capture: Capture{Source: "shop", Tables: o.tables, LogURL: o.cfg.LogURL}}) {
			if f.Check == check && (check != "slot" || strings.Contains(f.Text, o.slot())) {
				said += fmt.Sprintf("%v: %s; %s", f.Severity, f.Text, f.Cure)
			}
		}
		return said
	}
	if said := examined("log_url"); !strings.Contains(said, "may not run pg_log_standby_snapshot()") {
		t.Errorf("the doctor says %q", said)
	}
	sql(t, o.conn, `GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO "`+relay.Name+`"`)
	if said := examined("log_url"); !strings.HasSuffix(said, "the log can be read from the standby; ") {
		t.Errorf("the doctor says %q", said)
	}
	if said := examined("slot"); !strings.Contains(said, "keeps") {
		t.Errorf("the doctor says of the slot %q", said)
	}
	for n, away := range []func(){
		func() { o.standby.Restart(t, false) },
		func() { o.standby.Restart(t, true) },
		func() { o.primary.Restart(t, true) },
	} {
		o.change(n + 1)
		away()
		o.fails("a server that is away")
		o.redial()
		o.change(n + 10)
		o.settle()
		o.equal()
	}
	// What is written while neither the standby nor a reader is there waits.
	o.close()
	o.standby.Stop(t)
	o.change(20)
	o.standby.Start(t)
	o.noGap()
	o.equal()
	// One that does not replay what it gets is told of.
	standby := dial(t, o.moved)
	sql(t, standby, `SELECT pg_wal_replay_pause()`)
	o.change(30)
	o.until("it is said that the standby is behind", func() bool { return strings.Contains(*said.Load(), "behind the server of url") })
	sql(t, standby, `SELECT pg_wal_replay_resume()`)
	o.settle()
	o.equal()
	o.until("it is said no more", func() bool { return *said.Load() == "" })
	for _, g := range o.gaps {
		// The server's own word: in the moment in which a standby that comes back has not said
		// yet what it needs, the primary may remove it.
		if !strings.Contains(g.Reason, "rows_removed") {
			t.Errorf("a gap: %v", g)
		}
	}
}

// A source moves to the standby, which is behind: the outbox is read meanwhile, and nothing
// is left on the primary.
func TestLogMovesToStandby(t *testing.T) {
	t.Parallel()
	o := newFromStandby(t)
	o.cfg.LogURL = ""
	o.begin()
	o.close()
	standby := dial(t, o.moved)
	sql(t, standby, `SELECT pg_wal_replay_pause()`)
	o.change(1)
	o.cfg.LogURL = o.moved
	var said atomic.Pointer[string]
	o.cfg.Trouble = func(name, problem string) {
		if name == "log" {
			said.Store(&problem)
		}
	}
	if err := o.try(); err != nil {
		t.Fatal(err)
	}
	o.state["mark"] = replica{}
	sql(t, o.conn, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('mark', '{}')`)
	o.until("an event of the outbox", func() bool { return o.kinds["mark mark"] > 0 })
	o.until("it is said why there are no row changes", func() bool {
		return strings.Contains(*said.Load(), "the standby of log_url has not replayed yet what")
	})
	if n := one[int](t, standby, `SELECT count(*)::int FROM pg_replication_slots WHERE slot_name LIKE '%'||$1`, standbySlot); n != 0 {
		t.Error("there is a slot already")
	}
	sql(t, standby, `SELECT pg_wal_replay_resume()`)
	o.heals("log_url was set, or taken out")
	if n := one[int](t, o.conn, `SELECT count(*)::int FROM pg_replication_slots WHERE slot_type = 'logical'`); n != 0 {
		t.Errorf("%d slots are left on the primary", n)
	}
}

// A snapshot of the primary's rows among the changes of the standby's log gives the table
// as it is, with the standby away in the middle.
func TestSnapshotFromStandby(t *testing.T) {
	t.Parallel()
	primary, standby := servers.NewPostgres(t, 18), servers.NewPostgres(t, 18)
	f := &follower{rig: newRig(t, primary, itemsDDL, "public.items")}
	f.cfg.LogURL = f.join(primary, standby, 1)
	f.redial()
	f.snapshotUnderLoad(func(n int) {
		if n == 3 || n == 6 {
			_ = f.src.Close()
			standby.Restart(t, n == 3)
		}
	})
}

// A standby that is promoted writes a history of its own: it is not read any more, and
// where to read is for a person to say.
func TestLogOfPromotedStandby(t *testing.T) {
	for _, took := range []bool{false, true} {
		t.Run(fmt.Sprint("takes over=", took), func(t *testing.T) {
			t.Parallel()
			o := newFromStandby(t)
			o.begin()
			o.change(1)
			o.settle()
			if took {
				o.primary.Crash(t)
				o.close()
			}
			other := dial(t, o.moved)
			if !one[bool](t, other, `SELECT pg_promote()`) {
				t.Fatal("the standby is not promoted")
			}
			if took {
				o.url, o.cfg.URL = o.moved, o.moved
				o.redial()
			} else {
				o.fails("a promotion")
			}
			for range 2 {
				_, err := OpenSource(t.Context(), o.cfg, o.pos)
				if err == nil || !strings.Contains(err.Error(), "is no standby, perhaps it was promoted") || !strings.Contains(err.Error(), "; name a standby") {
					t.Fatalf("the promoted one: %v", err)
				}
			}
			if !took {
				sql(t, other, `INSERT INTO a VALUES (777777, 1)`)
			}
			o.change(2)
			o.cfg.LogURL = "" // as the cure says
			o.cfg.HoldGap = true
			o.held("log_url was set, or taken out")
			o.cfg.HoldGap = false
			o.heals("log_url was set, or taken out", o.lingering()...)
			if o.state["public.a"][`{"id":777777}`] != nil {
				t.Error("a row of the other history came")
			}
			if n := one[int](t, o.conn, `SELECT count(*)::int FROM pg_replication_slots WHERE slot_type = 'logical'`); n != 1 {
				t.Errorf("the server has %d logical slots", n)
			}
			if took {
				o.back()
			}
		})
	}
}

// back makes the server that was the primary a standby of the one that took over, and
// reads the log from there.
func (o *failover) back() {
	o.t.Helper()
	o.close()
	o.primary.Start(o.t)
	o.cfg.LogURL = o.join(o.standby, o.primary, 1)
	o.redial()
	o.cfg.HoldGap = false
	history := filepath.Join(one[string](o.t, o.conn, `SHOW data_directory`), "pg_wal", "00000002.history")
	text, err := os.ReadFile(history)
	if err != nil {
		o.t.Fatal(err)
	}
	for _, other := range []bool{true, false} { // as if another had been promoted as well
		if err := os.WriteFile(history, append(text, strings.Repeat("#\n", map[bool]int{true: 1}[other])...), 0o600); err != nil {
			o.t.Fatal(err)
		}
		if !other {
			continue
		}
		if _, err := OpenSource(o.t.Context(), o.cfg, o.pos); err == nil || !strings.Contains(err.Error(), "it follows another primary") {
			o.t.Errorf("a standby of another: %v", err)
		}
	}
	o.heals("log_url was set, or taken out", o.lingering()...)
	o.close()
	o.primary.Stop(o.t) // its databases cannot be dropped
}

// What the primary removes although the standby's log needs it costs the slot, as does a
// primary that logs too little.
func TestSlotOfStandbyInvalidated(t *testing.T) {
	t.Parallel()
	o := newFromStandby(t)
	o.begin()
	o.close()
	standby := dial(t, o.moved)
	sql(t, standby, `ALTER SYSTEM SET hot_standby_feedback = off`, `SELECT pg_reload_conf()`)
	eventually(t, "the primary removes rows of the catalog that the slot needs", func() bool {
		sql(t, o.conn, `CREATE TABLE gone (n int)`, `DROP TABLE gone`, `VACUUM pg_class`, `UPDATE b SET n = n + 1 WHERE id = 1`)
		return one[bool](t, standby, `SELECT invalidation_reason IS NOT NULL FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary`)
	})
	if _, err := OpenSource(t.Context(), o.cfg, o.pos); err == nil || !strings.Contains(err.Error(), "hot_standby_feedback = off") {
		t.Fatalf("no feedback: %v", err)
	}
	sql(t, standby, `ALTER SYSTEM SET hot_standby_feedback = on`, `SELECT pg_reload_conf()`)
	eventually(t, "the standby says what it needs", func() bool { return one[bool](t, standby, `SELECT current_setting('hot_standby_feedback')::bool`) })
	o.cfg.HoldGap = true
	o.held("rows_removed")
	o.cfg.HoldGap = false
	o.heals("rows_removed", o.lingering()...)
	o.close()
	o.tables = nil
	drop := "SELECT pg_drop_replication_slot('" + o.slot() + "')"
	if applied := o.migrate(); !strings.Contains(strings.Join(applied, "\n"), "is on the standby of log_url; run there: "+drop) {
		t.Errorf("what became of the slot is not said: %q", applied)
	}
	eventually(t, "the slot is dropped", func() bool { _, err := standby.Exec(t.Context(), drop); return err == nil })
}

// What cannot be read from is refused with its cure, by the source and by the doctor.
func TestLogURLRefused(t *testing.T) {
	for version, says := range map[int]string{15: "from 16 on; take log_url out", 18: "is no standby"} {
		r := newRig(t, servers.Postgres(t, version), `CREATE TABLE a (id int PRIMARY KEY)`, "public.a")
		r.cfg.LogURL = r.url
		if _, err := OpenSource(t.Context(), r.cfg, ""); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("postgres=%d: %v", version, err)
		}
		o := MigrateOptions{Capture: Capture{Source: "shop", Tables: []string{"public.a"}, LogURL: r.url}}
		said := ""
		for _, f := range Examine(t.Context(), r.url, o) {
			if f.Check == "log_url" && f.Severity == diagnosis.Problem {
				said += f.Text + "; " + f.Cure
			}
		}
		if !strings.Contains(said, says) {
			t.Errorf("postgres=%d: the doctor says %q", version, said)
		}
	}
}

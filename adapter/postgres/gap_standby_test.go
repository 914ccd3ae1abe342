package postgres

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// failover is a primary that is read and a standby that follows it.
type failover struct {
	*follower
	primary, standby *servers.PG
	data             string // of the standby
	moved            string // the database's url there
	options          []servers.Option
}

func newFailover(t *testing.T, version int) *failover {
	t.Helper()
	o := &failover{primary: servers.NewPostgres(t, version), standby: servers.NewPostgres(t, version)}
	o.follower = newFollower(t, o.primary)
	sql(t, o.conn, `SELECT pg_create_physical_replication_slot('standby', true)`)
	from := one[string](t, o.conn, `SHOW data_directory`)
	o.data = one[string](t, dial(t, o.standby.URL("")), `SHOW data_directory`)
	o.begin()
	o.close()
	o.standby.Stop(t)
	o.primary.Stop(t)
	if err := os.RemoveAll(o.data); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, o.data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	slots, err := filepath.Glob(filepath.Join(o.data, "pg_replslot", "*")) // a base backup has none
	if err != nil || len(slots) < 2 {
		t.Fatalf("slots of the primary: %v %v", slots, err)
	}
	for _, s := range slots {
		if err := os.RemoveAll(s); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"standby.signal": "", "pg_hba.conf": "host all all 127.0.0.1/32 trust\n"} {
		if err := os.WriteFile(filepath.Join(o.data, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o.primary.Start(t)
	u, err := url.Parse(o.url)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	conninfo := fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=postgres", u.Hostname(), u.Port(), u.User.Username(), password)
	o.options = []servers.Option{servers.Set("primary_conninfo", conninfo), servers.Set("primary_slot_name", "standby"), servers.Set("hot_standby_feedback", "on")}
	if version >= 17 {
		o.options = append(o.options, servers.Set("sync_replication_slots", "on"))
	}
	o.standby.Start(t, o.options...)
	u.Host = o.standby.Addr()
	o.moved = u.String()
	o.redial()
	return o
}

// follows waits until the standby has what the primary has; slots says whether it keeps
// a copy of the slot.
func (o *failover) follows(slots bool) {
	o.t.Helper()
	conn := dial(o.t, o.moved)
	if slots {
		o.until("the standby has the slot", func() bool {
			sql(o.t, o.conn, `UPDATE b SET n = n + 1 WHERE id = 1`, `SELECT pg_log_standby_snapshot()`) // lets the slot move
			return one[bool](o.t, conn, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'logical' AND synced AND NOT temporary AND invalidation_reason IS NULL)`)
		})
	}
	at := one[string](o.t, o.conn, `SELECT pg_current_wal_flush_lsn()::text`)
	eventually(o.t, "the standby has all", func() bool {
		return one[bool](o.t, conn, `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, at)
	})
}

// promote makes the standby the primary, which is gone.
func (o *failover) promote() {
	o.t.Helper()
	o.url, o.cfg.URL = o.moved, o.moved
	conn := dial(o.t, o.moved)
	if !one[bool](o.t, conn, `SELECT pg_promote()`) {
		o.t.Fatal("the standby is not promoted")
	}
	o.redial()
}

// A standby takes over that has all. With a copy of the slot reading goes on as if
// nothing had been; without it, before 17, that is a gap.
func TestPromotedStandby(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint("postgres=", version), func(t *testing.T) {
			t.Parallel()
			o := newFailover(t, version)
			o.follows(version >= 17)
			o.change(1)
			o.settle()
			o.close()
			o.change(2) // which nobody has read
			sql(t, o.conn, `DELETE FROM a WHERE id = 30`)
			o.follows(false)
			o.primary.Crash(t)
			o.promote()
			o.change(3)
			if version < 17 {
				o.cfg.HoldGap = true
				o.held("is gone: it was dropped, or this server was promoted without it")
				o.cfg.HoldGap = false
				o.heals("is gone", `{"id":30}`)
				return
			}
			n := len(o.ids)
			o.noGap()
			o.equal()
			if len(o.gaps) > 0 || o.again > 0 || len(o.ids) < n+40 {
				t.Errorf("%d events, %d again, gaps %v", len(o.ids)-n, o.again, o.gaps)
			}
		})
	}
}

// A standby takes over that lacks what was read last.
func TestPromotedStandbyThatLacksCommits(t *testing.T) {
	o := newFailover(t, 18)
	o.follows(true)
	o.change(1)
	o.settle()
	o.follows(false)
	o.standby.Stop(t)
	sql(t, o.conn, `INSERT INTO a SELECT i, 5 FROM generate_series(20001, 20400) i`)
	o.settle()
	o.close()
	o.primary.Crash(t)
	o.standby.Start(t)
	o.promote()
	sql(t, o.conn, `INSERT INTO a SELECT i, 6 FROM generate_series(30001, 31000) i`, `INSERT INTO other (pad) SELECT repeat('x', 1000) FROM generate_series(1, 3000)`)
	p, _, err := splitPlaces(o.pos)
	if err != nil || !one[bool](t, o.conn, `SELECT pg_current_wal_flush_lsn() > $1::text::pg_lsn`, p.done.String()) {
		t.Fatalf("the log is not beyond the place: %v", err)
	}
	o.cfg.HoldGap = true
	o.held("a failover lost commits")
	o.cfg.HoldGap = false
	lingering := o.lingering()
	if len(lingering) < 400 {
		t.Fatalf("%d rows are lost; nothing is proven", len(lingering))
	}
	o.heals("a failover lost commits", lingering...)
}

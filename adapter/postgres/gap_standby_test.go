package postgres

import (
	"errors"
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
	moved            string // the database's url there
}

func newFailover(t *testing.T, version int) *failover {
	t.Helper()
	o := &failover{primary: servers.NewPostgres(t, version), standby: servers.NewPostgres(t, version)}
	o.follower = newFollower(t, o.primary)
	o.begin()
	o.close()
	o.moved = o.join(o.primary, o.standby, 2)
	o.redial()
	return o
}

// join makes a server a standby of that of the rig, which is started again, and returns
// the database's url there. slots is how many the primary has then, at least.
func (r *rig) join(primary, standby *servers.PG, slots int) (moved string) {
	t := r.t
	t.Helper()
	sql(t, r.conn, `SELECT pg_create_physical_replication_slot('standby', true)`)
	from := one[string](t, r.conn, `SHOW data_directory`)
	data := one[string](t, dial(t, standby.URL("")), `SHOW data_directory`)
	standby.Stop(t)
	primary.Stop(t)
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	there, err := filepath.Glob(filepath.Join(data, "pg_replslot", "*")) // a base backup has none
	if err != nil || len(there) < slots {
		t.Fatalf("slots of the primary: %v %v", there, err)
	}
	for _, s := range there {
		if err := os.RemoveAll(s); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"standby.signal": "", "pg_hba.conf": "host all,replication all 127.0.0.1/32 trust\n"} {
		if err := os.WriteFile(filepath.Join(data, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	primary.Start(t)
	u, err := url.Parse(r.url)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	conninfo := fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=postgres", u.Hostname(), u.Port(), u.User.Username(), password)
	options := []servers.Option{servers.Set("primary_conninfo", conninfo), servers.Set("primary_slot_name", "standby"), servers.Set("wal_retrieve_retry_interval", "100ms")}
	if primary.Version >= 17 {
		options = append(options, servers.Set("sync_replication_slots", "on"))
	}
	settings, err := os.OpenFile(filepath.Join(data, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = settings.WriteString("hot_standby_feedback = on\n") // which tests turn off
	}
	if err != nil {
		t.Fatal(errors.Join(err, settings.Close()))
	}
	_ = settings.Close()
	standby.Start(t, options...)
	u.Host = standby.Addr()
	return u.String()
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

// lost has the standby take over, which lacks at least n rows that were read: that is a
// gap, although its log is beyond the place again.
func (o *failover) lost(n int) {
	o.t.Helper()
	o.close()
	o.primary.Crash(o.t)
	o.standby.Start(o.t)
	o.promote()
	sql(o.t, o.conn, `INSERT INTO a SELECT i, 6 FROM generate_series(30001, 31000) i`, `INSERT INTO other (pad) SELECT repeat('x', 1000) FROM generate_series(1, 3000)`)
	p, _, err := splitPlaces(o.pos)
	if err != nil || !one[bool](o.t, o.conn, `SELECT pg_current_wal_flush_lsn() > $1::text::pg_lsn`, max(p.done, p.tx).String()) {
		o.t.Fatalf("the log is not beyond the place: %v", err)
	}
	o.cfg.HoldGap = true
	o.held("a failover lost commits")
	o.cfg.HoldGap = false
	lingering := o.lingering()
	if len(lingering) < n {
		o.t.Fatalf("%d rows are lost; nothing is proven", len(lingering))
	}
	o.heals("a failover lost commits", lingering...)
}

// A standby takes over that has all. With a copy of the slot reading goes on as if
// nothing had been; without it, before 17, that is a gap.
func TestPromotedStandby(t *testing.T) {
	for _, version := range servers.Versions() {
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
	o.lost(400)
}

package postgres

import (
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// What a database limits for its applications is no limit for a snapshot in one
// transaction, nor for sessions that wait for events.
func TestTimeoutsOfTheDatabase(t *testing.T) {
	t.Parallel()
	r := newRig(t, servers.Postgres(t, 18), `CREATE TABLE lane (n int, pad text); ALTER TABLE lane ALTER pad SET STORAGE EXTERNAL; INSERT INTO lane SELECT i, repeat('x', 20000) FROM generate_series(1, 2000) i; CREATE TABLE a (id int PRIMARY KEY)`, "public.lane", "public.a")
	sql(t, r.conn, `DO $$ BEGIN
		EXECUTE format('ALTER DATABASE %I SET transaction_timeout = ''1s''', current_database());
		EXECUTE format('ALTER DATABASE %I SET idle_session_timeout = ''1s''', current_database()); END $$`)
	r.open()
	kinds := map[string]int{}
	read := func() {
		for _, e := range r.read().Events {
			if e.Topic == "public.lane" {
				kinds[e.Type]++
			}
		}
	}
	for kinds["snapshot"] == 0 {
		read()
	}
	lasts := func(what, session, since string) {
		eventually(t, what, func() bool {
			return one[bool](t, r.conn, `SELECT coalesce(max(clock_timestamp() - `+since+`) > '2s', false) FROM pg_stat_activity WHERE datname = current_database() AND `+session)
		})
	}
	lasts("a transaction lasts longer than those of applications may", "application_name = 'onewrite snapshot'", "xact_start")
	for !one[bool](t, r.conn, `SELECT bool_and(finished = wanted) FROM onewrite.captured`) {
		sql(t, r.conn, `INSERT INTO a SELECT coalesce(max(id), 0) + 1 FROM a`) // so that there is something to read
		read()
	}
	if kinds["snapshot"] != 2000 || kinds["truncate"] > 0 {
		t.Errorf("the snapshot of 2,000 rows was told as %v", kinds)
	}
	lasts("a session is idle for longer than those of applications may be", "application_name = 'onewrite log' AND state = 'idle'", "state_change")
	sql(t, r.conn, `INSERT INTO a VALUES (-1)`)
	for last := ""; last != `{"id":-1}`; {
		events := r.read().Events
		last = events[len(events)-1].Key
	}
}

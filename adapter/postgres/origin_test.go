package postgres

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// peer is a session that writes as a subscription does: what it commits came from
// another database.
func (r *rig) peer() (conn *pgx.Conn, name string) {
	r.t.Helper()
	name = "of " + one[string](r.t, r.conn, `SELECT current_database()`) // origins are the cluster's
	conn = dial(r.t, r.url)
	sql(r.t, conn, `SELECT pg_replication_origin_create('`+name+`')`, `SELECT pg_replication_origin_session_setup('`+name+`')`)
	r.t.Cleanup(func() {
		_, _ = conn.Exec(r.t.Context(), `SELECT pg_replication_origin_session_reset()`)
		_, _ = conn.Exec(r.t.Context(), `SELECT pg_replication_origin_drop('`+name+`')`)
	})
	return conn, name
}

func originOf(t *testing.T, e onewrite.Event) string {
	t.Helper()
	var env struct{ Source struct{ Origin *string } }
	if err := json.Unmarshal(e.Data, &env); err != nil {
		t.Fatalf("%v: %s", err, e.Data)
	}
	if env.Source.Origin == nil {
		return "none"
	}
	return *env.Source.Origin
}

// An event says where its change was replicated from; on demand such changes are no
// events, whatever they are, and the places go on.
func TestOrigins(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE lane (n int)`, "public.a", "public.lane")
		peer, name := r.peer()
		r.open()
		r.whole()
		sql(t, r.conn, `INSERT INTO a VALUES (1, 1)`)
		sql(t, peer, `INSERT INTO a VALUES (2, 1)`, `UPDATE a SET id = 3 WHERE id = 2`)
		for i, e := range r.events(4) {
			if want := []string{"none", name, name, name}[i]; originOf(t, e) != want {
				t.Errorf("event %d: the origin is %s, want %s", i, originOf(t, e), want)
			}
		}
		sql(t, peer, `INSERT INTO lane VALUES (1)`)
		r.events(1) // the place is the end of a transaction that is not asked for any more
		r.cfg.LocalOnly = true
		sql(t, peer, `INSERT INTO a VALUES (4, 1)`)
		r.open()
		if b := r.src.(*Both); b.gap != nil {
			t.Fatal(b.gap)
		}
		sql(t, peer, `INSERT INTO a VALUES (5, 1)`, `UPDATE a SET id = 6 WHERE id = 5`, `DELETE FROM a WHERE id = 4`, `INSERT INTO lane VALUES (2)`, `BEGIN; TRUNCATE lane; SAVEPOINT s; TRUNCATE a; COMMIT`)
		sql(t, r.conn, `INSERT INTO a VALUES (7, 1)`, `INSERT INTO lane VALUES (3)`)
		r.expect(`a insert {"id":7} null {"id":7,"n":1}`, `lane insert lane null {"n":3}`)

		// A slot under which nothing is written but what is left out moves on.
		at, _, err := splitPlaces(r.pos)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the slot moves beyond what is left out", func() bool {
			sql(t, peer, `INSERT INTO lane SELECT i FROM generate_series(1, 20000) i`)
			return one[bool](t, r.conn, `SELECT confirmed_flush_lsn > $1::text::pg_lsn FROM pg_replication_slots JOIN onewrite.log ON slot_name = slot`, at.done.String())
		})
		r.open()
		if b := r.src.(*Both); b.gap != nil {
			t.Fatal(b.gap)
		}
		_ = r.src.Close()
		sql(t, peer, `INSERT INTO a VALUES (9, 1)`, `SELECT pg_replication_origin_session_reset()`, `SELECT pg_replication_origin_drop('`+name+`')`, `VACUUM pg_replication_origin`)
		sql(t, r.conn, `INSERT INTO a VALUES (8, 1)`)
		r.open()
		r.expect(`a insert {"id":8} null {"id":8,"n":1}`)
	})
}

// A snapshot under way is not held up by changes that are left out, nor does it come
// before what is newer.
func TestSnapshotAmongOrigins(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a SELECT i, 0 FROM generate_series(1, 400) i`, "public.a")
		peer, _ := r.peer()
		r.cfg.LocalOnly, r.cfg.chunk = true, 20
		r.open()
		state := replica{}
		for i := 0; !one[bool](t, r.conn, `SELECT bool_and(finished = wanted) FROM onewrite.captured`); i++ {
			sql(t, peer, fmt.Sprintf(`UPDATE a SET n = n + 1000000 WHERE id = %d`, i%400+1))
			sql(t, r.conn, fmt.Sprintf(`UPDATE a SET n = n + 1 WHERE id = %d`, (i*7)%400+1))
			for _, e := range r.read().Events {
				state.apply(t, e)
			}
		}
		sql(t, r.conn, `UPDATE a SET n = n + 1`)
		for seen := 0; seen < 400; {
			for _, e := range r.read().Events {
				state.apply(t, e)
				if e.Type == "update" && e.Tx.Index >= seen {
					seen = e.Tx.Index + 1
				}
			}
		}
		for key, n := range tableAsJSON(t, r.conn, `SELECT '{"id":' || id || '}', n::text FROM a`) {
			if string(state[key]["n"]) != n {
				t.Errorf("%s: n is %s, want %s", key, state[key]["n"], n)
			}
		}
	})
}

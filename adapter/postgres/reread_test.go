package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/servers"
)

// rereadRig reads a table with rows whose values are stored apart; o is of parents.
func rereadRig(t *testing.T, pg *servers.PG) (r *rig, big string) {
	t.Helper()
	r = newRig(t, pg, large+`CREATE TABLE t (id int PRIMARY KEY, big text, v text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL; CREATE TABLE o () INHERITS (t);
		INSERT INTO t SELECT i, large(5000, 'a'), 'v' FROM generate_series(1, 4) i`, "public.t")
	r.open()
	r.events(4)
	r.whole()
	return r, one[string](t, r.conn, `SELECT large(5000, 'a')`)
}

// Rows of tables that inherit are others, also under the same key.
func TestRereadOfAParent(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r, big := rereadRig(t, pg)
		sql(t, r.conn, `INSERT INTO o VALUES (11, large(5000, 'b'), 'o'), (12, large(5000, 'b'), 'o')`, `UPDATE ONLY t SET id = 11 WHERE id = 1`, `BEGIN; UPDATE ONLY t SET id = 12 WHERE id = 2; DELETE FROM ONLY t WHERE id = 12; COMMIT`)
		r.expect(`t delete {"id":1} {"id":1} null`, `t insert {"id":11} null {"id":11,"big":"`+big+`","v":"v"}`,
			`t delete {"id":2} {"id":2} null`, `t insert {"id":12} null {"id":12,"v":"v"} ["big"]`, `t delete {"id":12} {"id":12} null`)
	})
}

// A value is read by the name that its column has now, and told by the one that it had.
func TestRereadAfterRename(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r, big := rereadRig(t, pg)
		_ = r.src.Close()
		sql(t, r.conn, `ALTER TABLE t ALTER id TYPE bigint`, `BEGIN; UPDATE t SET id = 11 WHERE id = 1; UPDATE t SET id = 12 WHERE id = 2; COMMIT`, `ALTER TABLE t RENAME big TO body`, `ALTER TABLE t RENAME v TO big`, `ALTER TABLE t RENAME id TO k`,
			`UPDATE t SET k = 13 WHERE k = 3`, `ALTER TABLE t RENAME TO t2`)
		r.tables = []string{"public.t2"}
		r.migrate()
		r.open()
		r.expect(`t delete {"id":1} {"id":1} null`, `t insert {"id":11} null {"id":11,"big":"`+big+`","v":"v"}`, `t delete {"id":2} {"id":2} null`, `t insert {"id":12} null {"id":12,"big":"`+big+`","v":"v"}`,
			`t delete {"k":3} {"k":3} null`, `t insert {"k":13} null {"k":13,"body":"`+big+`","big":"v"}`)
		_ = r.src.Close()
		sql(t, r.conn, `UPDATE t2 SET k = 14 WHERE k = 4`, `ALTER TABLE t2 DROP body`) // and one that is gone stays absent
		r.open()
		r.expect(`t2 delete {"k":4} {"k":4} null`, `t2 insert {"k":14} null {"k":14,"big":"v"} ["body"]`)
	})
}

// A table that is altered after it was looked up, in the middle of a transaction, is
// looked up again.
func TestRereadOfAnAlteredTable(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r, big := rereadRig(t, pg)
		_ = r.src.Close()
		log := &logReader{cat: catalog{conn: r.conn}, tx: transaction{xid: 7}, visible: 7}
		log.alive, log.stop = context.WithCancel(t.Context())
		rel := one[uint32](t, r.conn, `SELECT 't'::regclass::oid`)
		tab := newTable(rel, "db", "public", "t", []tableColumn{{name: "id"}, {name: "big"}, {name: "v"}}, []string{"id"})
		tab.nums = []int{1, 2, 3}
		for _, ddl := range []string{``, `ALTER TABLE t RENAME big TO x`, `ALTER TABLE t RENAME v TO big`, `ALTER TABLE t RENAME TO t2; CREATE TABLE t (id int, big text, x text); INSERT INTO t VALUES (1, 'other', 'other')`} {
			sql(t, r.conn, ddl)
			row := pgoutput.Tuple{{Kind: pgoutput.ColumnText, Data: []byte("1")}, {Kind: pgoutput.ColumnUnchanged}, {Kind: pgoutput.ColumnText, Data: []byte("v")}}
			if found, err := log.reread(tab, row); err != nil || !found || string(row[1].Data) != big {
				t.Errorf("after %q: %v %v %.40s", ddl, found, err, row[1].Data)
			}
		}
	})
}

// What fails is no row that is gone: the source ends, and reads the row when it is opened
// again.
func TestRereadThatFails(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r, big := rereadRig(t, pg)
		_ = r.src.Close()
		sql(t, r.conn, `UPDATE t SET id = 11 WHERE id = 1`)
		other := dial(t, r.url)
		sql(t, other, `BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE`)
		r.open()
		eventually(t, "the reading waits for the lock, and is cancelled", func() bool {
			return one[bool](t, r.conn, `SELECT coalesce(bool_or(pg_cancel_backend(pid)), false) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'onewrite log' AND wait_event_type = 'Lock'`)
		})
		if err := r.failure(); !strings.Contains(err.Error(), "a row of public.t cannot be read") {
			t.Fatal(err)
		}
		sql(t, other, `COMMIT`)
		r.open()
		r.expect(`t delete {"id":1} {"id":1} null`, `t insert {"id":11} null {"id":11,"big":"`+big+`","v":"v"}`)
	})
}

// A transaction that nobody sees yet is waited for; if that is long the source says so,
// and does not tell the row without its value.
func TestRereadBeforeVisible(t *testing.T) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprintf("postgres=%d", version), func(t *testing.T) {
			t.Parallel()
			pg := servers.NewPostgres(t, version, servers.Set("max_connections", "60"))
			r, big := rereadRig(t, pg)
			setting := func(v string) {
				sql(t, r.conn, `SET synchronous_commit = local`, `ALTER SYSTEM SET synchronous_standby_names = '`+v+`'`, `SELECT pg_reload_conf()`)
			}
			setting("nobody")
			writer, done := dial(t, r.url), make(chan error, 1)
			eventually(t, "the setting holds", func() bool {
				return one[string](t, writer, `SELECT current_setting('synchronous_standby_names')`) == "nobody"
			})
			go func() {
				_, err := writer.Exec(context.Background(), `UPDATE t SET id = 11 WHERE id = 1`)
				done <- err
			}()
			eventually(t, "it waits for a standby", func() bool {
				return one[bool](t, r.conn, `SELECT coalesce(wait_event = 'SyncRep', false) FROM pg_stat_activity WHERE pid = $1`, writer.PgConn().PID())
			})
			if err := r.failure(); !strings.Contains(err.Error(), "other sessions do not see yet") {
				t.Fatal(err)
			}
			setting("")
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			r.open()
			r.expect(`t delete {"id":1} {"id":1} null`, `t insert {"id":11} null {"id":11,"big":"`+big+`","v":"v"}`)
		})
	}
}

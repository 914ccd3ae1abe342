package pgoutput

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/servers"
)

// variant is one way to ask a server for the scenario.
type variant struct {
	name     string
	proto    int
	since    int    // the first PostgreSQL that has it
	stream   string // option streaming, "" for none
	twoPhase bool
	binary   bool
}

var variants = []variant{
	{name: "proto 1", proto: 1, since: 15},
	{name: "proto 1, binary", proto: 1, since: 15, binary: true},
	{name: "proto 2, streaming on", proto: 2, since: 15, stream: "on"},
	{name: "proto 3, two-phase", proto: 3, since: 15, twoPhase: true},
	{name: "proto 3, streaming on, two-phase", proto: 3, since: 15, stream: "on", twoPhase: true},
	{name: "proto 4, streaming on", proto: 4, since: 16, stream: "on"},
	{name: "proto 4, streaming parallel, two-phase", proto: 4, since: 16, stream: "parallel", twoPhase: true},
}

// schema is what the scenario writes to. Ballast is not published: it makes
// transactions large enough to be streamed and sends nothing.
var schema = []string{
	`CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')`,
	`CREATE DOMAIN label AS text`,
	`CREATE TABLE orders (id bigint PRIMARY KEY, note text, amount numeric(12,2), mood mood, tags text[], label label, big text)`,
	`ALTER TABLE orders ALTER big SET STORAGE EXTERNAL`,
	`CREATE TABLE whole (id int PRIMARY KEY, a text, big text)`,
	`ALTER TABLE whole ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL`,
	`CREATE TABLE by_index (a int, b text NOT NULL, c text)`,
	`CREATE UNIQUE INDEX by_index_b ON by_index (b)`,
	`ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_b`,
	`CREATE SCHEMA "odd schema"`,
	`CREATE TABLE "odd schema"."no ""key""" (a int)`,
	`ALTER TABLE "odd schema"."no ""key""" REPLICA IDENTITY NOTHING`,
	`CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)`,
	`CREATE TABLE child (parent int REFERENCES parent)`,
	`CREATE TABLE doubled (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)`,
	`CREATE TABLE ballast (pad text)`,
}

const published = `orders, whole, by_index, "odd schema"."no ""key""", parent, child, doubled`

// step is a statement over one of two connections. What is rolled back is first
// waited for: a server that decodes late may leave it out, or a part of it.
type step struct {
	conn     int
	sql      string
	streamed string // wait until the block with this row's first column has ended, if the variant streams
	prepared string // wait for the prepare of this name, if the variant has it
}

// heavy makes a transaction larger than logical_decoding_work_mem.
const heavy = `INSERT INTO ballast SELECT repeat('x', 1000) FROM generate_series(1, 70)`

// scenario has all that the protocol can tell. Its outcome is committed.
var scenario = []step{
	{sql: `INSERT INTO orders VALUES (1, 'first', 1.50, 'ok', '{a,b}', 'l', repeat('x', 2100)), (2, '', NULL, NULL, NULL, NULL, NULL)`},
	{sql: `UPDATE orders SET note = 'second' WHERE id = 1`},
	{sql: `UPDATE orders SET id = 3 WHERE id = 1`},
	{sql: `DELETE FROM orders WHERE id = 3`},

	{sql: `INSERT INTO whole VALUES (1, 'a', NULL), (2, 'b', repeat('y', 2100))`},
	{sql: `UPDATE whole SET a = NULL WHERE id = 2`},
	{sql: `DELETE FROM whole WHERE id = 1`},

	{sql: `INSERT INTO by_index VALUES (1, 'k', 'c')`},
	{sql: `UPDATE by_index SET c = 'd'`},
	{sql: `UPDATE by_index SET b = 'l'`},
	{sql: `DELETE FROM by_index`},

	{sql: `INSERT INTO "odd schema"."no ""key""" VALUES (NULL), (-7)`},
	{sql: `INSERT INTO doubled VALUES (21)`},

	{sql: `WITH p AS (INSERT INTO parent DEFAULT VALUES RETURNING id) INSERT INTO child SELECT id FROM p`},
	{sql: `TRUNCATE parent RESTART IDENTITY CASCADE`},
	{sql: `TRUNCATE doubled RESTART IDENTITY`},

	{sql: `SELECT pg_logical_emit_message(true, 'prefix', 'alone')`},
	{sql: `BEGIN`},
	{sql: `SELECT pg_logical_emit_message(false, 'stays', ''), pg_logical_emit_message(true, 'goes', 'x')`},
	{sql: `INSERT INTO doubled VALUES (1)`},
	{sql: `ROLLBACK`},

	{sql: `SELECT pg_replication_origin_session_setup('far away')`},
	{sql: `BEGIN`},
	{sql: `SELECT pg_replication_origin_xact_setup('12/AB', '2020-02-29 12:34:56.789012+00')`},
	{sql: `INSERT INTO doubled VALUES (2)`},
	{sql: `COMMIT`},
	{sql: `SELECT pg_replication_origin_session_reset()`},

	{sql: `ALTER TABLE orders ADD later int DEFAULT 7`},
	{sql: `BEGIN`},
	{sql: `INSERT INTO orders (id) VALUES (10)`},
	{sql: `SAVEPOINT s`},
	{sql: `INSERT INTO orders (id) VALUES (11)`},
	{sql: `SELECT pg_logical_emit_message(true, 'lost', 'in a savepoint')`},
	{sql: `ROLLBACK TO s`},
	{sql: `INSERT INTO orders (id) VALUES (12)`},
	{sql: `COMMIT`},

	// Streamed, with a savepoint in a savepoint rolled back, one that stays, and
	// another transaction that commits in between.
	{sql: `BEGIN`},
	{sql: `INSERT INTO orders (id) VALUES (100)`},
	{sql: heavy, streamed: "100"},
	{conn: 1, sql: `INSERT INTO doubled VALUES (3)`},
	{sql: `SAVEPOINT s`},
	{sql: `SELECT pg_logical_emit_message(true, 'first in a savepoint', 'streamed')`},
	{sql: `INSERT INTO orders (id) VALUES (101)`},
	{sql: `SELECT pg_logical_emit_message(true, 'lost', 'streamed')`},
	{sql: `SAVEPOINT t`},
	{sql: `DELETE FROM orders WHERE id = 10`},
	{sql: `TRUNCATE parent, child`},
	{sql: heavy, streamed: "10"},
	{sql: `ROLLBACK TO s`},
	{sql: `UPDATE orders SET id = 104, note = 'moved' WHERE id = 12`},
	{sql: `SAVEPOINT u`},
	{sql: `INSERT INTO orders (id) VALUES (102)`},
	{sql: `SELECT pg_logical_emit_message(true, 'kept', 'streamed')`},
	{sql: `COMMIT`},

	// Streamed and rolled back, with a column that nobody ever saw.
	{sql: `BEGIN`},
	{sql: `ALTER TABLE orders ADD ghost text`},
	{sql: `INSERT INTO orders (id, ghost) VALUES (200, 'boo')`},
	{sql: heavy, streamed: "200"},
	{sql: `ROLLBACK`},
	{sql: `INSERT INTO orders (id) VALUES (201)`},

	{sql: `BEGIN`},
	{sql: `INSERT INTO orders (id) VALUES (300)`},
	{sql: `PREPARE TRANSACTION 'small, kept'`},
	{sql: `BEGIN`},
	{sql: `INSERT INTO orders (id) VALUES (301)`},
	{sql: `PREPARE TRANSACTION 'small, lost'`, prepared: "small, lost"},
	{sql: `INSERT INTO orders (id) VALUES (302)`},
	{sql: `ROLLBACK PREPARED 'small, lost'`},
	{sql: `COMMIT PREPARED 'small, kept'`},

	{sql: `BEGIN`},
	{sql: `INSERT INTO orders (id) VALUES (400)`},
	{sql: heavy, streamed: "400"},
	{sql: `PREPARE TRANSACTION 'large, kept'`},
	{sql: `COMMIT PREPARED 'large, kept'`},
	{sql: `BEGIN`},
	{sql: `INSERT INTO orders (id) VALUES (401)`},
	{sql: heavy, streamed: "401"},
	{sql: `PREPARE TRANSACTION 'large, lost'`, prepared: "large, lost"},
	{sql: `ROLLBACK PREPARED 'large, lost'`},

	{sql: `SELECT pg_replication_origin_session_setup('far away')`},
	{sql: `BEGIN`},
	{sql: `INSERT INTO doubled VALUES (4)`},
	{sql: heavy},
	{sql: `COMMIT`},
	{sql: `SELECT pg_replication_origin_session_reset()`},

	{sql: `SELECT pg_logical_emit_message(false, 'end', '')`},
}

// play runs the scenario on a server and returns the frames that came.
func play(t *testing.T, pg *servers.PG, v variant) (frames [][]byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	url := pg.NewDatabase(t)
	var conns [2]*pgx.Conn
	for i := range conns {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		conns[i] = conn
	}
	exec := func(conn int, sql string) {
		t.Helper()
		if _, err := conns[conn].Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	for _, sql := range schema {
		exec(0, sql)
	}
	publication := `CREATE PUBLICATION p FOR TABLE ` + published
	if pg.Version >= 18 {
		publication += ` WITH (publish_generated_columns = stored)`
	}
	exec(0, publication)
	const dropOrigin = `SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = 'far away'`
	exec(1, dropOrigin)
	exec(1, `SELECT pg_replication_origin_create('far away')`)

	w := startWalsender(t, ctx, url, v)
	// A commit flushes the log, which is sent up to there only. Nothing is sent
	// for one that is not published.
	until := func(found func(*Message) bool) {
		t.Helper()
		exec(1, `INSERT INTO ballast VALUES ('')`)
		w.until(found)
	}
	for _, s := range scenario {
		exec(s.conn, s.sql)
		if s.streamed != "" && v.stream != "" {
			until(blockWith(s.streamed))
		}
		if s.prepared != "" && v.twoPhase {
			until(func(m *Message) bool {
				return (m.Kind == KindPrepare || m.Kind == KindStreamPrepare) && m.GID == s.prepared
			})
		}
	}
	until(func(m *Message) bool { return m.Kind == KindMessage && string(m.Prefix) == "end" })
	w.confirm(conns[1])
	w.close()
	exec(1, dropOrigin)
	return w.frames
}

// blockWith is true at the end of the stream block that has the row.
func blockWith(id string) func(*Message) bool {
	seen := false
	return func(m *Message) bool {
		for _, t := range []Tuple{m.Old, m.New} {
			seen = seen || m.Stream != 0 && len(t) > 0 && string(t[0].Data) == id
		}
		return seen && m.Kind == KindStreamStop
	}
}

// generated says what the outcome has for the generated column: it is published
// from 18 on.
func generated(version int, outcome string) string {
	if version >= 18 {
		return outcome
	}
	lines := strings.Split(outcome, "\n")
	for i, line := range lines {
		lines[i], _, _ = strings.Cut(line, " twice=")
	}
	return strings.Join(lines, "\n")
}

// outcome is what the scenario commits, nulls left out. One message of it should
// not be there, and is where transactions are streamed: sent in a savepoint that
// was rolled back, before the savepoint's first row, it has the number of the
// whole transaction, and nothing tells it from one that stays.
const outcome = `transaction
  insert orders id="1" note="first" amount="1.50" mood="ok" tags="{a,b}" label="l" big="xxxxxxxxxxxxxxxxxxxx"... (2100 bytes)
  insert orders id="2" note=""
transaction
  update orders id="1" note="second" amount="1.50" mood="ok" tags="{a,b}" label="l" big=unchanged
transaction
  update orders K(id="1") id="3" note="second" amount="1.50" mood="ok" tags="{a,b}" label="l" big=unchanged
transaction
  delete orders K(id="3")
transaction
  insert whole id="1" a="a"
  insert whole id="2" a="b" big="yyyyyyyyyyyyyyyyyyyy"... (2100 bytes)
transaction
  update whole O(id="2" a="b" big="yyyyyyyyyyyyyyyyyyyy"... (2100 bytes)) id="2" big=unchanged
transaction
  delete whole O(id="1" a="a")
transaction
  insert by_index a="1" b="k" c="c"
transaction
  update by_index a="1" b="k" c="d"
transaction
  update by_index K(b="k") a="1" b="l" c="d"
transaction
  delete by_index K(b="l")
transaction
  insert no "key" 
  insert no "key" a="-7"
transaction
  insert doubled id="21" twice="42"
transaction
  insert parent id="1"
  insert child parent="1"
transaction
  truncate cascade=true restart=true parent child
transaction
  truncate cascade=false restart=true doubled
transaction
  message "prefix" "alone"
message "stays" ""
transaction
  from "far away"
  insert doubled id="2" twice="4"
transaction
  insert orders id="10" later="7"
  insert orders id="12" later="7"
transaction
  insert doubled id="3" twice="6"
transaction
  insert orders id="100" later="7"
  message "first in a savepoint" "streamed"
  update orders K(id="12") id="104" note="moved" later="7"
  insert orders id="102" later="7"
  message "kept" "streamed"
transaction
  insert orders id="201" later="7"
transaction
  insert orders id="302" later="7"
transaction
  insert orders id="300" later="7"
transaction
  insert orders id="400" later="7"
transaction
  from "far away"
  insert doubled id="4" twice="8"
message "end" ""
`

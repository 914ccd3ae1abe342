package frameworks_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/onewrite/onewrite/adapter/postgres"
	sqlitemigrate "github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/internal/servers"

	"github.com/onewrite/onewrite/examples/frameworks/sqlite"
)

// shop is a database with an outbox, seen by its owner: the application of a test
// has a connection of its own, and may read no events.
type shop struct {
	owner  *sql.DB
	events string // the query for the outbox
	outbox string
}

// schema is the application's own. The foreign key is checked at the commit, so
// that a commit can fail.
const schema = `
CREATE TABLE customers (name text PRIMARY KEY);
CREATE TABLE orders (
	id       text PRIMARY KEY,
	customer text NOT NULL REFERENCES customers (name) DEFERRABLE INITIALLY DEFERRED,
	document %s   NOT NULL
);`

// newPostgres makes a database and returns the URL of an application whose role
// has what onewrite migrate grants, and all rights on its orders.
func newPostgres(t *testing.T) (s shop, url string) {
	t.Helper()
	pg := servers.Postgres(t, 15)
	base := pg.NewDatabase(t)
	role := pg.NewRole(t)
	if _, err := postgres.Migrate(t.Context(), base, postgres.MigrateOptions{AppRole: role.Name}); err != nil {
		t.Fatal(err)
	}
	s = shop{owner: open(t, base), outbox: "onewrite.outbox",
		events: `SELECT id::text, topic, key, coalesce(convert_to(payload, 'UTF8'), payload_bytes), payload IS NOT NULL OR payload_bytes IS NOT NULL FROM onewrite.outbox ORDER BY seq`}
	s.exec(t, fmt.Sprintf(schema, "bytea"))
	s.exec(t, "GRANT ALL ON orders TO "+role.Name)
	s.customers(t)
	return s, role.URL(base)
}

// newSQLite makes a file and returns it as the application opens it.
func newSQLite(t *testing.T) (s shop, db *sql.DB) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shop.db")
	if _, err := sqlitemigrate.Migrate(t.Context(), path, sqlitemigrate.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	var dbs [2]*sql.DB
	for i := range dbs {
		var err error
		if dbs[i], err = sqlite.Open(path); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = dbs[i].Close() })
	}
	s = shop{owner: dbs[0], outbox: "onewrite_outbox",
		events: `SELECT id, topic, key, coalesce(CAST(payload AS blob), payload_bytes), payload IS NOT NULL OR payload_bytes IS NOT NULL FROM onewrite_outbox ORDER BY seq`}
	s.exec(t, fmt.Sprintf(schema, "blob"))
	s.customers(t)
	return s, dbs[1]
}

// open opens a PostgreSQL database with the driver of pgx.
func open(t *testing.T, url string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func (s shop) exec(t *testing.T, statement string, args ...any) {
	t.Helper()
	if _, err := s.owner.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func (s shop) customers(t *testing.T) {
	t.Helper()
	for _, name := range []string{alice, odd, long} {
		s.exec(t, `INSERT INTO customers (name) VALUES ($1)`, name)
	}
}

// event is what the outbox holds of one.
type event struct {
	id, topic string
	key       sql.NullString
	payload   []byte
	hasData   bool // an empty payload is data, none is not
}

// read returns what is committed: orders by their id, events in their order.
func (s shop) read(t *testing.T) (orders []order, events []event) {
	t.Helper()
	s.query(t, `SELECT id, customer, document FROM orders ORDER BY id`, func(rows *sql.Rows) error {
		var o order
		defer func() { orders = append(orders, o) }()
		return rows.Scan(&o.ID, &o.Customer, &o.Document)
	})
	s.query(t, s.events, func(rows *sql.Rows) error {
		var e event
		defer func() { events = append(events, e) }()
		return rows.Scan(&e.id, &e.topic, &e.key, &e.payload, &e.hasData)
	})
	return orders, events
}

func (s shop) query(t *testing.T, query string, scan func(*sql.Rows) error) {
	t.Helper()
	rows, err := s.owner.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			t.Fatal(err)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}

// take fails the test unless the database holds these orders and their events,
// each as it was given, and no others, and empties it.
func (s shop) take(t *testing.T, want ...placed) {
	t.Helper()
	orders, events := s.read(t)
	s.empty(t)
	if len(orders) != len(want) || len(events) != len(want) {
		t.Errorf("%d orders and %d events are there, want %d of each", len(orders), len(events), len(want))
		return
	}
	for i, w := range want {
		o, e := orders[i], events[i]
		if o.ID != w.ID || o.Customer != w.Customer || !bytes.Equal(o.Document, w.Document) {
			t.Errorf("order %d is %s, %q, %.200q, want %s, %q, %.200q", i, o.ID, o.Customer, o.Document, w.ID, w.Customer, w.Document)
		}
		if w.event == "" && len(e.id) == 36 {
			e.id = ""
		}
		if e.id != w.event || e.topic != "order.placed" || e.key.String != w.Customer || !bytes.Equal(e.payload, w.Document) || !e.hasData {
			t.Errorf("the event of order %d is %s, %s, %q, %.200q, want %s, order.placed, %q, %.200q",
				i, e.id, e.topic, e.key.String, e.payload, w.event, w.Customer, w.Document)
		}
	}
}

func (s shop) empty(t *testing.T) {
	t.Helper()
	s.exec(t, "DELETE FROM orders")
	s.exec(t, "DELETE FROM "+s.outbox)
}

// denied reports whether PostgreSQL refused for want of a right.
func denied(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42501"
}

package frameworks_test

import (
	"os"
	"strings"
	"testing"
)

// examples are the folders of this module, one for each framework.
var examples = map[string]func(t *testing.T){
	"bun":         testBun,
	"databasesql": testDatabaseSQL,
	"ent":         testEnt,
	"gorm":        testGorm,
	"pgx":         testPgx,
	"sqlc":        testSqlc,
	"sqlite":      testSQLite,
	"sqlx":        testSqlx,
}

// checked counts the examples that went through all checks, by folder.
var checked = make(map[string]int)

// TestExamples fails for a folder without a test, for a test that checks nothing,
// and for an example that the README does not name.
func TestExamples(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	folders := 0
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		folder := e.Name()
		folders++
		if !strings.Contains(string(readme), "("+folder+"/)") {
			t.Errorf("README.md has no line for %s", folder)
		}
		test, ok := examples[folder]
		if !ok {
			t.Errorf("%s has no test; name it in examples", folder)
			continue
		}
		t.Run(folder, func(t *testing.T) {
			test(t)
			if checked[folder] == 0 {
				t.Error("nothing was checked")
			}
		})
	}
	if folders != len(examples) {
		t.Errorf("%d folders and %d examples", folders, len(examples))
	}
}

// TestTheRoleMayOnlyInsert: the examples mean something only if the application
// has no more rights than onewrite migrate grants.
func TestTheRoleMayOnlyInsert(t *testing.T) {
	s, url := newPostgres(t)
	db := open(t, url)
	const insert = `INSERT INTO onewrite.outbox (topic, key, payload) VALUES ('a', 'k', '{}')`
	for _, statement := range []string{
		`SELECT count(*) FROM onewrite.outbox`,
		`SELECT id FROM onewrite.outbox`,
		`SELECT id FROM onewrite.outbox_0`,
		insert + ` RETURNING id`,
		insert + ` RETURNING topic`,
		insert + ` RETURNING *`,
		`INSERT INTO onewrite.outbox (topic, seq) VALUES ('a', 1)`,
		`INSERT INTO onewrite.outbox_0 (topic) VALUES ('a')`,
		`UPDATE onewrite.outbox SET key = 'l'`,
		`DELETE FROM onewrite.outbox`,
		`TRUNCATE onewrite.outbox`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); !denied(err) {
			t.Errorf("%s: %v; want: permission denied", statement, err)
		}
	}
	s.take(t)
	for _, statement := range []string{
		insert,
		`INSERT INTO orders (id, customer, document) VALUES ('o-1', 'alice', '') RETURNING id`,
		`UPDATE orders SET document = 'x'`,
		`SELECT onewrite.publish('a', 'k', '{}')`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	if orders, events := s.read(t); len(orders) != 1 || len(events) != 2 {
		t.Errorf("%d orders and %d events, want 1 and 2", len(orders), len(events))
	}
}

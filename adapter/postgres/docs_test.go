package postgres

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/internal/servers"
)

// sqlPage is docs/outbox-sql.md, from a heading on.
func sqlPage(t *testing.T, heading string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/outbox-sql.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(page), "\n## "+heading)
	if !found {
		t.Fatalf("no heading %q", heading)
	}
	after, _, _ = strings.Cut(after, "\n## ")
	return after
}

// The page grants what migrate grants.
func TestThePageHasTheGrants(t *testing.T) {
	_, block, _ := strings.Cut(sqlPage(t, "Grants (PostgreSQL)"), "```sql\n")
	block, _, _ = strings.Cut(block, "```")
	var want []string
	for line := range strings.Lines(MigrateOptions{AppRole: "shop_app", RelayRole: "r"}.grants()) {
		if strings.HasPrefix(line, "GRANT ") && strings.Contains(line, `"shop_app"`) {
			want = append(want, strings.ReplaceAll(line, `"shop_app"`, "shop_app"))
		}
	}
	if block != strings.Join(want, "") {
		t.Errorf("the page has:\n%s\nmigrate grants:\n%s", block, strings.Join(want, ""))
	}
}

// What the server says of an event that can never be scheduled stands in the page.
func TestThePageHasWhatIsRefusedLater(t *testing.T) {
	page := sqlPage(t, "What is refused")
	pg := servers.Postgres(t, 18)
	conn := dial(t, newOutbox(t, pg, MigrateOptions{}))
	for _, row := range []string{
		`(deliver_at, topic) VALUES ('infinity', 'a')`, `(topic) VALUES ('a')`,
		`(deliver_at, topic) VALUES (now(), 'a b')`, `(deliver_at, topic, payload) VALUES (now(), 'a', repeat('x', 1100000))`,
	} {
		_, err := conn.Exec(t.Context(), `INSERT INTO onewrite.scheduled `+row)
		var pe *pgconn.PgError
		if !errors.As(err, &pe) {
			t.Fatalf("%s: %v", row, err)
		}
		says := pe.ConstraintName
		if says == "" {
			says, _, _ = strings.Cut(pe.Message, " of relation")
		}
		if !strings.Contains(page, "`"+says+"`") {
			t.Errorf("%s: the page does not have %s (%s)", row, says, pe.Message)
		}
	}
}

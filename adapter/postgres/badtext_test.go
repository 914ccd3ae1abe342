package postgres

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// Text that is not UTF-8 stops the log and holds up a snapshot; both name the table, and
// what they say cures it.
func TestTextThatIsNotUTF8(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		u, err := url.Parse(pg.NewDatabase(t))
		if err != nil {
			t.Fatal(err)
		}
		admin := dial(t, u.String())
		name := strings.TrimPrefix(u.Path, "/") + "_ascii"
		sql(t, admin, `CREATE DATABASE `+name+` ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'`)
		t.Cleanup(func() {
			_, _ = admin.Exec(context.Background(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1`, name)
			_, _ = admin.Exec(context.Background(), `DROP DATABASE IF EXISTS `+name+` WITH (FORCE)`)
		})
		u.Path = "/" + name
		said := make(chan string, 1000)
		r := &rig{t: t, url: u.String(), tables: []string{"a", "b"}}
		r.conn = dial(t, r.url)
		sql(t, r.conn, `CREATE TABLE a (id int PRIMARY KEY, t text); CREATE TABLE b (id int PRIMARY KEY, t text); INSERT INTO b VALUES (1, E'\xe4')`)
		r.migrate()
		r.cfg = Config{Name: "shop", URL: r.url, BusID: "bus1", Tables: r.tables, Trouble: func(what, problem string) {
			if strings.HasPrefix(what, "snapshot") && problem != "" {
				said <- problem
			}
		}}
		r.open()
		if text := <-said; !strings.Contains(text, "a row of public.b has text that is not UTF-8") || !strings.HasSuffix(text, "run onewrite migrate") {
			t.Errorf("of the snapshot it is said %s", text)
		}
		sql(t, r.conn, `UPDATE b SET t = 'mended'`)
		until := func(topic string) {
			t.Helper()
			for seen := false; !seen; {
				for _, e := range r.read().Events {
					seen = seen || e.Topic == topic && e.Type == "snapshot" && strings.Contains(string(e.Data), "mended")
				}
			}
		}
		until("public.b")
		r.snapshots()
		sql(t, r.conn, `INSERT INTO b VALUES (2, 'good')`, `INSERT INTO a VALUES (1, E'b\xe4d')`)
		_, err = r.stops()
		_, cure, _ := strings.Cut(errText(err), "the tables are read again: ")
		if !strings.Contains(errText(err), "the log has a row of public.a with text that is not UTF-8") || cure == "" {
			t.Fatal(err)
		}
		sql(t, r.conn, `UPDATE a SET t = 'mended'`)
		eventually(t, "the slot is dropped", func() bool { _, err := r.conn.Exec(t.Context(), cure); return err == nil })
		r.open()
		until("public.a")
		if f := findingOf(Examine(t.Context(), r.url, MigrateOptions{}), "encoding"); f.Severity != diagnosis.Warning {
			t.Errorf("the doctor says %q", f.Text)
		}
	})
}

package postgres

import (
	"context"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// The changes of a table that is captured no more, and that the log still has, come with
// the rules for its columns that it had, also when the table or the column has another name.
func TestReleasedTableStaysHidden(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE members (id int PRIMARY KEY, email text, phone text, note text, town text); CREATE TABLE plain (id int PRIMARY KEY)`, "members", "plain")
		r.cfg.Masks, r.cfg.MaskKey = rulesOf(t, "public.members.email drop", "*.phone hash", "public.members.note truncate 2"), "k"
		r.migrate()
		r.open()
		r.whole()
		_ = r.src.Close()
		sql(t, r.conn, `INSERT INTO members VALUES (1, 'hidden', 'hidden', 'hidden', 'Ulm')`, `UPDATE members SET town = 'Bonn', note = 'hidden-2'`,
			`ALTER TABLE members RENAME TO people`, `INSERT INTO people VALUES (2, 'hidden', 'hidden', 'hidden', 'Rom')`,
			`ALTER TABLE people RENAME email TO mail`, `INSERT INTO people VALUES (3, 'hidden', 'hidden', 'hidden', 'Wien')`)
		r.tables, r.cfg.Tables, r.cfg.Masks, r.cfg.MaskKey, r.cfg.Known = []string{"plain"}, []string{"plain"}, nil, "", &Known{}
		r.migrate()
		r.src = nil
		r.open()
		wants := []string{`"town":"Ulm"`, `"town":"Bonn"`, `"town":"Rom"`, `{"id":3}`}
		for i, e := range r.events(len(wants)) {
			want := wants[i]
			if data := string(e.Data); !strings.Contains(data, want) || strings.Contains(data, "hidden") || i == 3 && strings.Contains(data, "Wien") || i < 3 && !strings.Contains(data, `"note":"hi"`) {
				t.Errorf("event %d is %s", i, data)
			}
		}
	})
}

// A registry from before the rules were kept beside it has none.
func TestReleasedWithoutRules(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE members (id int PRIMARY KEY)`, "members")
		c := catalog{source: "shop", rules: rulesOf(t, "*.phone drop"), conn: r.conn}
		for range 2 {
			got, err := c.rulesFor(context.Background(), &table{rel: 4711, topic: "public.other"}, captured{})
			if err != nil || got.Text("public", "other") != "*.phone drop" {
				t.Errorf("%q, %v", got.Text("public", "other"), err)
			}
			sql(t, r.conn, `DROP TABLE IF EXISTS onewrite.released`)
		}
	})
}

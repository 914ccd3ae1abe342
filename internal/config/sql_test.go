package config

import (
	"strings"
	"testing"
)

// A destination does not write the tables that a source of the same database reads.
func TestLoops(t *testing.T) {
	for _, c := range []struct {
		source, destination string
		loop                bool
	}{
		{"{type: sqlite, path: a.db, tables: [orders]}", "{type: sqlite, path: a.db}", true},
		{"{type: sqlite, path: a.db, tables: [orders]}", "{type: sqlite, path: ./x/../a.db, table: ORDERS}", true},
		{"{type: sqlite, path: a.db, tables: [orders]}", "{type: sqlite, path: a.db, table: main.orders}", true},
		{"{type: sqlite, path: a.db, tables: [onewrite_messages]}", "{type: sqlite, path: a.db, table: copy}", true},
		{"{type: sqlite, path: a.db, tables: [orders]}", "{type: sqlite, path: a.db, table: 'copy_of_{table}'}", false},
		{"{type: sqlite, path: a.db, tables: [orders]}", "{type: sqlite, path: a.db, topics: [stock]}", false},
		{"{type: sqlite, path: a.db, tables: [orders]}", "{type: sqlite, path: b.db}", false},
		{"{type: sqlite, path: a.db}", "{type: sqlite, path: a.db}", false},
		{"{type: postgres, url: 'postgres://u@localhost/x', tables: [orders]}", "{type: postgres, url: 'postgres://v:w@127.0.0.1:5432/x?sslmode=disable'}", true},
		{"{type: postgres, url: 'host=db dbname=x', tables: [public.orders]}", "{type: postgres, url: 'postgres://u@DB/x?sslmode=verify-full', topics: ['public.>']}", true},
		{"{type: postgres, url: 'postgres://u@localhost/x', tables: ['billing.*']}", "{type: postgres, url: 'postgres://u@localhost/x', table: '{schema}.{table}'}", true},
		{"{type: postgres, url: 'postgres://u@localhost/x', tables: ['billing.*']}", "{type: postgres, url: 'postgres://u@localhost/x', table: 'billing.copy_of_{table}'}", true},
		{"{type: postgres, url: 'postgres://u@localhost/x', tables: ['public.*']}", "{type: postgres, url: 'postgres://u@localhost/x', table: 'copy.{table}'}", true}, // the places
		{"{type: postgres, url: 'postgres://u@localhost/x', tables: ['billing.*']}", "{type: postgres, url: 'postgres://u@localhost/x', table: 'copy.{table}'}", false},
		{"{type: postgres, url: 'postgres://u@localhost/x', tables: [public.orders]}", "{type: postgres, url: 'postgres://u@localhost/x', table: '{topic}'}", false},
		{"{type: postgres, url: 'postgres://u@localhost/x', tables: [public.orders]}", "{type: postgres, url: 'postgres://u@localhost/y'}", false},
		{"{type: postgres, url: 'postgres://u@localhost/x', tables: [public.orders]}", "{type: postgres, url: 'postgres://u@localhost:5433/x'}", false},
		{"{type: postgres, url: 'postgres://u@localhost/x', tables: [billing.orders]}", "{type: postgres, url: 'postgres://u@localhost/x'}", false},
		{"{type: postgres, url: 'postgres://u@localhost/x', tables: [public.orders]}", "{type: mysql, url: 'mysql://u@localhost/x'}", false},
	} {
		_, _, err := Parse([]byte("sources: {s: "+c.source+"}\ndestinations: {d: "+c.destination+"}"), "x", t.TempDir())
		if loop := err != nil && strings.Contains(err.Error(), "each event would make the next"); loop != c.loop || err != nil && !loop {
			t.Errorf("%s, %s: %v", c.source, c.destination, err)
		}
	}
}

func TestReplicaSettings(t *testing.T) {
	for d, want := range map[string]string{
		"{type: mysql, url: 'mysql://u:p@db/x'}":                    "clear text",
		"{type: mysql, url: 'mysql://u@db/x?tls=true'}":             "",
		"{type: mysql, url: 'mariadb://u@127.0.0.1:3307/x'}":        "",
		"{type: mysql, url: 'u:p@tcp(db)/x'}":                       "not the address",
		"{type: mysql, url: 'mysql://u:p@db'}":                      "not the address",
		"{type: mysql, url: 'mysql://u:p@db/x?tls=skip-verify'}":    "neither true nor false",
		"{type: mysql, url: 'mysql://u:p@db/x?tls=false', tls: {}}": "does not go with",
		"{type: mysql}": "is missing",
		"{type: mysql, url: 'mysql://u@localhost/x', create: false, columns: fixed, truncate: false, messages: m}": "",
		"{type: mysql, url: 'mysql://u@localhost/x', columns: none}":                                               "follow",
		"{type: sqlite, path: '-'}":                         "standard output",
		"{type: sqlite, path: x.db, table: 'copy.{table}'}": "none but main",
		"{type: sqlite, path: x.db, table: '{tabel}'}":      "no name of tables",
		"{type: sqlite, path: x.db, table: 'a.b.c'}":        "no name of tables",
		"{type: sqlite, path: x.db, table: '.c'}":           "no name of tables",
		"{type: sqlite, path: x.db, messages: '{topic}'}":   "no name of a table",
		"{type: postgres, url: 'postgres://u@db/x'}":        "clear text",
		"{type: file, path: x.db, table: t}":                "does not belong",
	} {
		_, warnings, err := Parse([]byte("sources: {s: {type: sqlite, path: source.db}}\ndestinations: {d: "+d+"}"), "x", t.TempDir())
		said := warnings.Error()
		if err != nil {
			said += err.Error()
		}
		if want == "" && said != "" || !strings.Contains(said, want) {
			t.Errorf("%s: %q, want %q", d, said, want)
		}
		if strings.Contains(said, "u:p") {
			t.Errorf("%s: shows the password: %s", d, said)
		}
	}
	shared := "destinations: {a: {type: sqlite, path: x.db}, b: {type: sqlite, path: x.db, table: b}, c: {type: FILE, path: x.db}}"
	for kind, ok := range map[string]bool{"sqlite": true, "file": false} {
		_, _, err := Parse([]byte("sources: {s: {type: sqlite, path: source.db}}\n"+strings.Replace(shared, "FILE", kind, 1)), "x", t.TempDir())
		if (err == nil) != ok {
			t.Errorf("a %s beside: %v", kind, err)
		}
	}
}

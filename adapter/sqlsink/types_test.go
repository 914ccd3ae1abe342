package sqlsink_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlsink"
	"github.com/onewrite/onewrite/internal/servers"
)

// typed is a column of a table that a user made, a value as an event has it, and what
// the server says it holds.
type typed struct{ typ, json, shows string }

var typedColumns = map[string][]typed{
	sqlsink.Postgres: {
		{"bigint", `9223372036854775807`, "9223372036854775807"},
		{"int", `-2147483648`, "-2147483648"},
		{"numeric", `"123456789012345678901234567890.000000000001"`, "123456789012345678901234567890.000000000001"},
		{"numeric", `"NaN"`, "NaN"},
		{"numeric(10,2)", `9.5`, "9.50"},
		{"real", `1.5`, "1.5"}, {"double precision", `"-Infinity"`, "-Infinity"}, {"double precision", `1e+300`, "1e+300"},
		{"boolean", `true`, "true"},
		{"text", `"Grüße, 世界 🌍 \\ \" ' \n"`, "Grüße, 世界 🌍 \\ \" ' \n"},
		{"varchar(3)", `"abc"`, "abc"}, {"char(3)", `"a"`, "a  "}, {`"char"`, `"x"`, "x"},
		{"bytea", `"AAH/"`, `\x0001ff`}, {"bytea", `""`, `\x`},
		{"timestamptz", `"2026-11-29T08:41:05.366723Z"`, "2026-11-29 08:41:05.366723+00"},
		{"timestamptz", `"infinity"`, "infinity"}, {"timestamp", `"10000-01-01T00:00:00"`, "10000-01-01 00:00:00"}, {"timestamp", `"0044-03-15 00:00:00 BC"`, "0044-03-15 00:00:00 BC"},
		{"date", `"-infinity"`, "-infinity"}, {"date", `"2024-02-29"`, "2024-02-29"}, {"time", `"23:59:59.999999"`, "23:59:59.999999"}, {"interval", `"1 mon -1 days +00:00:01"`, "1 mon -1 days +00:00:01"},
		{"uuid", `"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"`, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"},
		{"json", `"{\"a\" :  1, \"a\": 2}"`, `{"a" :  1, "a": 2}`}, {"jsonb", `"[1,2.50]"`, "[1, 2.50]"}, {"jsonb", `[1,"x",null]`, `[1, "x", null]`}, {"jsonb", `{"a":{"b":1}}`, `{"a": {"b": 1}}`},
		{"int[]", `[1,null,3]`, "{1,NULL,3}"}, {"int[]", `[[1,2],[3,4]]`, "{{1,2},{3,4}}"}, {"text[]", `["a,b","\"q\"","\\","NULL",null,""]`, `{"a,b","\"q\"","\\","NULL",NULL,""}`},
		{"bytea[]", `["AAE=",null]`, `{"\\x0001",NULL}`}, {"numeric[]", `["1.50","NaN"]`, "{1.50,NaN}"}, {"timestamptz[]", `["2026-11-29T08:41:05Z"]`, `{"2026-11-29 08:41:05+00"}`}, {"jsonb[]", `["{\"a\":1}"]`, `{"{\"a\": 1}"}`}, {"int[]", `[]`, "{}"},
		{"box[]", `["(1,1),(0,0)","(3,3),(2,2)"]`, "{(1,1),(0,0);(3,3),(2,2)}"},
		{"inet", `"10.0.0.1/8"`, "10.0.0.1/8"}, {"point", `"(1,2)"`, "(1,2)"}, {"int4range", `"[1,5)"`, "[1,5)"}, {"bit(3)", `"101"`, "101"}, {"xml", `"<a/>"`, "<a/>"}, {"money", `"$1.00"`, "$1.00"},
		{"onewrite_mood", `"hä?"`, "hä?"}, {"onewrite_small", `5`, "5"}, {"onewrite_raw", `"AAE="`, `\x0001`},
		{"bigint GENERATED ALWAYS AS IDENTITY", `42`, "42"},
	},
	sqlsink.MySQL: {
		{"BIGINT", `9223372036854775807`, "9223372036854775807"}, {"BIGINT UNSIGNED", `18446744073709551615`, "18446744073709551615"}, {"BIGINT", `"-9007199254740993"`, "-9007199254740993"},
		{"DECIMAL(40,12)", `"1234567890123456789012345678.000000000001"`, "1234567890123456789012345678.000000000001"}, {"INT", `"9.00"`, "9"},
		{"DOUBLE", `1e+300`, "1e300"}, {"DOUBLE", `0.1`, "0.1"}, {"BOOLEAN", `true`, "1"}, {"BIT(1)", `true`, "\x01"}, {"TEXT", `false`, "false"},
		{"LONGTEXT", `"Grüße, 世界 🌍 \\ \" ' \n \u0000 %"`, "Grüße, 世界 🌍 \\ \" ' \n \x00 %"}, {"VARCHAR(3)", `"abc"`, "abc"},
		{"LONGBLOB", `"AAH/"`, "\x00\x01\xff"}, {"VARBINARY(5)", `""`, ""},
		{"DATETIME(6)", `"2026-11-29T08:41:05.366723Z"`, "2026-11-29 08:41:05.366723"}, {"TIMESTAMP(6)", `"2026-11-29T08:41:05.366723Z"`, "2026-11-29 08:41:05.366723"}, {"DATETIME", `"2024-02-29T12:00:00"`, "2024-02-29 12:00:00"},
		{"DATE", `"2024-02-29"`, "2024-02-29"}, {"TIME(6)", `"23:59:59.999999"`, "23:59:59.999999"}, {"JSON", `"{\"a\" : 1}"`, `{"a" : 1}`}, {"JSON", `[1,"x",null]`, `[1,"x",null]`},
		{"ENUM('a','b')", `"b"`, "b"}, {"INT NOT NULL AUTO_INCREMENT UNIQUE", `0`, "0"},
	},
	sqlsink.SQLite: {
		{"INTEGER", `9223372036854775807`, "9223372036854775807"}, {"INT", `-9007199254740993`, "-9007199254740993"}, {"REAL", `1.5`, "1.5"}, {"REAL", `"-Infinity"`, "-Inf"},
		{"BOOLEAN", `true`, "1"}, {"BLOB", `"AAH/"`, "\x00\x01\xff"}, {"TEXT", `"Grüße, 世界 🌍 \\ \" ' \n"`, "Grüße, 世界 🌍 \\ \" ' \n"}, {"TEXT", `12345678901234567890.5`, "12345678901234567890.5"},
		{"TEXT", `[1,"x",null]`, `[1,"x",null]`}, {"", `"any"`, "any"}, {"DATETIME", `"2026-11-29T08:41:05.366723Z"`, "2026-11-29T08:41:05.366723Z"},
	},
}

// TestTypes: values become those of the columns that a user made, in runs and by
// themselves, as a value and as a part of the key.
func TestTypes(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		if x.kind == sqlsink.Postgres {
			x.exec(t, "CREATE TYPE onewrite_mood AS ENUM ('hä?')", "CREATE DOMAIN onewrite_small AS int CHECK (VALUE < 10)", "CREATE DOMAIN onewrite_raw AS bytea")
		}
		s := x.sink(t)
		for i, c := range typedColumns[x.kind] {
			name := fmt.Sprint("t", i)
			x.exec(t, "CREATE TABLE "+name+" (id bigint PRIMARY KEY, v "+c.typ+")")
			one := func(op string, id int, unchanged ...string) onewrite.Event {
				return ev(op, name, row{"id": id}, nil, row{"id": id, "v": json.RawMessage(c.json)}, unchanged...)
			}
			events := []onewrite.Event{one("c", 1), one("c", 2)}
			if strings.Contains(c.typ, "UNIQUE") {
				events = events[:1]
			}
			write(t, s, events...)
			write(t, s, one("u", 1), one("u", 1, "other"))
			show := "v"
			switch {
			case x.kind == sqlsink.Postgres:
				show = "v::text"
				if c.typ == "char(3)" {
					show = "rpad(v, 3)"
				}
			case c.typ == "DATETIME" && x.kind == sqlsink.SQLite:
				show = "CAST(v AS TEXT)"
			}
			for _, got := range x.rows(t, "SELECT "+show+" FROM "+name) {
				if got != c.shows && strings.ReplaceAll(got, "e+300", "e300") != c.shows {
					t.Errorf("%s from %s holds %q, want %q", c.typ, c.json, got, c.shows)
				}
			}
			before := row{"id": 1, "v": json.RawMessage(c.json)}
			if x.kind != sqlsink.MySQL || c.typ != "DOUBLE" {
				write(t, s, ev("u", name, nil, before, before), ev("d", name, nil, before, nil)) // as if it had no key
				x.want(t, "SELECT count(*) FROM "+name+" WHERE id = 1", "0")
			}
		}
	})
}

// TestNUL: PostgreSQL has no text with a NUL, and that is a refusal.
func TestNUL(t *testing.T) {
	x := newTarget(t, sqlsink.Postgres, false)
	s := x.sink(t)
	refused(t, s, []onewrite.Event{put(1, "a"), put(2, "b\x00"), put(3, "c")}, 1, "0x00")
	x.exec(t, "CREATE TABLE b (id bigint PRIMARY KEY, v bytea)")
	refused(t, s, []onewrite.Event{ev("c", "b", row{"id": 1}, nil, row{"id": 1, "v": "no base64"})}, 0, "base64", "column v of b")
}

// TestKeys: keys are compared as what they are, also where a float would not tell them
// apart.
func TestKeys(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		typ := "decimal(38,2)"
		if x.kind == sqlsink.SQLite {
			typ = "text"
		}
		x.exec(t, "CREATE TABLE big (id bigint PRIMARY KEY, v varchar(9))", "CREATE TABLE exact (id "+typ+" PRIMARY KEY, v varchar(9))")
		s := x.sink(t)
		for table, keys := range map[string][]any{"big": {int64(9007199254740992), int64(9007199254740993)}, "exact": {"123456789012345678901234.10", "123456789012345678901234.11"}} {
			for _, k := range keys {
				write(t, s, ev("c", table, row{"id": k}, nil, row{"id": k, "v": "a"}))
			}
			write(t, s, ev("u", table, row{"id": keys[1]}, nil, row{"id": keys[1]}, "v"), ev("d", table, row{"id": keys[0]}, row{"id": keys[0]}, nil))
			got := x.rows(t, "SELECT count(*) FROM "+table)
			if got[0] != "1" {
				t.Errorf("%s: %v rows are left", table, got)
			}
		}
		// Texts that a server may take for equal.
		for i, k := range []string{"a", "A", "a ", "ä", "á"} {
			write(t, s, ev("c", "words", row{"id": k}, nil, row{"id": k, "n": i}))
		}
		write(t, s, ev("d", "words", row{"id": "A"}, row{"id": "A"}, nil))
		x.want(t, "SELECT n FROM words ORDER BY n", "0", "2", "3", "4")
	})
}

// TestTemplate: names of tables follow the template, in a schema if there is one.
func TestTemplate(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		write(t, x.sink(t, func(c *sqlsink.Config) { c.Table, c.Messages = "{schema}_{table}", "told" }), put(1, "a"), onewrite.Event{ID: "m", Source: "s", Topic: "t", Type: "t"})
		x.want(t, "SELECT id, v FROM public_t", "1|a")
		x.want(t, "SELECT id FROM told", "m")
		write(t, x.sink(t, func(c *sqlsink.Config) { c.Table = "{topic}" }), put(2, "b"))
		x.want(t, "SELECT id, v FROM "+x.quote("public.t"), "2|b")
		in := x.sink(t, func(c *sqlsink.Config) { c.Table = "replica.{table}" })
		if x.kind != sqlsink.Postgres {
			n, err := in.Write(t.Context(), []onewrite.Event{put(1, "a")})
			if n != 0 || err == nil || !strings.Contains(err.Error(), "cure: ") {
				t.Errorf("a schema that is not there: %d, %v", n, err)
			}
			return
		}
		refused(t, in, []onewrite.Event{put(3, "c")}, 0, "replica")
		x.exec(t, "CREATE SCHEMA replica")
		write(t, in, put(3, "c"), onewrite.Event{ID: "m", Source: "s", Topic: "t", Type: "t"})
		x.want(t, "SELECT id, v FROM replica.t", "3|c")
		x.want(t, "SELECT id FROM replica.onewrite_messages", "m")
		for _, bad := range []string{"", ".", "a.", ".b", "a.b.c", "{tabel}", "a{table"} {
			c := x.cfg
			if c.Table = bad; bad == "" {
				c.Messages = "{topic}"
			}
			if s, err := sqlsink.Open(t.Context(), c); err == nil {
				s.Close()
				t.Errorf("%q is taken for a name", bad)
			}
		}
	})
}

// TestCommandLine: the client of each server reads what was written.
func TestCommandLine(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		s := x.sink(t)
		write(t, s, put(1, "Grüße \\ '🌍'"), put(2, nil), put(3, strings.Repeat("x", 1<<20)), onewrite.Event{ID: "m", Source: "s", Topic: "t", Type: "t", ContentType: "application/json", Data: []byte(`{"a":1}`)})
		query := "SELECT id, coalesce(v, 'none') FROM t WHERE id < 3 UNION ALL SELECT 3, length(v) FROM t WHERE id = 3 UNION ALL SELECT 4, data FROM onewrite_messages ORDER BY 1;"
		var cmd *exec.Cmd
		u, _ := url.Parse(x.cfg.URL)
		switch x.kind {
		case sqlsink.Postgres:
			cmd = exec.Command(servers.Bin(t, "psql"), "-X", "-At", "-c", strings.ReplaceAll(query, "length(v)", "length(v)::text"), x.cfg.URL)
		case sqlsink.MySQL:
			cmd = exec.Command(servers.Bin(t, "mariadb"), "--no-defaults", "--default-character-set=utf8mb4", "-N", "--raw", "-h", u.Hostname(), "-P", u.Port(), "-u", u.User.Username(), u.Path[1:], "-e", query)
			secret, _ := u.User.Password()
			cmd.Env = append(os.Environ(), "MYSQL_PWD="+secret)
		case sqlsink.SQLite:
			cmd = exec.Command(servers.Bin(t, "sqlite3"), x.cfg.Path, query)
		}
		out, err := cmd.CombinedOutput()
		want := "1|Grüße \\ '🌍'\n2|none\n3|1048576\n4|{\"a\":1}\n"
		if got := string(bytes.ReplaceAll(out, []byte("\t"), []byte("|"))); err != nil || got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	})
}

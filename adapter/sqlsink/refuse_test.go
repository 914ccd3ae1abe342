package sqlsink_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlsink"
	"github.com/onewrite/onewrite/internal/servers"
)

func put(id int, v any) onewrite.Event {
	return ev("c", "t", row{"id": id}, nil, row{"id": id, "v": v})
}

// TestRefused: what a server refuses names the event, its words and a cure, and what
// was before it is there.
func TestRefused(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		x.exec(t, "CREATE TABLE parent (id bigint PRIMARY KEY)",
			"CREATE TABLE t (id bigint PRIMARY KEY, v varchar(5) NOT NULL, n int CHECK (n < 10), u int UNIQUE, p bigint, FOREIGN KEY (p) REFERENCES parent (id))")
		s := x.sink(t)
		good := func(id int) row { return row{"id": id, "v": "v", "n": 1, "u": id, "p": nil} }
		write(t, s, ev("c", "t", row{"id": 1}, nil, good(1)))
		id := 1
		cases := map[string]struct {
			change row
			only   string
		}{
			"null": {change: row{"v": nil}}, "check": {change: row{"n": 11}}, "unique": {change: row{"u": 1}}, "foreign key": {change: row{"p": 77}},
		}
		if x.kind != sqlsink.SQLite { // which is not strict about types
			cases["long"] = struct {
				change row
				only   string
			}{change: row{"v": "too long"}}
			cases["range"] = struct {
				change row
				only   string
			}{change: row{"u": int64(1) << 40}}
			cases["no number"] = struct {
				change row
				only   string
			}{change: row{"u": "abc"}}
			cases["fraction"] = struct {
				change row
				only   string
			}{change: row{"u": 1.5}}
		}
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				bad := good(id + 3)
				for k, v := range c.change {
					bad[k] = v
				}
				refused(t, s, []onewrite.Event{
					ev("c", "t", row{"id": id + 1}, nil, good(id+1)), ev("c", "t", row{"id": id + 2}, nil, good(id+2)),
					ev("c", "t", row{"id": id + 3}, nil, bad), ev("c", "t", row{"id": id + 4}, nil, good(id+4)),
				}, 2)
				x.want(t, fmt.Sprintf("SELECT id FROM t WHERE id > %d", id), fmt.Sprint(id+1), fmt.Sprint(id+2))
				id += 10
			})
		}
	})
}

// TestNames: names that a server cannot have are refused, not cut.
func TestNames(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		s := x.sink(t)
		long := strings.Repeat("n", 65)
		if x.kind == sqlsink.SQLite {
			write(t, s, ev("c", long, row{"id": 1}, nil, row{"id": 1, long: 2}))
			return
		}
		refused(t, s, []onewrite.Event{put(1, "a"), ev("c", long, row{"id": 1}, nil, row{"id": 1})}, 1, "longer")
		refused(t, s, []onewrite.Event{put(1, "a"), ev("u", "t", row{"id": 1}, nil, row{"id": 1, long: 2})}, 1, "longer")
		x.want(t, "SELECT id, v FROM t", "1|a")
	})
}

// TestFixed: with columns: fixed and create: false nothing is made.
func TestFixed(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		x.exec(t, "CREATE TABLE t (id bigint PRIMARY KEY, v varchar(20))")
		s := x.sink(t, func(c *sqlsink.Config) { c.Fixed, c.NoCreate = true, true })
		refused(t, s, []onewrite.Event{put(1, "a"), ev("c", "t", row{"id": 2}, nil, row{"id": 2, "more": 1})}, 1, `no column "more"`, "ALTER TABLE", "ADD COLUMN")
		refused(t, s, []onewrite.Event{put(2, "a"), ev("c", "other", row{"id": 2}, nil, row{"id": 2})}, 1, "no table other", "CREATE TABLE")
		refused(t, s, []onewrite.Event{put(3, "a"), ev("d", "other", row{"id": 2}, row{"id": 2}, nil)}, 1, "no table other")
		refused(t, s, []onewrite.Event{put(4, "a"), {ID: "m", Source: "s", Topic: "t", Type: "t"}}, 1, "onewrite_messages", "CREATE TABLE")
		x.want(t, "SELECT id FROM t ORDER BY id", "1", "2", "3", "4")
		x.exec(t, "ALTER TABLE t ADD COLUMN more int") // by the one on call; no restart
		write(t, s, ev("c", "t", row{"id": 5}, nil, row{"id": 5, "more": 1}))
	})
}

// TestAltered: a table that was changed by others meanwhile is looked at again.
func TestAltered(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		s := x.sink(t)
		write(t, s, put(1, "a"))
		x.exec(t, "ALTER TABLE t DROP COLUMN v")
		write(t, s, put(2, "b"), put(3, "c"))
		x.want(t, "SELECT id, v FROM t ORDER BY id", "1|∅", "2|b", "3|c")
		x.exec(t, "DROP TABLE t")
		write(t, s, put(4, "d"))
		x.want(t, "SELECT id, v FROM t", "4|d")
	})
}

// TestUntouched: an update without a large value works on a column that must not be
// null, and leaves other columns of the table alone.
func TestUntouched(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		x.exec(t, "CREATE TABLE t (id bigint PRIMARY KEY, v varchar(20), large varchar(100) NOT NULL, mine varchar(20))")
		s := x.sink(t)
		write(t, s, ev("c", "t", row{"id": 1}, nil, row{"id": 1, "v": "a", "large": "L"}))
		x.exec(t, "UPDATE t SET mine = 'mine'")
		write(t, s, ev("u", "t", row{"id": 1}, nil, row{"id": 1, "v": "b"}, "large"))
		write(t, s, ev("u", "t", row{"id": 1}, nil, row{"id": 1, "v": "c", "large": "__debezium_unavailable_value"}), ev("u", "t", row{"id": 1}, nil, row{"id": 1}, "large", "v"))
		x.want(t, "SELECT * FROM t", "1|c|L|mine")
	})
}

// TestTransaction: constraints that the source checks at the commit hold at the
// commit of the target.
func TestTransaction(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		later := map[string]string{sqlsink.Postgres: " DEFERRABLE", sqlsink.SQLite: ""}[x.kind]
		x.exec(t, "CREATE TABLE parent (id bigint PRIMARY KEY)",
			"CREATE TABLE child (id bigint PRIMARY KEY, p bigint, pos int, FOREIGN KEY (p) REFERENCES parent (id)"+later+")")
		s := x.sink(t)
		child := func(op string, id, p int, pos any) onewrite.Event {
			return ev(op, "child", row{"id": id}, nil, row{"id": id, "p": p, "pos": pos})
		}
		parent := func(op string, id int) onewrite.Event {
			if op == "d" {
				return ev("d", "parent", row{"id": id}, row{"id": id}, nil)
			}
			return ev(op, "parent", row{"id": id}, nil, row{"id": id})
		}
		write(t, s, parent("c", 1), child("c", 1, 1, 1), child("c", 2, 1, 2), parent("c", 2))
		write(t, s, child("u", 1, 2, 1), child("u", 2, 2, 2), parent("d", 1))
		x.want(t, "SELECT id, p FROM child ORDER BY id", "1|2", "2|2")
		if x.kind == sqlsink.MySQL { // it checks at each row
			refused(t, s, []onewrite.Event{child("c", 3, 3, 3), parent("c", 3)}, 0, "foreign key")
			return
		}
		write(t, s, child("c", 3, 3, 3), parent("c", 3)) // the child comes first
		events := []onewrite.Event{child("c", 4, 4, 4), parent("c", 4), child("c", 5, 99, 5), child("c", 6, 4, 6)}
		take(t, s)
		if bad, err := s.WriteAt(t.Context(), at(events...), []byte("x")); bad != 2 || !errors.Is(err, onewrite.ErrRejected) {
			t.Errorf("WriteAt = %d, %v; want 2", bad, err)
		}
		refused(t, s, events, 2)
		x.want(t, "SELECT id FROM child ORDER BY id", "1", "2", "3", "4")
		refused(t, s, []onewrite.Event{child("c", 7, 4, 7), parent("d", 4), parent("c", 8)}, 1)
		if x.kind == sqlsink.SQLite {
			return
		}
		x.exec(t, "ALTER TABLE child ADD UNIQUE (pos) DEFERRABLE")
		write(t, s, child("u", 1, 2, 2), child("u", 2, 2, 1)) // they swap
		x.want(t, "SELECT id, pos FROM child WHERE id < 3 ORDER BY id", "1|2", "2|1")
		refused(t, s, []onewrite.Event{child("u", 3, 3, 33), child("u", 1, 2, 1), child("u", 4, 4, 44)}, 1, "child_pos_key")
	})
}

// TestTruncate: tables that refer to each other are emptied together; or left, if the
// destination says so.
func TestTruncate(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		later := map[string]string{sqlsink.Postgres: " DEFERRABLE"}[x.kind]
		x.exec(t, "CREATE TABLE parent (id bigint PRIMARY KEY)", "CREATE TABLE child (id bigint PRIMARY KEY, p bigint, FOREIGN KEY (p) REFERENCES parent (id)"+later+")")
		fill := []onewrite.Event{ev("c", "parent", row{"id": 1}, nil, row{"id": 1}), ev("c", "child", row{"id": 1}, nil, row{"id": 1, "p": 1})}
		write(t, x.sink(t), append(fill, ev("t", "nowhere", nil, nil, nil))...)
		write(t, x.sink(t, func(c *sqlsink.Config) { c.IgnoreTruncate = true }), ev("t", "child", nil, nil, nil))
		x.want(t, "SELECT count(*) FROM child", "1")
		write(t, x.sink(t), ev("t", "child", nil, nil, nil), ev("t", "parent", nil, nil, nil), fill[0])
		x.want(t, "SELECT count(*) FROM child", "0")
		x.want(t, "SELECT count(*) FROM parent", "1")
		write(t, x.sink(t), fill...)
		if x.kind != sqlsink.MySQL {
			write(t, x.sink(t), ev("t", "parent", nil, nil, nil), ev("d", "child", row{"id": 1}, row{"id": 1}, nil))
			x.want(t, "SELECT count(*) FROM parent", "0")
		}
	})
}

// TestGuarded: a conflict with another unique key is one, and does not change the row
// that has it.
func TestGuarded(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		x.exec(t, "CREATE TABLE t (id bigint PRIMARY KEY, v varchar(20) UNIQUE)")
		s := x.sink(t)
		write(t, s, put(1, "a"), put(2, "b"))
		write(t, s, put(1, "a"), put(2, "c"), put(3, "d"))
		refused(t, s, []onewrite.Event{put(3, "x"), put(4, "a")}, 1)
		x.want(t, "SELECT id, v FROM t ORDER BY id", "1|a", "2|c", "3|x")
	})
}

// TestRights: a missing right is an answer about the event, with what to grant, and
// others pass.
func TestRights(t *testing.T) {
	for _, kind := range []string{sqlsink.Postgres, sqlsink.MySQL} {
		t.Run(kind, func(t *testing.T) {
			x := newTarget(t, kind, false)
			x.exec(t, "CREATE TABLE t (id bigint PRIMARY KEY, v varchar(20))", "CREATE TABLE closed (id bigint PRIMARY KEY)")
			write(t, x.sink(t), put(1, "a"))
			if kind == sqlsink.Postgres {
				role := servers.Postgres(t, 15).NewRole(t)
				x.exec(t, "REVOKE CREATE ON SCHEMA public FROM PUBLIC", "GRANT ALL ON t, onewrite_places TO "+role.Name)
				x.cfg.URL = role.URL(x.cfg.URL)
			} else {
				x.cfg.URL = servers.MariaDB(t).NewUser(t, x.cfg.URL, "SELECT, INSERT, UPDATE")
			}
			s := x.sink(t)
			take(t, s)
			closed := []onewrite.Event{put(2, "b"), ev("c", "closed", row{"id": 1}, nil, row{"id": 1})}
			if kind == sqlsink.MySQL {
				closed[1] = ev("d", "t", row{"id": 1}, row{"id": 1}, nil)
			}
			for _, events := range [][]onewrite.Event{closed, {ev("c", "new", row{"id": 1}, nil, row{"id": 1})}} {
				_, err := s.WriteAt(t.Context(), at(events...), []byte("x"))
				var answered interface{ Answered() bool }
				if !errors.As(err, &answered) || !answered.Answered() || errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "GRANT") && !strings.Contains(err.Error(), "CREATE TABLE") {
					t.Errorf("WriteAt = %v", err)
				}
			}
			if _, err := s.WriteAt(t.Context(), at(put(3, "c")), []byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
}

// outages demands that an error is none about the event.
func outages(t *testing.T, what string, err error) {
	t.Helper()
	var answered interface{ Answered() bool }
	if err == nil || errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrFenced) || errors.As(err, &answered) {
		t.Errorf("%s: %v", what, err)
	}
}

// TestOutages: what passes by itself is no answer about an event.
func TestOutages(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		x := newTarget(t, sqlsink.Postgres, true)
		s := x.sink(t)
		write(t, s, put(1, "a"))
		readonly := x.sink(t, func(c *sqlsink.Config) { c.URL += "&default_transaction_read_only=on" })
		_, err := readonly.Write(t.Context(), []onewrite.Event{put(1, "b")})
		outages(t, "read only", err)
		lock, err := x.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lock.ExecContext(t.Context(), "LOCK TABLE t"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err = s.Write(ctx, []onewrite.Event{put(1, "b")})
		outages(t, "locked", err)
		_ = lock.Rollback()
		write(t, s, put(1, "c"))
		x.pg.Stop(t)
		_, err = s.Write(t.Context(), []onewrite.Event{put(1, "d")})
		outages(t, "stopped", err)
		_, err = s.Write(t.Context(), []onewrite.Event{put(1, "d")})
		outages(t, "still stopped", err)
		_, err = sqlsink.Open(t.Context(), x.cfg)
		outages(t, "open", err)
		u, _ := url.Parse(x.cfg.URL)
		if secret, _ := u.User.Password(); strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), "cure: ") {
			t.Errorf("Open: %v", err)
		}
	})
	t.Run("mysql", func(t *testing.T) {
		x := &target{kind: sqlsink.MySQL, my: servers.NewMariaDB(t, "--max-connections=10", "--innodb-lock-wait-timeout=1")}
		x.cfg = sqlsink.Config{Kind: sqlsink.MySQL, URL: x.my.NewDatabase(t), Destination: "replica"}
		x.open(t, "mysql", dsn(x.cfg.URL))
		s := x.sink(t)
		write(t, s, put(1, "a"))
		lock, err := x.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lock.ExecContext(t.Context(), "UPDATE t SET v = 'locked'"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err = s.Write(ctx, []onewrite.Event{put(1, "b")})
		outages(t, "locked", err)
		_ = lock.Rollback()
		write(t, s, put(1, "c"))
		var many []*sqlsink.Sink
		for err = nil; err == nil && len(many) < 20; {
			var one *sqlsink.Sink
			if one, err = sqlsink.Open(t.Context(), x.cfg); err == nil {
				many = append(many, one)
			}
		}
		outages(t, "too many connections", err)
		for _, one := range many {
			one.Close()
		}
		x.my.Kill(t)
		_, err = s.Write(t.Context(), []onewrite.Event{put(1, "d")})
		outages(t, "killed", err)
		_, err = sqlsink.Open(t.Context(), x.cfg)
		outages(t, "open", err)
		u, _ := url.Parse(x.cfg.URL)
		if secret, _ := u.User.Password(); strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), "cure: ") {
			t.Errorf("Open: %v", err)
		}
		x.my.Start(t)
		write(t, s, put(1, "d"))
	})
	t.Run("sqlite", func(t *testing.T) {
		x := newTarget(t, sqlsink.SQLite, false)
		s := x.sink(t)
		write(t, s, put(1, "a"))
		x.exec(t, "PRAGMA journal_mode") // it is there
		full := x.sink(t)
		write(t, full, put(1, "b"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.Write(ctx, []onewrite.Event{put(1, "c")})
		outages(t, "cancelled", err)
		write(t, s, put(1, "d"))
		x.cfg.Path += "/nowhere/x.db"
		_, err = sqlsink.Open(t.Context(), x.cfg)
		outages(t, "no folder", err)
	})
}

// TestSwappedKeys: rows whose keys a transaction swaps or rotates are both there; one
// that moves away and back is there once.
func TestSwappedKeys(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		s := x.sink(t)
		tx := 0
		move := func(from, to int, v string) []onewrite.Event {
			return []onewrite.Event{ev("d", "t", row{"id": from}, row{"id": from}, nil), ev("c", "t", row{"id": to}, nil, row{"id": to, "v": v})}
		}
		one := func(moves ...[]onewrite.Event) []onewrite.Event {
			tx++
			var events []onewrite.Event
			for _, m := range moves {
				events = append(events, m...)
			}
			for i := range events {
				events[i].Tx = onewrite.Tx{ID: fmt.Sprint(tx), Index: i, Last: i == len(events)-1}
			}
			return events
		}
		write(t, s, put(1, "a"), put(2, "b"), put(3, "c"))
		write(t, s, one(move(1, 2, "a"), move(2, 1, "b"))...)
		x.want(t, "SELECT id, v FROM t ORDER BY id", "1|b", "2|a", "3|c")
		write(t, s, one(move(1, 2, "b"), move(2, 3, "a"), move(3, 1, "c"))...)
		x.want(t, "SELECT id, v FROM t ORDER BY id", "1|c", "2|b", "3|a")
		write(t, s, one(move(1, 9, "c"), move(9, 1, "d"))...) // away and back
		x.want(t, "SELECT id, v FROM t ORDER BY id", "1|d", "2|b", "3|a")
		write(t, s, append(one([]onewrite.Event{put(9, "z")}), one(move(1, 9, "d"), move(9, 1, "z"))...)...) // of the same write
		x.want(t, "SELECT id, v FROM t ORDER BY id", "1|z", "2|b", "3|a", "9|d")
		write(t, s, append(one([]onewrite.Event{ev("d", "t", row{"id": 9}, row{"id": 9}, nil)}), one(move(1, 9, "z"), move(9, 1, "y"))...)...)
		x.want(t, "SELECT id, v FROM t ORDER BY id", "1|y", "2|b", "3|a")
		write(t, s, one([]onewrite.Event{put(5, "e")}, []onewrite.Event{ev("d", "t", row{"id": 5}, row{"id": 5}, nil)}, []onewrite.Event{put(6, "f")})...)
		x.want(t, "SELECT id, v FROM t ORDER BY id", "1|y", "2|b", "3|a", "6|f")
	})
}

// TestTooLarge: what a server does not take for its size is refused, and the rest goes
// on.
func TestTooLarge(t *testing.T) {
	x := &target{kind: sqlsink.MySQL, my: servers.NewMariaDB(t, "--max-allowed-packet=1M")}
	x.cfg = sqlsink.Config{Kind: sqlsink.MySQL, URL: x.my.NewDatabase(t), Destination: "replica"}
	x.open(t, "mysql", dsn(x.cfg.URL))
	s := x.sink(t)
	refused(t, s, []onewrite.Event{put(1, "a"), put(2, strings.Repeat("x", 3<<20)), put(3, "c")}, 1, "max_allowed_packet")
	write(t, s, put(3, "c"), put(4, strings.Repeat(`\`, 700_000))) // larger than that with its escapes
	x.want(t, "SELECT id, length(v) FROM t ORDER BY id", "1|1", "3|1", "4|700000")
}

package storm

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/go-sql-driver/mysql"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/torture/history"
)

// The table of messages is made before onewrite comes, and whatever is written into it,
// for the first time or again, is noted by a trigger in the same transaction.
var tableText = map[string][]string{
	"postgres": {
		`CREATE TABLE onewrite_messages (id text, source text, topic text, "key" text, data text, PRIMARY KEY (id, source))`,
		`CREATE TABLE arrival (n bigserial PRIMARY KEY, id text, data text)`,
		`CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO arrival (id, data) VALUES (NEW.id, NEW.data); RETURN NULL; END $$`,
		`CREATE TRIGGER note AFTER INSERT OR UPDATE ON onewrite_messages FOR EACH ROW EXECUTE FUNCTION note()`,
		`CREATE TABLE healed (at timestamptz)`,
		`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF hashtext(NEW.id) % 150 = 0 AND NOT EXISTS (SELECT FROM healed) THEN RAISE 'refused until the end of the storm' USING ERRCODE = '23514'; END IF; RETURN NEW; END $$`,
	},
	"mysql": {
		"CREATE TABLE onewrite_messages (id VARCHAR(100) NOT NULL, source VARCHAR(100) NOT NULL, topic TEXT, `key` TEXT, data LONGTEXT, PRIMARY KEY (id, source))",
		`CREATE TABLE arrival (n BIGINT AUTO_INCREMENT PRIMARY KEY, id VARCHAR(100), data LONGTEXT)`,
		`CREATE TRIGGER note AFTER INSERT ON onewrite_messages FOR EACH ROW INSERT INTO arrival (id, data) VALUES (NEW.id, NEW.data)`,
		`CREATE TRIGGER again AFTER UPDATE ON onewrite_messages FOR EACH ROW INSERT INTO arrival (id, data) VALUES (NEW.id, NEW.data)`,
	},
	"sqlite": {
		`CREATE TABLE onewrite_messages (id TEXT, source TEXT, topic TEXT, key TEXT, data TEXT, PRIMARY KEY (id, source))`,
		`CREATE TABLE arrival (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, data TEXT)`,
		`CREATE TRIGGER note AFTER INSERT ON onewrite_messages BEGIN INSERT INTO arrival (id, data) VALUES (NEW.id, NEW.data); END`,
		`CREATE TRIGGER again AFTER UPDATE ON onewrite_messages BEGIN INSERT INTO arrival (id, data) VALUES (NEW.id, NEW.data); END`,
	},
}

// table is a database with these tables, and how far it was read.
type table struct {
	*target
	mu    sync.Mutex // guards what follows while the file is exchanged
	db    *sql.DB
	query string
	path  string // of SQLite
	last  int64
}

// openTable reads what the trigger noted. One transaction at a time writes, that of the
// owner of the place, so that the numbers are in the order of the commits.
func openTable(ctx context.Context, t *target) (err error) {
	k := &table{target: t, query: `SELECT n, id, data FROM arrival WHERE n > $1 ORDER BY n LIMIT 2000`}
	address := fmt.Sprintf(`url: "${env:%s}"`, t.env())
	switch t.called {
	case "postgres":
		t.url = t.host.machine.(*servers.PG).URL("postgres")
		k.db, err = openAt(t.url)
	case "mysql":
		if t.url, err = t.host.machine.(*servers.Maria).Make("storm"); err == nil {
			k.db, err = openMySQL(t.url)
		}
		k.query = strings.ReplaceAll(k.query, "$1", "?")
	default:
		k.path, t.was = t.s.path("replica.db"), k
		address = "path: " + strconv.Quote(k.path)
		k.db, err = openFile(k.path)
	}
	if err != nil {
		return err
	}
	t.shut = func() error { return k.db.Close() }
	attempts := ""
	if t.called == "postgres" && t.s.Refuse {
		attempts = "attempts: 3, "
		t.heal = func(ctx context.Context) error { return k.do(ctx, `INSERT INTO healed VALUES (now())`) }
	}
	t.text = fmt.Sprintf("{type: %s, %s, retry: {%sfirst: 10ms, max: 500ms}}", t.called, address, attempts)
	t.lost = []byte("COMMIT")
	t.read = k.look
	if err := k.do(ctx, tableText[t.called]...); err != nil || t.heal == nil {
		return err
	}
	return k.do(ctx, `CREATE TRIGGER refuse BEFORE INSERT ON onewrite_messages FOR EACH ROW EXECUTE FUNCTION refuse()`)
}

func openFile(path string) (*sql.DB, error) {
	return sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(20000)&_pragma=journal_mode(wal)")
}

func (k *table) do(ctx context.Context, list ...string) error {
	for _, q := range list {
		if _, err := k.db.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// look reads what is new.
func (k *table) look(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	list, at, err := k.since(ctx, k.last)
	if err != nil {
		return err
	}
	k.last = at
	return k.got(list...)
}

// since returns what was noted after number n, and the last number.
func (k *table) since(ctx context.Context, n int64) (list []history.Arrival, at int64, err error) {
	rows, err := k.db.QueryContext(ctx, k.query, n)
	if err != nil {
		return nil, n, err
	}
	defer rows.Close()
	for at = n; rows.Next(); {
		var id, data string
		if err := rows.Scan(&at, &id, &data); err != nil {
			return nil, n, err
		}
		a, err := k.arrivalOf(id, []byte(data))
		if err != nil {
			return nil, n, err
		}
		list = append(list, a)
	}
	return list, at, rows.Err()
}

// record replaces what was seen to arrive by what is there at the end, where an older
// copy has been put back: what it had not was to come again.
func (k *table) record(dir string) error {
	if k.s.Olders == 0 {
		return nil
	}
	out, err := history.Create(dir, history.ArrivedFile, k.called)
	if err != nil {
		return err
	}
	for n := int64(0); ; {
		list, at, err := k.since(context.Background(), n)
		if err != nil || len(list) == 0 {
			return errors.Join(err, out.Close())
		}
		for i := range list {
			out.Add(&list[i])
		}
		n = at
	}
}

// older puts an older copy of the table of the sink sqlite in its place, as a restored
// backup does: the sink has forgotten what it had confirmed, and has to get it again.
func (s *storm) older(ctx context.Context, f *history.Fault) error {
	var k *table
	for _, c := range s.sinks {
		if t, is := c.(*target); is && t.was != nil {
			k = t.was
		}
	}
	if k == nil {
		return errors.New("an older copy of a sink needs the sink sqlite")
	}
	if err := s.moves(ctx, k.target, 1); err != nil { // there is a place to forget
		return err
	}
	aside := s.path(fmt.Sprintf("replica-%d.db", s.age.Load()))
	if err := k.do(ctx, "VACUUM INTO '"+aside+"'"); err != nil {
		return err
	}
	had := k.seen()
	for range 3 {
		if err := s.moves(ctx, k.target, had+50); err != nil {
			return err
		}
	}
	p := s.copies[0]
	if err := p.signal(syscall.SIGKILL, true); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	list, _, err := k.since(ctx, k.last) // what nobody has looked at yet
	if err == nil {
		err = errors.Join(k.got(list...), k.db.Close())
	}
	for _, end := range []string{"", "-wal", "-shm"} {
		if e := os.Remove(k.path + end); !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if err = errors.Join(err, os.Rename(aside, k.path)); err != nil {
		return err
	}
	if k.db, err = openFile(k.path); err != nil {
		return err
	}
	if err := k.db.QueryRowContext(ctx, `SELECT coalesce(max(n), 0) FROM arrival`).Scan(&k.last); err != nil {
		return err
	}
	f.On, f.Proof = "the table of sqlite", fmt.Sprintf("it has %d rows of %d; and onewrite was killed", k.last, k.seen())
	s.age.Add(1)
	s.forgot.Add(1)
	s.restarts.Add(1)
	return p.start(s.planned()...)
}

// openMySQL connects to the database of a mysql:// URL.
func openMySQL(url string) (*sql.DB, error) {
	rest := strings.TrimPrefix(url, "mysql://")
	login, host, _ := strings.Cut(rest, "@")
	c := mysql.NewConfig()
	c.User, c.Passwd, _ = strings.Cut(login, ":")
	c.Net = "tcp"
	c.Addr, c.DBName, _ = strings.Cut(host, "/")
	d, err := mysql.NewConnector(c)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(d), nil
}

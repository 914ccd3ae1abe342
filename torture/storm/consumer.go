package storm

import (
	"database/sql"
	"errors"
	"math/rand/v2"
	"sync"

	"github.com/onewrite/onewrite/torture/history"
)

// every is after how many effects the consumer counts its balances.
const every = 200

// consumer stands behind a sink and does what the docs ask of consumers: it
// remembers ids in the transaction of the effect. The effect is a row, and a
// balance that moves.
type consumer struct {
	book
	s      *storm
	sink   string
	log    *history.Log // of arrivals
	checks *history.Log

	turn sync.Mutex // orders the arrivals; guards all below
	rng  *rand.Rand
	db   *sql.DB
	put  [3]*sql.Stmt // the id, the effect, the balance

	events       uint64
	single, open int64          // the amounts of whole and of parted transactions
	half         map[uint64]leg // what has come of a transaction
	coming       map[uint64]int // how many events of it
}

func newConsumer(s *storm, sink string) (_ *consumer, err error) {
	c := &consumer{s: s, sink: sink, half: map[uint64]leg{}, coming: map[uint64]int{}, rng: rand.New(rand.NewPCG(s.Seed, uint64(len(sink))))}
	c.db, err = sql.Open("sqlite", "file:"+s.path("consumer-"+sink+".db")+"?_pragma=journal_mode(wal)&_pragma=synchronous(off)&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	c.db.SetMaxOpenConns(1)
	_, err = c.db.Exec(`CREATE TABLE inbox (id TEXT PRIMARY KEY) WITHOUT ROWID; CREATE TABLE effect (tx INTEGER, i INTEGER);
		CREATE TABLE balance (key TEXT PRIMARY KEY, sum INTEGER NOT NULL) WITHOUT ROWID`)
	for i, q := range []string{
		`INSERT OR IGNORE INTO inbox VALUES (?)`, `INSERT INTO effect VALUES (?, ?)`,
		`INSERT INTO balance VALUES (?, ?) ON CONFLICT DO UPDATE SET sum = sum + excluded.sum`,
	} {
		if err == nil {
			c.put[i], err = c.db.Prepare(q)
		}
	}
	if err == nil {
		c.log, err = history.Create(s.Dir, history.ArrivedFile, sink)
	}
	if err == nil {
		c.checks, err = history.Create(s.Dir, history.CheckpointFile, sink)
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// take acts once on each event and notes that they arrived. It returns how many
// were new.
func (c *consumer) take(list ...history.Arrival) (fresh int, err error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	tx, err := c.db.Begin()
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	var acted []*history.Arrival
	for i := range list {
		a := &list[i]
		res, err := tx.Stmt(c.put[0]).Exec(a.ID)
		if err != nil {
			return 0, err
		}
		if n, _ := res.RowsAffected(); n == 0 {
			continue
		}
		if _, err := tx.Stmt(c.put[1]).Exec(int64(a.Tx), a.Part); err != nil {
			return 0, err
		}
		if _, err := tx.Stmt(c.put[2]).Exec(a.Key, a.Amount); err != nil {
			return 0, err
		}
		acted = append(acted, a)
	}
	if err := tx.Commit(); err != nil {
		return 0, err
	}
	for i := range list {
		c.log.Add(&list[i])
		c.note(list[i].ID)
	}
	return len(acted), c.count(acted)
}

// count follows what the balances have to add up to, and looks at times.
func (c *consumer) count(acted []*history.Arrival) error {
	before := c.events
	for _, a := range acted {
		c.events++
		if a.Of == 1 {
			c.single += a.Amount
			continue
		}
		l := c.half[a.Tx]
		l.amount += a.Amount
		c.open += a.Amount
		c.half[a.Tx] = l
		if c.coming[a.Tx]++; c.coming[a.Tx] == a.Of {
			c.open -= l.amount
			c.single += l.amount // 0, if the transaction was a transfer
			delete(c.half, a.Tx)
			delete(c.coming, a.Tx)
		}
	}
	if before/every == c.events/every {
		return nil
	}
	var sum int64
	if err := c.db.QueryRow(`SELECT coalesce(sum(sum), 0) FROM balance`).Scan(&sum); err != nil {
		return err
	}
	c.checks.Add(&history.Checkpoint{At: c.s.now(), Events: c.events, Sum: sum, Single: c.single, Open: c.open})
	return nil
}

// settle writes what the consumer did.
func (c *consumer) settle(dir string) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	err := errors.Join(
		dump(c.db, `SELECT tx, i, count(*) FROM effect GROUP BY tx, i`, dir, history.EffectFile, c.sink,
			func(r *sql.Rows) (any, error) { e := &history.Effect{}; return e, r.Scan(&e.Tx, &e.Part, &e.Times) }),
		dump(c.db, `SELECT key, sum FROM balance`, dir, history.BalanceFile, c.sink,
			func(r *sql.Rows) (any, error) { b := &history.Balance{}; return b, r.Scan(&b.Key, &b.Sum) }),
		c.log.Close(), c.checks.Close())
	c.log, c.checks = nil, nil
	return err
}

// dump writes a record for each row of a query.
func dump(db *sql.DB, query, dir, file, sink string, record func(*sql.Rows) (any, error)) error {
	out, err := history.Create(dir, file, sink)
	if err != nil {
		return err
	}
	rows, err := db.Query(query)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	defer rows.Close()
	for rows.Next() {
		r, err := record(rows)
		if err != nil {
			return errors.Join(err, out.Close())
		}
		out.Add(r)
	}
	return errors.Join(rows.Err(), out.Close())
}

func (c *consumer) close() (err error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	for _, l := range []*history.Log{c.log, c.checks} {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}
	return errors.Join(err, c.db.Close())
}

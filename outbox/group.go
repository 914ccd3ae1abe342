package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// maxShared bounds the callers of one shared transaction, and with it the time
// for which the database is locked.
const maxShared = 128

var (
	errClosed     = errors.New("outbox: the group is closed; make a new one")
	errUnfinished = errors.New("outbox: the function did not return")
	errEnded      = errors.New("outbox: a function given to Group.Do ended the shared transaction; " +
		"look whether it was committed, and call neither Commit nor Rollback in it")
	errLost = errors.New("outbox: SQLite rolled the transaction back after an error " +
		"that the function ignored; return such errors")
)

// Group lets concurrent callers share the transactions of an SQLite database.
// SQLite has one writer and each commit waits for the disk, so callers that
// commit one by one wait for each other's disk writes; a Group runs the
// functions one after the other in one transaction, each in its own savepoint,
// and commits once for all of them. It adds no waiting: callers that arrive
// while a commit is under way make up the next one.
//
// The Group keeps no goroutine while nobody calls it. Its statements are
// SQLite's (BEGIN IMMEDIATE); it is of no use for servers, which do this
// themselves.
type Group struct {
	db     *sql.DB
	runner sync.WaitGroup // Add only under mu, and never after closed

	mu      sync.Mutex // guards all below
	queue   []*call
	running bool // a goroutine is in run
	closed  bool
}

// call is one caller of Do. The caller runs his function himself, in his own
// goroutine, when the runner hands him the transaction: so a panic stays his.
type call struct {
	state atomic.Int32
	turn  chan *sql.Tx // the runner hands over the transaction
	ran   chan error   // the caller hands it back
	done  chan error   // the runner tells the outcome
	alone bool         // shares with nobody; the runner's
}

// The states of a call. Both sides leave queued by compare-and-swap.
const (
	queued    int32 = iota
	claimed         // the runner counts on the caller to take his turn
	withdrawn       // the caller went away before his turn
)

// NewGroup returns a Group on db, which stays the caller's. A busy_timeout in
// the data source name lets it wait for writers of other processes.
func NewGroup(db *sql.DB) *Group { return &Group{db: db} }

// Do runs fn in a transaction that it may share with other callers, and
// returns after the commit, when it has called [Ring].
//
//   - nil: committed
//   - fn's error as it is: the effects of fn are undone, those of the other
//     callers are not touched. A panic of fn undoes them too and goes on
//   - ctx's error: ctx ended before fn returned; all is undone. From then on Do
//     waits for the commit whatever ctx says, so that its answer is the truth
//   - any other error: the transaction could not begin, the commit failed, or
//     the Group is closed. A commit that fails for what another caller did is
//     repeated without him.
//
// fn is called in the goroutine of Do, but once more if something in another
// function made SQLite roll back the whole transaction (an interrupted write, a
// full disk, a deferred foreign key). It should be short, as others wait for
// it; it must not end tx, must not use the database but through tx, and must
// not call Do.
func (g *Group) Do(ctx context.Context, fn func(tx *sql.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &call{turn: make(chan *sql.Tx), ran: make(chan error, 1), done: make(chan error, 1)}
	if !g.join(c) {
		return errClosed
	}
	cancelled := ctx.Done()
	for {
		select {
		case tx := <-c.turn:
			c.take(ctx, tx, fn)
		case err := <-c.done:
			return err
		case <-cancelled:
			if c.state.CompareAndSwap(queued, withdrawn) {
				return ctx.Err()
			}
			cancelled = nil // take sees it
		}
	}
}

// Close refuses further calls and returns when those that are waiting have
// their answers. It always returns nil, and may be called again.
func (g *Group) Close() error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.runner.Wait()
	return nil
}

func (g *Group) join(c *call) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.queue = append(g.queue, c)
	if !g.running {
		g.running = true
		g.runner.Add(1)
		go g.run()
	}
	return true
}

// take is the caller's turn. It hands the transaction back in every case, also
// when fn panics.
func (c *call) take(ctx context.Context, tx *sql.Tx, fn func(tx *sql.Tx) error) {
	err := errUnfinished
	defer func() { c.ran <- err }()
	if ctx.Err() != nil {
		err = ctx.Err()
		return
	}
	if err = fn(tx); err == nil {
		err = ctx.Err()
	}
}

// run shares transactions out until nobody waits.
func (g *Group) run() {
	defer g.runner.Done()
	for g.more() {
		g.share()
	}
}

// more forgets those who went away and reports whether anybody is left; if not,
// the runner is over.
func (g *Group) more() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.queue) > 0 && g.queue[0].state.Load() == withdrawn {
		g.queue = g.queue[1:]
	}
	g.running = len(g.queue) > 0
	return g.running
}

// claim takes the next caller out of the queue; nil when nobody waits, or when
// company is true and the next one has to be alone.
func (g *Group) claim(company bool) *call {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.queue) > 0 {
		c := g.queue[0]
		if company && c.alone {
			return nil
		}
		g.queue[0] = nil
		g.queue = g.queue[1:]
		if c.state.CompareAndSwap(queued, claimed) {
			return c
		}
	}
	return nil
}

// again puts callers back, in front, whose work went down with the transaction.
func (g *Group) again(cs []*call, alone bool) {
	for _, c := range cs {
		c.alone = alone
		c.state.Store(queued)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue = append(cs, g.queue...)
}

// share runs one shared transaction.
func (g *Group) share() {
	ctx := context.Background() // it belongs to no single caller
	conn, tx, err := g.begin(ctx)
	if err != nil {
		g.refuse(err)
		return
	}
	defer conn.Close()
	defer tx.Rollback() // closes tx; in the database it has ended by then

	var kept []*call // those whose work is in tx
	for n := 0; n < maxShared; n++ {
		c := g.claim(n > 0)
		if c == nil {
			break
		}
		result, err := c.part(ctx, tx)
		switch result {
		case partKept:
			kept = append(kept, c)
		case partUndone:
			c.done <- err
		case txLost:
			c.done <- err
			g.again(kept, false)
			return
		case txEnded:
			answer(append(kept, c), err)
			return
		}
		if c.alone {
			break
		}
	}
	if len(kept) > 0 {
		g.commit(ctx, tx, kept)
	}
}

// commit ends tx and answers. A commit can fail for what one caller did (a
// deferred foreign key): if it is certain that nothing was written, the callers
// get another transaction each, and so each his own answer.
func (g *Group) commit(ctx context.Context, tx *sql.Tx, kept []*call) {
	_, err := tx.ExecContext(ctx, "COMMIT")
	if err == nil {
		Ring()
		answer(kept, nil)
		return
	}
	_, open := tx.ExecContext(ctx, "ROLLBACK")
	if open == nil && len(kept) > 1 {
		g.again(kept, true)
		return
	}
	answer(kept, fmt.Errorf("outbox: shared commit: %w (correct the data, or try again if the database was busy; "+
		"after a disk error look whether it took place)", err))
}

// refuse answers those who wait now, for whom there is no transaction; those who
// come later may be luckier.
func (g *Group) refuse(err error) {
	g.mu.Lock()
	waiting := g.queue
	g.queue = nil
	g.mu.Unlock()
	for _, c := range waiting {
		if c.state.CompareAndSwap(queued, claimed) {
			c.done <- err
		}
	}
}

func answer(cs []*call, err error) {
	for _, c := range cs {
		c.done <- err
	}
}

// begin opens a transaction that holds the write lock from the start. With
// SQLite's deferred BEGIN the first statements of one caller would decide
// whether another caller may still write.
func (g *Group) begin(ctx context.Context) (*sql.Conn, *sql.Tx, error) {
	conn, err := g.db.Conn(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("outbox: shared transaction: %w (nothing was written; try again)", err)
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err == nil {
		// BeginTx cannot say IMMEDIATE to every driver.
		if _, err = tx.ExecContext(ctx, "ROLLBACK; BEGIN IMMEDIATE"); err != nil {
			_ = tx.Rollback()
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("outbox: shared transaction: %w (nothing was written; try again, "+
			"or set a longer busy_timeout)", err)
	}
	return conn, tx, nil
}

// What became of the transaction after a caller's part.
type result int

const (
	partKept   result = iota // his work is in it
	partUndone               // his work is undone, the others' is untouched
	txLost                   // SQLite rolled all of it back
	txEnded                  // he ended it; nobody knows how
)

// part gives the caller his turn, in a savepoint.
func (c *call) part(ctx context.Context, tx *sql.Tx) (result, error) {
	if _, err := tx.ExecContext(ctx, "SAVEPOINT onewrite_group"); err != nil {
		return txLost, fmt.Errorf("outbox: shared transaction: %w (nothing was written; try again)", err)
	}
	c.turn <- tx
	err := <-c.ran
	end := "RELEASE onewrite_group"
	if err != nil {
		end = "ROLLBACK TO onewrite_group; RELEASE onewrite_group"
	}
	_, endErr := tx.ExecContext(ctx, end)
	switch {
	case errors.Is(endErr, sql.ErrTxDone):
		return txEnded, errEnded
	case endErr != nil && err == nil:
		return txLost, errLost
	case endErr != nil:
		return txLost, err
	case err != nil:
		return partUndone, err
	}
	return partKept, nil
}

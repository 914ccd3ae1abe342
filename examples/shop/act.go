package shop

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// blow is a moment of an act, in per cent of the buyers served, and the
// processes that are killed at it. In the first act there is no onewrite to
// kill.
type blow struct {
	at     int
	victim []string
}

var blows = []blow{
	{15, []string{"service"}},
	{30, []string{"email"}},
	{48, []string{"service", "onewrite"}}, // in the middle of the peak
	{62, []string{"onewrite"}},
	{74, []string{"inventory"}},
	{86, []string{"service", "onewrite"}},
}

// stage is one act: its folder, its database and its processes.
type stage struct {
	*story
	life      context.Context // when it ends, all processes end
	naive     bool
	dir       string
	database  database
	drop      func() error // drops the database; nil if it is a file
	listen    string       // onewrite's address
	addresses map[string]string
	processes map[string]*process // by name: service, onewrite and the consumers
	kills     map[string]int
}

// stage prepares an act: databases, configuration, consumers, onewrite.
func (s *story) stage(ctx context.Context, dir string, naive bool) (st *stage, err error) {
	st = &stage{story: s, life: ctx, naive: naive, dir: dir, addresses: map[string]string{}, processes: map[string]*process{}, kills: map[string]int{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return st, fmt.Errorf("shop: %w", err)
	}
	st.database = database{Path: filepath.Join(dir, "shop.db")}
	if s.Postgres != "" {
		if st.database, st.drop, err = scratch(ctx, s.Postgres); err != nil {
			return st, err
		}
	}
	if err := createShop(ctx, st.database, s.Orders); err != nil {
		return st, err
	}
	for _, c := range consumers {
		if st.addresses[c.name], err = freeAddress(); err != nil {
			return st, err
		}
	}
	if !naive {
		if err := st.setUp(ctx); err != nil {
			return st, err
		}
	}
	for _, c := range consumers {
		if err := st.start(c.name); err != nil {
			return st, err
		}
	}
	if naive {
		return st, nil
	}
	if err := st.start("onewrite"); err != nil {
		return st, err
	}
	return st, awaitReady(ctx, st.processes["onewrite"], dir, st.listen)
}

// setUp writes onewrite's configuration and makes the outbox.
func (st *stage) setUp(ctx context.Context) (err error) {
	if st.listen, err = freeAddress(); err != nil {
		return err
	}
	if err := writeConfig(st.dir, st.database, st.listen, st.addresses); err != nil {
		return err
	}
	return migrate(ctx, st.Self, st.dir, environment(st.database))
}

// start starts a process by its name, for the first time or again.
func (st *stage) start(name string) (err error) {
	switch name {
	case "service":
		s := serviceSettings{Database: st.database, Seed: st.Seed, Orders: st.Orders}
		if st.naive {
			for _, c := range consumers {
				s.Consumers = append(s.Consumers, "http://"+st.addresses[c.name]+"/")
			}
		}
		st.processes[name], _, err = startProcess(st.life, st.Self, s, false, "service")
	case "onewrite":
		st.processes[name], err = startOnewrite(st.life, st.Self, st.dir, environment(st.database), st.Self, "run", "-c", configFile)
	default:
		s := consumerSettings{Name: name, Path: st.storeOf(name), Listen: st.addresses[name], Orders: st.Orders,
			Seed: st.Seed, PeakFrom: st.plan.peakFrom, PeakTo: st.plan.peakTo}
		if !st.naive {
			s.KeyFile = filepath.Join(st.dir, keyFile(name))
		}
		st.processes[name], _, err = startProcess(st.life, st.Self, s, true, "consumer", name)
	}
	if err != nil {
		delete(st.processes, name)
	}
	return err
}

func (st *stage) storeOf(consumer string) string { return filepath.Join(st.dir, consumer+".db") }

// play lets the buyers in, strikes the blows, waits for quiet and counts.
func (st *stage) play(ctx context.Context) (Act, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute+time.Duration(len(st.plan.purchases))*4*pace,
		errors.New("shop: the act takes far too long; is the machine very busy?"))
	defer cancel()
	db, err := st.database.open()
	if err != nil {
		return Act{}, err
	}
	defer db.Close()
	if err := st.start("service"); err != nil {
		return Act{}, err
	}
	if err := st.serveBuyers(ctx, db); err != nil {
		return Act{}, err
	}
	if !st.naive {
		if err := st.awaitQuiet(ctx, db); err != nil {
			return Act{}, err
		}
	}
	a, err := st.count(ctx, db)
	a.Seconds = time.Since(start).Seconds()
	st.show.done(st.naive, a)
	return a, err
}

// serveBuyers watches the service's database and kills on the way, until the
// service has served everybody.
func (st *stage) serveBuyers(ctx context.Context, db *sql.DB) error {
	next, total := 0, len(st.plan.purchases)
	for {
		served, err := number(ctx, db, `SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM refusals)`)
		if err != nil {
			return because(ctx, err)
		}
		st.show.progress(st.naive, served, total, st.kills)
		if next < len(blows) && served*100 >= blows[next].at*total && served < total {
			if err := st.strike(ctx, blows[next]); err != nil {
				return err
			}
			next++
			continue
		}
		service := st.processes["service"]
		select {
		case <-service.done:
			if service.err != nil {
				return because(ctx, service.failure())
			}
			return nil
		case <-ctx.Done():
			return because(ctx, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
		if err := st.allAlive(); err != nil {
			return because(ctx, err)
		}
	}
}

// strike kills, and starts again at once.
func (st *stage) strike(ctx context.Context, b blow) error {
	var struck []string
	for _, name := range b.victim {
		p := st.processes[name]
		if p == nil { // no onewrite in the first act
			continue
		}
		if p.kill() {
			st.kills[kindOf(name)]++
		}
		struck = append(struck, name)
	}
	for _, name := range struck {
		if err := st.start(name); err != nil {
			return because(ctx, err)
		}
	}
	return nil
}

func kindOf(process string) string {
	if _, err := consumerNamed(process); err == nil {
		return "consumer"
	}
	return process
}

// allAlive finds a process that has ended by itself.
func (st *stage) allAlive() error {
	for name, p := range st.processes {
		if name == "service" {
			continue
		}
		select {
		case <-p.done:
			if name == "onewrite" {
				return fmt.Errorf("shop: onewrite run has ended: %s", logTail(st.dir))
			}
			return p.failure()
		default:
		}
	}
	return nil
}

// awaitQuiet waits until every consumer has seen the last event of every
// customer. It does not ask onewrite, which is what is on trial. If nothing
// arrives any more at one of them, what is missing is counted as missing.
func (st *stage) awaitQuiet(ctx context.Context, db *sql.DB) error {
	customers, err := number(ctx, db, `SELECT count(*) FROM customers`)
	if err != nil {
		return because(ctx, err)
	}
	for _, c := range consumers {
		if err := st.awaitClosed(ctx, c.name, customers); err != nil {
			return because(ctx, err)
		}
	}
	return nil
}

func (st *stage) awaitClosed(ctx context.Context, consumer string, customers int) error {
	store, err := openReadOnly(st.storeOf(consumer))
	if err != nil {
		return err
	}
	defer store.Close()
	before, deadline := -1, time.Time{}
	for {
		closed, err := number(ctx, store, `SELECT count(*) FROM closed`)
		if err != nil {
			return err
		}
		arrived, err := number(ctx, store, `SELECT count(*) FROM inbox`)
		if err != nil {
			return err
		}
		if arrived > before {
			before, deadline = arrived, time.Now().Add(st.patience)
		}
		st.show.quiet(consumer, closed, customers)
		if closed == customers || time.Now().After(deadline) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if err := st.allAlive(); err != nil {
			return err
		}
	}
}

// because gives the reason why ctx ended in the place of what came of it.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// count reads the service's database and the consumers' stores.
func (st *stage) count(ctx context.Context, db *sql.DB) (a Act, err error) {
	a.Kills = st.kills
	truth, err := truthOf(ctx, db)
	if err != nil {
		return a, err
	}
	a.Committed = len(truth)
	for _, o := range truth {
		if o.Item == console {
			a.Consoles++
		}
	}
	if a.RolledBack, err = number(ctx, db, `SELECT count(*) FROM refusals`); err != nil {
		return a, err
	}
	for _, c := range consumers {
		if err := st.countConsumer(ctx, c.name, truth, &a); err != nil {
			return a, err
		}
	}
	return a, nil
}

func (st *stage) countConsumer(ctx context.Context, name string, truth []order, a *Act) error {
	store, err := openReadOnly(st.storeOf(name))
	if err != nil {
		return err
	}
	defer store.Close()
	t, err := tally(ctx, name, store, truth, stock(st.Orders))
	if err != nil {
		return err
	}
	a.Tallies = append(a.Tallies, t)
	faults, err := number(ctx, store, `SELECT count(*) FROM faults`)
	if err != nil {
		return fmt.Errorf("%w (%s)", err, name)
	}
	repeats, err := number(ctx, store, `SELECT coalesce(sum(times - 1), 0) FROM inbox`)
	if err != nil {
		return fmt.Errorf("%w (%s)", err, name)
	}
	a.Faults += faults
	a.Repeats += repeats
	return nil
}

// stop ends the act's processes, all at once.
func (st *stage) stop() {
	for _, p := range st.processes {
		p.stdin.Close()
	}
	for _, p := range st.processes {
		p.stop()
	}
}

// end stops what is left and drops the database if it is to go. A stage that
// was never set up has nothing to end.
func (st *stage) end(keep bool) error {
	if st == nil {
		return nil
	}
	st.stop()
	if st.drop == nil || keep {
		return nil
	}
	return st.drop()
}

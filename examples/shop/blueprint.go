package shop

import (
	"context"
	"database/sql"
	_ "embed" // the configuration
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// The blueprint is the whole picture on real servers, `make shop`:
//
//	order service -> PostgreSQL -> onewrite -> RabbitMQ -> inventory, email, analytics
//	                                        -> Kafka    -> search, fraud
//
// blueprint/onewrite.yaml is what onewrite runs with, blueprint_service.go the service,
// blueprint_consumers.go the consumers. blueprint/main.go starts the servers.

//go:embed blueprint/onewrite.yaml
var blueprintConfig []byte

// BlueprintOptions steer [Blueprint].
type BlueprintOptions struct {
	// Dir is an existing, empty folder; what was recorded stays there.
	Dir string
	// Seed decides on the buyers; 0 means 1.
	Seed uint64
	// Orders is the number of ordinary orders, Pace how often a buyer comes.
	Orders int
	Pace   time.Duration
	// Patience is how long nothing may arrive anywhere while something is missing.
	Patience time.Duration
	// Out gets the progress.
	Out io.Writer
	// Self is a program that calls [BlueprintChild] for the command demo-child;
	// Onewrite is the path of onewrite.
	Self, Onewrite string
	// Postgres is the URL of a superuser of a server that holds nothing else.
	Postgres string
	// RabbitMQ and Kafka are the brokers.
	RabbitMQ, Kafka Broker
}

// Broker is a server that is stopped and started in the middle of the load.
type Broker struct {
	// Address is a URL, or host and port.
	Address string
	// Down ends the server and Up starts it again, with the data that it had.
	Down, Up func() error
}

// blueprint is one run.
type blueprint struct {
	BlueprintOptions
	life      context.Context // when it ends, all processes end
	end       context.CancelCauseFunc
	begin     time.Time
	app       database // as the order service sees it
	env       []string // of onewrite
	listen    string   // its address
	processes map[string]*process
	outages   sync.WaitGroup // of the brokers, under way
	downSince time.Time      // of the consumer that stays away

	mu     sync.Mutex // faults and Out, which the outages use too
	faults map[string]Fault
}

// Blueprint runs the load with its faults, waits until everything has arrived, and
// counts. The error is about the run itself; [BlueprintReport.Verdict] is about what
// was found. Whatever the outcome, no process remains of those that it started.
func Blueprint(ctx context.Context, o BlueprintOptions) (BlueprintReport, error) {
	if o.Orders < 100 {
		return BlueprintReport{}, fmt.Errorf("shop: %d orders are too few to prove anything; use 100 or more", o.Orders)
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	life, end := context.WithCancelCause(ctx)
	b := &blueprint{BlueprintOptions: o, life: life, end: end, begin: time.Now(), processes: map[string]*process{}, faults: map[string]Fault{}}
	err := because(life, b.play(life))
	end(nil)
	b.stop()
	b.outages.Wait()
	if err != nil {
		return BlueprintReport{}, err
	}
	return RecountBlueprint(context.WithoutCancel(ctx), o.Dir)
}

// play is the run, from the empty database to the record of what was committed.
func (b *blueprint) play(ctx context.Context) error {
	owner, app, relay, err := prepareShop(ctx, b.Postgres, b.Orders)
	if err != nil {
		return err
	}
	b.app = app
	b.env = []string{"SHOP_DATABASE_URL=" + relay.URL, "SHOP_RABBITMQ_URL=" + b.RabbitMQ.Address, "SHOP_KAFKA_BROKER=" + b.Kafka.Address}
	if err := os.WriteFile(filepath.Join(b.Dir, configFile), blueprintConfig, 0o600); err != nil {
		return fmt.Errorf("shop: %w", err)
	}
	// The owner of the database makes the outbox; onewrite itself may not.
	asOwner := append(append([]string(nil), b.env...), "SHOP_DATABASE_URL="+owner.URL)
	if err := migrate(ctx, b.Onewrite, b.Dir, asOwner); err != nil {
		return err
	}
	if b.listen, err = freeAddress(); err != nil {
		return err
	}
	for _, s := range subscribers {
		if err := b.run(s.name); err != nil {
			return err
		}
	}
	if err := b.run("onewrite"); err != nil {
		return err
	}
	if err := awaitReady(ctx, b.processes["onewrite"], b.Dir, b.listen); err != nil {
		return err
	}
	b.say("onewrite and the five consumers run")
	if err := b.run("service"); err != nil {
		return err
	}
	db, err := app.open()
	if err != nil {
		return err
	}
	defer db.Close()
	if err := b.serveBuyers(ctx, db); err != nil {
		return err
	}
	return b.finish(ctx, db)
}

// run starts a process by its name, for the first time or again.
func (b *blueprint) run(name string) (err error) {
	switch name {
	case "service":
		set := orderSettings{Database: b.app, Seed: b.Seed, Orders: b.Orders, Pace: b.Pace}
		b.processes[name], _, err = startProcess(b.life, b.Self, set, false, "orders")
	case "onewrite":
		b.processes[name], err = startOnewrite(b.life, b.Self, b.Dir, b.env, b.Onewrite, "run", "-c", configFile, "--listen", b.listen)
	default:
		set := subscriberSettings{Name: name, Path: storeIn(b.Dir, name), Address: b.RabbitMQ.Address, Orders: b.Orders}
		if brokerOf(name) == kafka {
			set.Address = b.Kafka.Address
		}
		b.processes[name], _, err = startProcess(b.life, b.Self, set, true, "subscriber", name)
	}
	if err != nil {
		delete(b.processes, name)
	}
	return err
}

func storeIn(dir, consumer string) string { return filepath.Join(dir, consumer+".db") }

func brokerOf(consumer string) string {
	for _, s := range subscribers {
		if s.name == consumer {
			return s.broker
		}
	}
	return ""
}

// serveBuyers makes the faults on the way until the service has served everybody.
func (b *blueprint) serveBuyers(ctx context.Context, db *sql.DB) error {
	total, next, said := len(newPlan(b.Seed, b.Orders).purchases), 0, time.Now()
	for {
		served, err := number(ctx, db, `SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM refusals)`)
		if err != nil {
			return err
		}
		for next < len(mishaps) && served*100 >= mishaps[next].at*total {
			if err := mishaps[next].happen(b); err != nil {
				return err
			}
			next++
		}
		if time.Since(said) >= 5*time.Second {
			said = time.Now()
			b.say("%s of %s buyers served", thousands(served), thousands(total))
		}
		select {
		case <-b.processes["service"].done:
			if err := b.processes["service"].err; err != nil {
				return b.processes["service"].failure()
			}
			if next < len(mishaps) {
				continue // the last of them took their time: now all have been served
			}
			b.say("all %s buyers served", thousands(total))
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if err := b.allAlive(); err != nil {
			return err
		}
	}
}

// allAlive finds a process that has ended by itself.
func (b *blueprint) allAlive() error {
	for name, p := range b.processes {
		select {
		case <-p.done:
		default:
			continue
		}
		switch name {
		case "service":
		case "onewrite":
			return fmt.Errorf("shop: onewrite run has ended: %s", logTail(b.Dir))
		default:
			return p.failure()
		}
	}
	return nil
}

// finish waits until everybody has what was committed and nothing more comes, and
// writes down what there is to compare with.
func (b *blueprint) finish(ctx context.Context, db *sql.DB) error {
	b.outages.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	rec := record{Seed: b.Seed, Orders: b.Orders, Faults: b.faults}
	var err error
	if rec.Truth, err = truthOf(ctx, db); err != nil {
		return err
	}
	if rec.RolledBack, err = number(ctx, db, `SELECT count(*) FROM refusals`); err != nil {
		return err
	}
	customers, err := number(ctx, db, `SELECT count(*) FROM customers`)
	if err != nil {
		return err
	}
	if err := b.awaitAll(ctx, len(rec.Truth), customers); err != nil {
		return err
	}
	rec.Seconds = time.Since(b.begin).Seconds()
	return rec.write(b.Dir)
}

// awaitAll waits until each consumer has seen as many events as were committed for it,
// and then until nothing has come for three seconds: what is doubled comes last. It
// does not ask onewrite, which is what is on trial. If nothing comes any more, what is
// missing is counted as missing.
func (b *blueprint) awaitAll(ctx context.Context, orders, customers int) error {
	last, moved, said := -1, time.Now(), time.Now()
	for {
		complete, arrived := true, 0
		var behind []string
		for _, s := range subscribers {
			want := orders + customers // its orders, and that the shop has closed
			if s.name == "search" {
				want = 2 * orders // an order is written, and paid
			}
			seen, came, err := seenBy(ctx, storeIn(b.Dir, s.name))
			if err != nil {
				return err
			}
			if arrived += came; seen < want {
				complete = false
				behind = append(behind, fmt.Sprintf("%s %s", s.name, thousands(want-seen)))
			}
		}
		if arrived != last {
			last, moved = arrived, time.Now()
		}
		quiet := time.Since(moved)
		if complete && quiet > 3*time.Second {
			b.say("everything has arrived")
			return nil
		}
		if quiet > b.Patience {
			b.say("nothing came for %.0f s; not arrived: %s", quiet.Seconds(), strings.Join(behind, ", "))
			return nil
		}
		if !complete && time.Since(said) > 5*time.Second {
			said = time.Now()
			b.say("not arrived yet: %s", strings.Join(behind, ", "))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if err := b.allAlive(); err != nil {
			return err
		}
	}
}

// seenBy tells how many events a consumer has seen, and how many messages came.
func seenBy(ctx context.Context, store string) (seen, came int, err error) {
	db, err := openReadOnly(store)
	if err != nil {
		return 0, 0, err
	}
	defer db.Close()
	if seen, err = number(ctx, db, `SELECT count(*) FROM inbox`); err != nil {
		return 0, 0, err
	}
	came, err = number(ctx, db, `SELECT coalesce(sum(times), 0) FROM inbox`)
	return seen, came, err
}

// say prints a line with the time since the start.
func (b *blueprint) say(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintf(b.Out, "%6.1f s  %s\n", time.Since(b.begin).Seconds(), fmt.Sprintf(format, args...))
}

// stop ends all processes, at once.
func (b *blueprint) stop() {
	for _, p := range b.processes {
		p.stdin.Close()
	}
	for _, p := range b.processes {
		p.stop()
	}
}

// BlueprintChild is the body of the processes that [Blueprint] starts, as [Child] is
// of the demo's.
func BlueprintChild(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	return child(ctx, args, stdin, map[string]func(context.Context, []byte) error{
		"orders": func(ctx context.Context, line []byte) error {
			return with(line, func(s orderSettings) error { return takeOrders(ctx, s) })
		},
		"subscriber": func(ctx context.Context, line []byte) error {
			return with(line, func(s subscriberSettings) error { return subscribe(ctx, s, stdout) })
		},
		"keeper": func(ctx context.Context, line []byte) error {
			return with(line, func(s keeperSettings) error { return keep(ctx, s, stdout) })
		},
	})
}

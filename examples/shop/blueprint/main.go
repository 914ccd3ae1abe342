// Command blueprint runs the whole picture of examples/shop on real servers, which it
// starts on the loopback: PostgreSQL, RabbitMQ and Kafka. `make shop` builds and runs
// it. The story is in blueprint.go of package shop; here are the servers and the flags.
//
// Exit code 0: nothing is missing, twice, out of order or invented. 1: something is, or
// the run could not be made; 130: interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/onewrite/onewrite/examples/shop"
	"github.com/onewrite/onewrite/internal/servers"
)

func main() { os.Exit(mainCode()) }

func mainCode() int {
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "demo-child" { // a process of the story: it ends with its parent
		signal.Ignore(os.Interrupt)
		if err := shop.BlueprintChild(context.Background(), args[1:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, args, os.Stdout, os.Stderr)
}

// run is the program, for tests too.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o shop.BlueprintOptions
	var count string
	f := flag.NewFlagSet("blueprint", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.Onewrite, "onewrite", "bin/onewrite", "the `program` onewrite")
	f.StringVar(&o.Dir, "dir", "", "an empty `folder` where the stores stay; default: a temporary one")
	f.StringVar(&count, "count", "", "start nothing: count again what a run has left in this `folder`")
	f.Uint64Var(&o.Seed, "seed", 1, "the buyers follow from it")
	f.IntVar(&o.Orders, "orders", 10_000, "ordinary orders to place")
	f.DurationVar(&o.Pace, "pace", 6*time.Millisecond, "a buyer comes so often")
	f.DurationVar(&o.Patience, "patience", time.Minute, "how long nothing may arrive while something is missing")
	if err := f.Parse(args); err != nil {
		return 2
	}
	o.Out = stdout
	report, err := tell(ctx, o, count)
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "blueprint: interrupted; nothing of it runs any more")
		return 130
	}
	if err == nil {
		if err = report.Write(stdout); err == nil {
			err = report.Verdict()
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, "blueprint:", err)
		return 1
	}
	return 0
}

// tell counts a run that has been, or makes one.
func tell(ctx context.Context, o shop.BlueprintOptions, count string) (r shop.BlueprintReport, err error) {
	if count != "" {
		return shop.RecountBlueprint(ctx, count)
	}
	remove, err := folder(&o.Dir)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if o.Onewrite, err = filepath.Abs(o.Onewrite); err != nil {
		return r, err
	}
	if _, err := os.Stat(o.Onewrite); err != nil {
		return r, fmt.Errorf("%w; make build makes it, --onewrite names another one", err)
	}
	if o.Self, err = os.Executable(); err != nil {
		return r, err
	}
	fmt.Fprintln(o.Out, "PostgreSQL, RabbitMQ and Kafka start on the loopback ...")
	stop, err := start(&o)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil || ctx.Err() != nil {
		return r, err
	}
	return shop.Blueprint(ctx, o)
}

// folder makes the folder of the run, and one to remove if none is named.
func folder(dir *string) (remove func() error, err error) {
	if *dir == "" {
		*dir, err = os.MkdirTemp("", "onewrite-blueprint-")
		made := *dir
		return func() error { return os.RemoveAll(made) }, err
	}
	if *dir, err = filepath.Abs(*dir); err == nil {
		err = os.MkdirAll(*dir, 0o700)
	}
	if list, err := os.ReadDir(*dir); err == nil && len(list) > 0 {
		return nil, fmt.Errorf("the folder %s is not empty; name another one", *dir)
	}
	return func() error { return nil }, err
}

// start starts the three servers. stop ends those that were started and removes what
// they held; a watcher does it should this process be killed.
func start(o *shop.BlueprintOptions) (stop func() error, err error) {
	var pg *servers.PG
	var rabbit *servers.Rabbit
	var kafka *servers.KafkaServer
	var g errgroup.Group
	g.Go(func() (err error) {
		// As onewrite doctor would have it.
		pg, err = servers.Launch(18, servers.Set("max_prepared_transactions", "0"), servers.Set("max_slot_wal_keep_size", "20GB"))
		return err
	})
	g.Go(func() (err error) { rabbit, err = servers.LaunchRabbitMQ(); return err })
	g.Go(func() (err error) { kafka, err = servers.LaunchKafka(); return err })
	err = g.Wait()
	stop = func() error {
		var g errgroup.Group
		if pg != nil {
			g.Go(pg.Shutdown)
		}
		if rabbit != nil {
			g.Go(rabbit.Shutdown)
		}
		if kafka != nil {
			g.Go(kafka.Shutdown)
		}
		return g.Wait()
	}
	if err != nil {
		return stop, err
	}
	o.Postgres = pg.URL("")
	o.RabbitMQ = shop.Broker{Address: rabbit.URL(), Down: rabbit.Stop, Up: rabbit.Start}
	o.Kafka = shop.Broker{Address: kafka.Addr(), Down: kafka.Strike, Up: kafka.Revive}
	return stop, nil
}

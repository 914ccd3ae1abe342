package shop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Options steer the demo. The zero value of all but Out and Self is sensible.
type Options struct {
	// Dir is the folder to work in; it is made if missing, must be empty, and
	// stays. Empty: a temporary folder that is removed at the end, unless Keep.
	Dir string
	// Postgres is the URL of a PostgreSQL server for the order service. The
	// demo makes databases of its own on it and drops them at the end, unless
	// Keep; the role needs CREATEDB. Empty: SQLite.
	Postgres string
	// Seed decides on the buyers and the faults; 0 means 1.
	Seed uint64
	// Orders is the number of ordinary orders, at least 100; 0 means 3,000.
	Orders int
	// Keep leaves the second act running until ctx ends, and its data for ever.
	Keep bool
	// JSON writes nothing to Out: the caller prints the report.
	JSON bool
	// Out gets the progress and the table. On a terminal one line changes.
	Out io.Writer
	// Self is the path of the onewrite program: it is started for every process
	// of the story.
	Self string

	// patience is how long nothing may arrive at a consumer that still misses
	// something; 30 s. Tests that make it miss something have less.
	patience time.Duration
}

func (o *Options) normalise() error {
	if o.Orders == 0 {
		o.Orders = 3000
	}
	if o.Orders < 100 {
		return fmt.Errorf("shop: %d orders are too few to prove anything; use --orders 100 or more", o.Orders)
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	if o.Self == "" {
		return errors.New("shop: the path of the onewrite program is not known; set Options.Self")
	}
	if o.patience == 0 {
		o.patience = 30 * time.Second
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	return nil
}

// story is one run of the demo.
type story struct {
	Options
	plan plan
	show *screen
}

// Demo tells the story and returns what was found. [Report.Verdict] says whether it
// went as it should: real damage in the first act, none in the second.
//
// The error is about the demo itself: it could not start, was interrupted (then
// it is ctx's), or a process ended by itself. Whatever the outcome, no process
// remains, and nothing of the disk but what [Options] says.
func Demo(ctx context.Context, o Options) (Report, error) {
	if err := o.normalise(); err != nil {
		return Report{}, err
	}
	start := time.Now()
	dir, remove, err := folder(o.Dir, o.Keep)
	if err != nil {
		return Report{}, err
	}
	s := &story{Options: o, plan: newPlan(o.Seed, o.Orders), show: newScreen(o.Out, o.JSON)}
	r := Report{Seed: o.Seed, Orders: s.plan.orders, Database: database{URL: o.Postgres}.name()}
	s.show.opening(s.plan, r)
	// Whatever way the story ends, its processes end first, then its databases
	// and its folder go.
	ctx, cancel := context.WithCancel(ctx)
	var one, two *stage
	finish := func(err error) (Report, error) {
		cancel()
		return r, errors.Join(err, one.end(o.Keep), two.end(o.Keep), remove())
	}
	if one, err = s.stage(ctx, filepath.Join(dir, "naive"), true); err != nil {
		return finish(err)
	}
	if r.Naive, err = one.play(ctx); err != nil {
		return finish(err)
	}
	one.stop()
	if two, err = s.stage(ctx, filepath.Join(dir, "onewrite"), false); err != nil {
		return finish(err)
	}
	if r.Onewrite, err = two.play(ctx); err != nil {
		return finish(err)
	}
	r.Seconds = time.Since(start).Seconds()
	r.judge()
	err = s.show.closing(r)
	if o.Keep && err == nil {
		s.show.kept(dir, two.listen, one.database, two.database)
		<-ctx.Done()
	}
	return finish(err)
}

// folder makes the folder to work in; remove takes it away if it is to go.
func folder(dir string, keep bool) (path string, remove func() error, err error) {
	stays := func() error { return nil }
	if dir == "" {
		path, err := os.MkdirTemp("", "onewrite-demo-")
		if err != nil {
			return "", nil, fmt.Errorf("shop: %w", err)
		}
		if keep {
			return path, stays, nil
		}
		return path, func() error { return os.RemoveAll(path) }, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("shop: %w", err)
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return "", nil, fmt.Errorf("shop: %w", err)
	}
	if len(list) > 0 {
		return "", nil, fmt.Errorf("shop: the folder %s is not empty; name another one", dir)
	}
	path, err = filepath.Abs(dir)
	return path, stays, err
}

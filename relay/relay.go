// Package relay runs onewrite: it builds sources, bus and destinations from a
// configuration and keeps them running. The program and applications that embed
// onewrite call the same [New] and [Relay.Run].
//
// It is the only package that sees adapters of both sides.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/retention"
	"github.com/onewrite/onewrite/pipeline"
)

// The configuration, as one YAML file holds it; embedding programs fill the
// structs and call Config.Validate. See package internal/config for the fields,
// which docs/configuration.md describes.
type (
	Config        = config.Config
	Source        = config.Source
	Destination   = config.Destination
	Bus           = config.Bus
	Keep          = config.Keep
	Roles         = config.Roles
	Retry         = config.Retry
	Batch         = config.Batch
	Roll          = config.Roll
	TLS           = config.TLS
	Log           = config.Log
	Import        = config.Import
	ImportColumns = config.ImportColumns
	Size          = config.Size
	Secret        = config.Secret
	Problem       = config.Problem
	Problems      = config.Problems
)

// Load reads and checks the configuration in a file; warnings are problems that do
// not keep it from being used. The error is [Problems], with file, line and field, or
// says why the file cannot be read.
func Load(path string) (cfg *Config, warnings Problems, err error) {
	return config.Load(path, checks...)
}

// NewSecret makes a secret of a text.
func NewSecret(text string) Secret { return config.NewSecret(text) }

// Options are what a relay needs beside its configuration.
type Options struct {
	// ConfigPath is the file that Reload reads again; empty: Reload refuses.
	ConfigPath string
	// Listen, if set, is the address in force whatever the file says.
	Listen string
	// Version is shown in the status.
	Version string
	// Log gets what happens; nil is silent.
	Log *slog.Logger
	// Listening, if set, is called with the address that the API listens on.
	Listening func(addr string)
	// Observe is told what happens, beside the metrics.
	Observe pipeline.Observer
}

// Relay is one running instance.
type Relay struct {
	opts    Options
	log     *slog.Logger
	started time.Time
	invalid error // why it cannot run
	metrics *dashboard.Metrics
	observe pipeline.Observer

	mu           sync.Mutex // guards what Reload changes
	cfg          *Config
	bus          bus
	ctx          context.Context // ends when the relay stops
	sources      map[string]*source
	destinations map[string]*destination
	orphans      map[string]*orphan
	usage        dashboard.Bus
	kept         map[string]retention.Usage // of each log, as the bus told last
	measured     time.Time                  // when the bus told that of all logs
	up           bool                       // all is started
	warnings     map[string]string          // by subject, said aloud in the status

	reloading sync.Mutex // one reload at a time
}

type source struct {
	*pipeline.Ingest
	done      chan struct{}
	importing map[string]int                // rows that wait, by import; -1: not known
	snapshots map[string]dashboard.Snapshot // under way, by table
}

type destination struct {
	*pipeline.Delivery
	cfg  config.Destination
	stop context.CancelFunc
	done chan struct{}
}

// halt stops the delivery and waits until it is drained.
func (d *destination) halt() {
	d.stop()
	<-d.done
}

// New returns a relay for a configuration, of which it works on a copy. What is wrong
// with it is what Run returns.
func New(cfg *Config, opts Options) *Relay {
	own := *cfg
	invalid := own.Validate(checks...)
	cfg = &own
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Relay{opts: opts, log: log, cfg: cfg, invalid: invalid, started: time.Now(),
		sources: map[string]*source{}, destinations: map[string]*destination{},
		orphans: map[string]*orphan{}, kept: map[string]retention.Usage{}, warnings: map[string]string{}}
	r.metrics = dashboard.NewMetrics(func() dashboard.Status { return r.Status(context.Background()) })
	r.observe = tee(r.metrics.Observer(), opts.Observe)
	return r
}

// Run is [New] and [Relay.Run] in one call, for applications that embed onewrite.
func Run(ctx context.Context, cfg *Config, opts Options) error { return New(cfg, opts).Run(ctx) }

// Handler returns the HTTP face, for applications that serve it themselves.
func (r *Relay) Handler() http.Handler {
	return dashboard.Handler(dashboard.Options{Control: r, Metrics: r.metrics.Gatherer(), Token: r.cfg.Token.Reveal(), Log: r.log})
}

// Run moves events until ctx ends, drains and returns nil. An error says why
// the relay could not start or go on, with the cure; [Problems] that the configuration
// is wrong.
func (r *Relay) Run(ctx context.Context) error {
	if r.invalid != nil {
		return r.invalid
	}
	bus, err := openBus(ctx, r.cfg, r.log, r.vanished, r.damaged)
	if err != nil {
		return err
	}
	defer func() {
		if err := bus.Close(); err != nil {
			r.log.Warn("close the bus", "error", err)
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.mu.Lock()
	r.bus, r.ctx = bus, ctx
	r.usage = dashboard.Bus{ID: bus.ID(), Embedded: !bus.Durable(), MaxBytes: int64(r.cfg.Bus.MaxSize), Unknown: true}
	r.mu.Unlock()
	if err := r.findOrphans(ctx); err != nil {
		return err
	}
	r.reloading.Lock() // a reload before all is started would find no destination
	face, err := r.listen(cancel)
	if err != nil {
		r.reloading.Unlock()
		return err
	}
	r.mu.Lock()
	for name, c := range r.cfg.Destinations {
		r.startDestination(name, c)
	}
	for name, c := range r.cfg.Sources {
		r.startSource(name, c)
	}
	r.up = true
	r.mu.Unlock()
	r.reloading.Unlock()

	r.keepHouse(ctx)

	r.log.Info("stopping, what is under way is finished first")
	r.mu.Lock()
	sources, destinations := slices.Collect(maps.Values(r.sources)), slices.Collect(maps.Values(r.destinations))
	r.mu.Unlock()
	for _, s := range sources {
		<-s.done
	}
	for _, d := range destinations {
		<-d.done
	}
	face.close()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// config returns the configuration in force.
func (r *Relay) config() *Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cfg
}

// startSource starts one ingest; r.mu is held.
func (r *Relay) startSource(name string, c config.Source) {
	s := &source{done: make(chan struct{}), importing: map[string]int{}, snapshots: map[string]dashboard.Snapshot{}}
	known := &postgres.Known{}
	in := &pipeline.Ingest{
		Name: name, Bus: r.bus, AckDurable: r.bus.Durable(), Observe: r.observe, Log: r.log,
		Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
			return openSource(ctx, name, c, r.bus.ID(), pos, r.log.With("source", name), known, func(what, problem string) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.warn("source "+name+" "+what, problem)
			}, func(what string, rows int) {
				r.mu.Lock()
				defer r.mu.Unlock()
				s.importing[what] = rows
			}, func(table string, now *dashboard.Snapshot) {
				r.mu.Lock()
				defer r.mu.Unlock()
				if delete(s.snapshots, table); now != nil {
					s.snapshots[table] = *now
				}
			})
		},
	}
	r.metrics.Source(name)
	s.Ingest = in
	r.sources[name] = s
	ctx := r.ctx
	go func() {
		defer close(s.done)
		_ = in.Run(ctx) // it returns when ctx ends, with nil
	}()
}

// startDestination starts one delivery; r.mu is held.
func (r *Relay) startDestination(name string, c config.Destination) {
	d := newDelivery(name, c, r.cfg, slices.Sorted(maps.Keys(r.cfg.Sources)), r.log)
	d.Bus, d.Observe, d.Log = r.bus, r.observe, r.log
	r.metrics.Destination(name)
	ctx, stop := context.WithCancel(r.ctx)
	run := &destination{Delivery: d, cfg: c, stop: stop, done: make(chan struct{})}
	r.destinations[name] = run
	delete(r.orphans, name)
	go func() {
		defer close(run.done)
		_ = d.Run(ctx) // it returns when ctx ends, with nil
	}()
}

// warn says something aloud once, and in the status until it is withdrawn with
// an empty text; r.mu is held.
func (r *Relay) warn(subject, text string) {
	if r.warnings[subject] == text {
		return
	}
	if text == "" {
		delete(r.warnings, subject)
		return
	}
	r.warnings[subject] = text
	r.log.Warn(text)
}

// vanished keeps it in the status that a destination misses events for good.
func (r *Relay) vanished(destination, source string, from, to uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warn("vanished "+destination+" "+source, fmt.Sprintf("events %d to %d of source %s vanished from the bus, from outside, before destination %s had got them; those that were still in the outbox come again, the others it misses", from, to, source, destination))
}

// damaged keeps it in the status that the folder of the bus was found damaged. The
// bus has logged it.
func (r *Relay) damaged(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings["damaged "+what] = what
}

// tee calls both observers.
func tee(a, b pipeline.Observer) pipeline.Observer {
	return pipeline.Observer{
		Appended: func(s string, n int, took time.Duration) {
			a.Appended(s, n, took)
			if b.Appended != nil {
				b.Appended(s, n, took)
			}
		},
		Gap: func(s, reason string, healed bool) {
			a.Gap(s, reason, healed)
			if b.Gap != nil {
				b.Gap(s, reason, healed)
			}
		},
		Delivered: func(d string, lag time.Duration) {
			a.Delivered(d, lag)
			if b.Delivered != nil {
				b.Delivered(d, lag)
			}
		},
		Failed: func(d string, err error) {
			a.Failed(d, err)
			if b.Failed != nil {
				b.Failed(d, err)
			}
		},
		Parked: func(d, id, reason string, behind bool) {
			a.Parked(d, id, reason, behind)
			if b.Parked != nil {
				b.Parked(d, id, reason, behind)
			}
		},
	}
}

var pid = os.Getpid()

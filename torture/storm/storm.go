// Package storm runs onewrite under load on real servers, does to it what
// happens to programs, and records everything for [history.Check].
package storm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onewrite/onewrite/torture/history"
)

// Config says what kind of storm it is. The zero value of a field takes the
// default that is named with it.
type Config struct {
	Source  string   // "sqlite", or "postgres-15" with a major version; default sqlite
	Events  int      // committed events to write, at least; default 2,000
	Kills   int      // SIGKILLs of onewrite; default 5
	Terms   int      // SIGTERMs
	Freezes int      // SIGSTOPs, each ended by SIGCONT
	Crashes int      // immediate restarts of PostgreSQL
	Writers int      // default 8; SQLite has one writer at a time
	Seed    uint64   // of everything that is drawn
	Dir     string   // where the run is recorded; made if need be
	Binary  string   // the program
	Env     []string // of the program, beside the environment
	Idle    bool     // onewrite never runs: such a run has to fail
	Log     io.Writer
	Wait    time.Duration // how long all may take to become quiet; default 60 s
}

// configFile is that of the onewrite in a storm, in the folder of the run.
const configFile = "onewrite.yaml"

// keys is the number of accounts, each a key of events.
const keys = 120

// window bounds the events that one sink may get again after one fault: what was
// written and whose place was not stored yet.
const window = 2000

// storm is one run.
type storm struct {
	Config
	start time.Time
	rng   *rand.Rand // of the nemesis; the writers have their own

	db      *database
	program *program
	sinks   []sink

	clients, samples, faults *history.Log

	committed atomic.Int64 // events that writers were told are there
	doubtful  atomic.Int64 // events that may be there
	aborted   atomic.Int64
	restarts  atomic.Int64
	labels    labels
	pace      pace
}

// sink is an independent client that records what arrives.
type sink interface {
	name() string
	kind() history.Kind
	yaml() string // the destination, as flow YAML
	seen() uint64 // different events so far
	has(id string) bool
	settle(dir string) error // writes what is recorded at the end
	close() error
}

// labels counts what has to happen in a run for its green to mean something.
type labels struct {
	mu sync.Mutex
	n  map[string]int
}

func (l *labels) hit(label string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == nil {
		l.n = map[string]int{}
	}
	l.n[label]++
}

func (c *Config) defaults() {
	set := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	set(&c.Events, 2000)
	set(&c.Writers, 8)
	if c.Source == "" {
		c.Source = "sqlite"
	}
	if c.Wait == 0 {
		c.Wait = time.Minute
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
}

// Run runs a storm and judges it. The error is one of the storm itself: a server
// or a writer that failed for no reason of the storm's.
func Run(ctx context.Context, c Config) (*history.Report, error) {
	c.defaults()
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(c.Dir, configFile)); err == nil {
		return nil, fmt.Errorf("%s holds a run already; judge it with: torture check %[1]s, or name another folder with --dir", c.Dir)
	}
	s := &storm{Config: c, start: time.Now(), rng: rand.New(rand.NewPCG(c.Seed, 1))}
	err := s.run(ctx)
	if err = errors.Join(err, s.close()); err != nil {
		return nil, fmt.Errorf("storm in %s: %w", c.Dir, err)
	}
	return history.Check(c.Dir)
}

func (s *storm) now() int64 { return int64(time.Since(s.start)) }

// run is the order of a storm.
func (s *storm) run(ctx context.Context) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	if !s.Idle {
		if err := s.program.start(); err != nil {
			return err
		}
	}
	sampling, stopSampling := context.WithCancel(ctx)
	sampled := make(chan struct{})
	go func() { defer close(sampled); s.sample(sampling) }()
	defer func() { stopSampling(); <-sampled }()

	writing, stopWriting := context.WithCancelCause(ctx)
	defer stopWriting(nil)
	written := make(chan error, 1)
	go func() { written <- s.write(writing) }()
	calm := int64(0)
	if !s.Idle {
		if err := s.torment(ctx, written); err != nil {
			stopWriting(err)
			return err
		}
		calm = s.now()
	} else {
		s.labels.hit("tormented")
	}
	if err := <-written; err != nil {
		return err
	}
	sentinels, err := s.sentinels(ctx)
	if err != nil {
		return err
	}
	quiet := s.await(ctx, sentinels)
	stopSampling()
	<-sampled
	return s.record(ctx, max(calm, 1), quiet)
}

// prepare makes the database, the sinks, the configuration and the logs.
func (s *storm) prepare(ctx context.Context) (err error) {
	if s.db, err = openDatabase(ctx, s.Source, s.Dir); err != nil {
		return err
	}
	hook, err := newHook(s)
	if err != nil {
		return err
	}
	s.sinks = append(s.sinks, hook)
	stream, err := newStream(ctx, s)
	if err != nil {
		return err
	}
	s.sinks = append(s.sinks, stream, newArchive(s))
	if s.program, err = newProgram(s); err != nil {
		return err
	}
	for _, l := range []struct {
		log  **history.Log
		file string
	}{{&s.clients, history.ClientFile}, {&s.samples, history.SampleFile}, {&s.faults, history.FaultFile}} {
		if *l.log, err = history.Create(s.Dir, l.file, ""); err != nil {
			return err
		}
	}
	if err := s.program.command(ctx, "migrate"); err != nil {
		return err
	}
	return s.db.schema(ctx)
}

// await waits until every sink has every sentinel and onewrite says that nothing
// is pending, and returns when; 0 if that did not happen in time.
func (s *storm) await(ctx context.Context, sentinels []string) int64 {
	for end := time.Now().Add(s.Wait); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		all := true
		for _, k := range s.sinks {
			for _, id := range sentinels {
				all = all && k.has(id)
			}
		}
		if s.Idle {
			return 0
		}
		if all && s.program.idle() {
			return s.now()
		}
	}
	return 0
}

// record writes the truth, the ends of the sinks and what kind of run it was.
func (s *storm) record(ctx context.Context, calm, quiet int64) error {
	s.takeSample()
	if err := s.program.stop(); err != nil {
		return err
	}
	repeats := false
	for _, k := range s.sinks {
		if err := k.settle(s.Dir); err != nil {
			return err
		}
		if h, ok := k.(*hook); ok {
			repeats = h.again.Load() > 0
		}
	}
	if repeats {
		s.labels.hit("replay_after_crash")
	}
	if err := s.db.dump(ctx, s.Dir); err != nil {
		return err
	}
	for _, l := range []*history.Log{s.clients, s.samples, s.faults} {
		if err := l.Close(); err != nil {
			return err
		}
	}
	s.clients, s.samples, s.faults = nil, nil, nil
	run := &history.Run{
		Seed: s.Seed, Workload: "W1", Sinks: map[string]history.Kind{}, Window: window, Calm: calm, Quiet: quiet,
		Floors: s.floors(), Labels: s.labels.n, Budget: history.Budget{RSS: 400 << 20, Lag: int64(30 * time.Second)},
	}
	for _, k := range s.sinks {
		run.Sinks[k.name()] = k.kind()
	}
	return run.Save(s.Dir)
}

// floors are the least that this storm must have in it.
func (s *storm) floors() history.Floors {
	f := history.Floors{Committed: s.Events / 3, Aborted: 0.05, Keys: 100, KeyEvents: min(50, s.Events/keys/2), Faults: map[string]int{}}
	for kind, n := range map[string]int{"SIGKILL": s.Kills, "SIGTERM": s.Terms, "SIGSTOP": s.Freezes, "crash": s.Crashes} {
		if n > 0 {
			f.Faults[kind] = n
		}
	}
	if s.Kills > 0 {
		f.Labels = append(f.Labels, "replay_after_crash", "ack_lost_after_persist")
		if s.db.postgres() {
			f.Labels = append(f.Labels, "inversion", "open_across_restart")
		}
	}
	return f
}

// close ends all that runs.
func (s *storm) close() error {
	var errs []error
	if s.program != nil {
		s.program.kill()
	}
	for _, k := range s.sinks {
		errs = append(errs, k.close())
	}
	for _, l := range []*history.Log{s.clients, s.samples, s.faults} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if s.db != nil {
		errs = append(errs, s.db.close())
	}
	return errors.Join(errs...)
}

func (s *storm) say(format string, args ...any) {
	fmt.Fprintf(s.Log, "%7.1fs  "+format+"\n", append([]any{time.Since(s.start).Seconds()}, args...)...)
}

func (s *storm) path(name string) string { return filepath.Join(s.Dir, name) }

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
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/torture/history"
)

// Config says what kind of storm it is. The zero value of a field takes the
// default that is named with it.
type Config struct {
	Source  string      // "sqlite", or "postgres-15" with a major version; default sqlite
	Server  *servers.PG // makes a database in this one instead of starting its own
	Events  int         // committed events to write, at least; default 2,000
	Writers int         // default 8; SQLite has one writer at a time
	Nodes   int         // servers of an external bus; 0 is the embedded one
	Kafka   bool        // the Kafka of Sinks is the bus
	Open    bool        // the embedded bus listens, so that it stores each event as a message of its own
	Copies  int         // of onewrite on one configuration; default 1, more need Nodes
	Backlog int         // events that are written before onewrite starts
	Rate    int         // transactions a second, about; 0: as many as the database takes

	Kills   int      // SIGKILLs of onewrite
	Terms   int      // SIGTERMs
	Freezes int      // SIGSTOPs, each ended by SIGCONT
	Crashes int      // immediate restarts of PostgreSQL
	Nets    int      // faults of the network between onewrite and another program
	Outages int      // times that the webhook cannot be reached for 13 s
	Deaths  int      // SIGKILLs of a server of the external bus, one after the other
	Rounds  int      // times that the copy which works is frozen or cut off, and another takes over
	Lost    int      // answers of the webhook and of the NATS server that are lost, of each at least
	Loses   int      // times that the folder of the embedded bus is lost
	Returns int      // times that it is put back from an older copy
	Flips   int      // times that bytes in it are changed
	Fills   int      // times that its disk is full
	Strikes int      // SIGKILLs of a server that destinations of Sinks write to, each in turn
	Sinks   []string // destinations on real servers, in place of the stream and the file; see Targets
	Olders  int      // times that the table of the sink sqlite is put back from an older copy
	Refuse  bool     // the webhook, and the table of the sink postgres, refuse some events until the end: they are parked, and then delivered
	Pushed  bool     // the outbox is read from the log (outbox: log); PostgreSQL only
	Rows    string   // workloads of row changes beside the events, "W4 W5 W6" for instance; PostgreSQL only
	Large   int      // rows of a transaction of W8; default 200,000
	Traps   []string // what is done to the slot, the publication and the server's history, in this order
	Point   string   // what happens at a fail point: name:kill@1; needs a program with the tag owbug

	Seed   uint64   // of everything that is drawn
	Dir    string   // where the run is recorded; made if need be
	Binary string   // the program
	Env    []string // of the program, beside the environment
	Idle   bool     // onewrite never runs: such a run has to fail
	Log    io.Writer
	Wait   time.Duration // how long all may take to become quiet; default 60 s
}

// wired reports whether onewrite talks to the others through proxies.
func (c *Config) wired() bool {
	return c.Nets > 0 || c.Outages > 0 || c.Rounds > 0 || c.Lost > 0 || c.Copies > 1
}

// configFile is that of the onewrite in a storm, in the folder of the run.
const configFile = "onewrite.yaml"

// keys is the number of accounts, each a key of events.
const keys = 120

// window bounds the events that one sink may get again after one fault: what was
// written and whose place was not stored yet.
func (c *Config) window() int {
	if c.Nodes > 0 || c.Kafka || c.Fills > 0 { // a bus that does not answer stores no place, and onewrite goes on with what it has read
		return 8192 + 1000
	}
	return 2000
}

// storm is one run.
type storm struct {
	Config
	start time.Time
	rng   *rand.Rand // of the nemesis; the writers have their own

	db     *database
	bus    *servers.NATS // nil: embedded
	copies []*program
	sinks  []sink
	hosts  []*host // servers of Sinks
	disk   disk

	clients, samples, faults *history.Log
	healed                   atomic.Bool      // the webhook refuses nothing any more
	gate                     gate             // of the writers
	stamp                    atomic.Int64     // of changes of rows
	endMark                  atomic.Int64     // of rows.mark, the last
	captured                 atomic.Int64     // since when row changes are captured
	lost                     []history.Change // of a history that the database went back from
	age                      atomic.Int64     // how often the bus was another one
	forgot, reached          atomic.Int64     // older copies of a sink that have not shown; its position
	deaths, rounds           atomic.Int64
	drawn                    tally // requests of each sink whose answer was to be lost

	committed atomic.Int64 // events that writers were told are there
	doubtful  atomic.Int64 // events that may be there
	restarts  atomic.Int64
	wanted    atomic.Int64 // items that buyers asked for
	labels    labels
	pace      pace
}

func (c *Config) defaults() {
	set := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	set(&c.Events, 2000)
	set(&c.Writers, 8)
	set(&c.Copies, 1)
	set(&c.Large, 200_000)
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
	var err error
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	for _, name := range c.Traps {
		if _, known := traps[name]; !known || c.Rows == "" || c.Copies > 1 {
			return nil, fmt.Errorf("trap %q: it is one of %s, and needs row changes (--rows) and one copy of onewrite", name, strings.Join(Traps(), ", "))
		}
	}
	if c.Kafka && (c.Nodes > 0 || !slices.ContainsFunc(c.Sinks, func(name string) bool { return targets[name].host == "kafka" })) {
		return nil, errors.New("where Kafka is the bus it is a destination too, and there are no servers of another: --sink kafka, without --nodes")
	}
	if c.has("W7") && c.Rate == 0 {
		return nil, errors.New("W7 is a table where nothing happens, with a limit to the log that is kept for it: beside as many transactions as the database takes it has none; add --rate, for instance --rate 60")
	}
	if _, err := os.Stat(filepath.Join(c.Dir, configFile)); err == nil {
		return nil, fmt.Errorf("%s holds a run already; judge it with: torture check %[1]s, or name another folder with --dir", c.Dir)
	}
	s := &storm{Config: c, start: time.Now(), rng: rand.New(rand.NewPCG(c.Seed, 1))}
	err = s.run(ctx)
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
	writing, stopWriting := context.WithCancelCause(ctx)
	defer stopWriting(nil)
	written := make(chan error, 1)
	go func() { written <- s.write(writing) }()
	if err := s.begin(ctx); err != nil {
		stopWriting(err)
		return errors.Join(err, <-written)
	}
	if err := s.capture(ctx); err != nil {
		stopWriting(err)
		return errors.Join(err, <-written)
	}
	sampling, stopSampling := context.WithCancel(ctx)
	var sampled sync.WaitGroup
	for _, p := range s.copies {
		sampled.Go(func() { s.sample(sampling, p) })
	}
	defer func() { stopSampling(); sampled.Wait() }()

	if !s.Idle {
		if err := s.torment(ctx); err != nil {
			stopWriting(err)
			return errors.Join(err, <-written)
		}
	} else {
		s.labels.hit("tormented")
	}
	if err := <-written; err != nil {
		return err
	}
	if err := s.heal(ctx); err != nil {
		return err
	}
	calm := s.now() // after the last fault and the last write
	sentinels, err := s.sentinels(ctx)
	if err != nil {
		return err
	}
	quiet := s.await(ctx, sentinels)
	stopSampling()
	sampled.Wait()
	if s.Kafka {
		if err := s.countBus(ctx); err != nil {
			return err
		}
	}
	return s.record(ctx, calm, quiet)
}

// begin starts the copies, when the backlog is there.
func (s *storm) begin(ctx context.Context) error {
	err := s.until(ctx, "the backlog is written", func() bool { return s.committed.Load() >= int64(s.Backlog) })
	for _, p := range s.copies {
		if err == nil && !s.Idle {
			err = p.start(s.sabotage()...)
		}
	}
	return err
}

// prepare makes the database, the bus, the sinks, the configuration and the logs.
func (s *storm) prepare(ctx context.Context) (err error) {
	prepared := "0"
	if s.Rows != "" {
		prepared = "10"
	}
	if s.db, err = openDatabase(ctx, s.Source, s.Dir, s.Server, prepared); err != nil {
		return err
	}
	if s.Nodes > 0 {
		if s.bus, err = servers.LaunchNATS(s.Nodes); err != nil {
			return err
		}
	}
	hook, err := newHook(s)
	if err != nil {
		return err
	}
	s.sinks = append(s.sinks, hook)
	if err := s.openSinks(ctx); err != nil {
		return err
	}
	if s.Rows != "" {
		s.sinks = append(s.sinks, newRowFile(s))
		if err := s.db.makeRows(ctx); err != nil {
			return err
		}
	}
	if err := s.disk.prepare(s); err != nil {
		return err
	}
	if err := s.writeConfig(); err != nil {
		return err
	}
	for i := range s.Copies {
		p, err := newProgram(s, i+1)
		if err != nil {
			return err
		}
		s.copies = append(s.copies, p)
	}
	for _, l := range []struct {
		log  **history.Log
		file string
	}{{&s.clients, history.ClientFile}, {&s.samples, history.SampleFile}, {&s.faults, history.FaultFile}} {
		if *l.log, err = history.Create(s.Dir, l.file, ""); err != nil {
			return err
		}
	}
	if err := s.copies[0].command(ctx, "migrate"); err != nil {
		return err
	}
	return s.db.schema(ctx)
}

// heal lets the webhook take what it refused, and has it delivered, and waits until all
// tables were read.
func (s *storm) heal(ctx context.Context) error {
	s.healed.Store(true)
	if s.Rows != "" && !s.Idle { // a snapshot that was interrupted may have much before it
		if err := errors.Join(s.settleDoubt(ctx), s.readAgain(ctx)); err != nil {
			return err
		}
	}
	if !s.Refuse {
		return nil
	}
	for _, k := range s.sinks {
		if t, is := k.(*target); is && t.heal != nil {
			if err := t.heal(ctx); err != nil {
				return err
			}
		}
	}
	return s.redrive(ctx)
}

// until waits for something that has to come true.
func (s *storm) until(ctx context.Context, what string, is func() bool) error {
	for end := time.Now().Add(max(s.Wait, time.Minute)); !is(); time.Sleep(10 * time.Millisecond) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(end) {
			return fmt.Errorf("%v passed and it is not true that %s; see %s", max(s.Wait, time.Minute), what, s.path("onewrite-1.log"))
		}
	}
	return nil
}

// await waits until every sink has every sentinel and onewrite says that nothing
// is pending, and returns when; 0 if that did not happen in time.
func (s *storm) await(ctx context.Context, sentinels []string) int64 {
	again := time.Now()
	for end := time.Now().Add(s.Wait); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		if s.Idle {
			return 0
		}
		s.supervise()
		all := true
		for _, k := range s.sinks {
			for _, id := range sentinels {
				all = all && k.has(id)
			}
		}
		st := s.state()
		if all && st.idle {
			return s.now()
		}
		if s.Refuse && st.parked > 0 && time.Since(again) > time.Second { // parked after the first redrive
			again = time.Now()
			_ = s.redrive(ctx)
		}
	}
	return 0
}

// record writes the truth, the ends of the sinks and what kind of run it was.
func (s *storm) record(ctx context.Context, calm, quiet int64) error {
	s.lastSample()
	for _, p := range s.copies {
		if err := p.stop(); err != nil {
			return err
		}
	}
	for _, k := range s.sinks {
		if err := k.settle(s.Dir); err != nil {
			return err
		}
		if h, ok := k.(*hook); ok && h.again.Load() > 0 {
			s.labels.hit("replay_after_crash")
		}
	}
	if err := s.db.dump(ctx, s.Dir); err != nil {
		return err
	}
	if s.Rows != "" {
		if err := s.dumpRows(ctx); err != nil {
			return err
		}
	}
	for _, l := range []*history.Log{s.clients, s.samples, s.faults} {
		if err := l.Close(); err != nil {
			return err
		}
	}
	s.clients, s.samples, s.faults = nil, nil, nil
	run := &history.Run{
		Seed: s.Seed, Workload: "W1 W2", Sinks: map[string]history.Kind{}, Window: s.window(), Calm: calm, Quiet: quiet,
		Floors: s.floors(), Labels: s.labels.n, Budget: history.Budget{RSS: 400 << 20, Lag: int64(30 * time.Second)},
	}
	if s.db.postgres() {
		run.Workload += " W3"
	}
	if s.Rows != "" {
		run.Workload, run.Captured = run.Workload+" "+s.Rows, s.captured.Load()
	}
	if s.has("W7") {
		run.Budget.Retained = 64 << 20
	}
	if s.has("W8") {
		run.Budget.Lag = max(run.Budget.Lag, int64(s.Large)*int64(time.Millisecond)) // of which much is new after the last fault
	}
	if s.Flips > 0 { // each time much is delivered again
		run.Budget.Lag = int64(time.Minute)
	}
	if s.Rounds >= 20 { // of fewer the 99th in a hundred says nothing
		run.Budget.Takeover = int64(10 * time.Second)
	}
	for _, k := range s.sinks {
		run.Sinks[k.name()] = k.kind()
	}
	return run.Save(s.Dir)
}

// floors are the least that this storm must have in it.
func (s *storm) floors() history.Floors {
	f := history.Floors{
		Committed: s.Events / 3, Aborted: 0.05, Keys: 100, KeyEvents: min(50, s.Events/keys/2),
		Faults: map[string]int{}, Counts: map[string]int{}, Labels: []string{"sold_out", "scheduled"}, Checkpoints: max(1, s.Events/every/2),
	}
	for kind, n := range map[string]int{
		"SIGKILL": s.Kills, "SIGTERM": s.Terms, "SIGSTOP": s.Freezes, "crash": s.Crashes, "network": s.Nets, "outage": s.Outages, "death": s.Deaths,
		"idle row": s.idleRows(), "takeover": s.Rounds, "strike": s.Strikes, "older sink": s.Olders, "lost bus": s.Loses, "older bus": s.Returns, "changed bytes": s.Flips, "full disk": s.Fills,
	} {
		if n > 0 {
			f.Faults[kind] = n
		}
	}
	if s.Lost > 0 {
		f.Counts["answer lost by hook"] = s.Lost
		for _, name := range s.losers() {
			f.Counts["answer lost by "+name] = s.Lost
		}
	}
	if s.Kafka {
		f.Counts[onKafka] = s.Events
	}
	for i, h := range s.hosts {
		if i < s.Strikes {
			f.Labels = append(f.Labels, "struck "+h.name)
		}
	}
	if s.Refuse {
		f.Labels = append(f.Labels, "refused", "parked")
	}
	if s.Kills > 0 && s.Rows == "" { // those of row changes have few events
		f.Labels = append(f.Labels, "replay_after_crash", "answer lost by hook")
		if s.db.postgres() {
			f.Labels = append(f.Labels, "inversion", "open_across_restart")
		}
	}
	s.rowFloors(&f)
	return f
}

// close ends all that runs.
func (s *storm) close() error {
	var errs []error
	for _, p := range s.copies {
		errs = append(errs, p.close())
	}
	for _, k := range s.sinks {
		errs = append(errs, k.close())
	}
	for _, l := range []*history.Log{s.clients, s.samples, s.faults} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	for _, h := range s.hosts {
		if h.machine != nil {
			errs = append(errs, h.Shutdown())
		}
	}
	if s.bus != nil {
		errs = append(errs, s.bus.Shutdown())
	}
	if s.db != nil {
		errs = append(errs, s.db.close())
	}
	return errors.Join(append(errs, s.disk.close())...)
}

func (s *storm) say(format string, args ...any) {
	fmt.Fprintf(s.Log, "%7.1fs  "+format+"\n", append([]any{time.Since(s.start).Seconds()}, args...)...)
}

func (s *storm) path(name string) string { return filepath.Join(s.Dir, name) }

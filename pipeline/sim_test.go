package pipeline_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/pipeline"
)

// The simulation runs the real pipeline in a model world in synthetic time. One
// seed is one world: its load, its faults before and after each effect, its
// killed and frozen runners, its poison events. Whatever the world does, the
// laws have to hold at its end; they are named as in docs/design.

var (
	simSeed  = flag.Uint64("sim.seed", 0, "run this one seed of the simulation")
	simSeeds = flag.Uint64("sim.seeds", 0, "how many seeds to run (default 2,000; 200 with -short)")
)

// sim is one world.
type sim struct {
	t      *testing.T
	seed   uint64
	rng    *rand.Rand // of the story teller's goroutine only
	source *memSource
	bus    *onewritetest.MemoryBus
	sink   *onewritetest.MemorySink

	mu     sync.Mutex
	counts map[string]uint64
	there  map[string]bool // ids that the destination has
	outage bool            // the destination refuses everything
	storm  bool            // faults strike
	rate   float64         // this often
	poison map[string]bool
	guilty map[string]bool // all that ever were poison
	errs   []string
	hits   map[string]int

	cursors sync.Mutex
	checked uint64 // offsets that a cursor was found to cover rightly; under cursors

	runners []*runner
	deaths  int
	twins   bool
}

// errKilled is what a dead runner's calls return.
var errKilled = errors.New("killed")

// runner is one process: a source reader, a delivery, and the world as it sees it.
type runner struct {
	dead   atomic.Bool
	frozen atomic.Pointer[chan struct{}] // set while the process is frozen, closed at its thaw
	ingest *pipeline.Ingest
	d      *pipeline.Delivery
	cancel context.CancelFunc
	done   chan struct{}
	flight *simFlight // the newest append; of the ingest's goroutine only
}

// pass is asked before and after each effect of a runner.
func (r *runner) pass() error {
	if thaw := r.frozen.Load(); thaw != nil {
		<-*thaw
	}
	if r.dead.Load() {
		return errKilled
	}
	return nil
}

// strike decides about the n-th pass through a place, by the seed alone.
func (s *sim) strike(where string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[where]++
	if s.outage && where == "sink.before" {
		s.hits["outage"]++
		return errInjected
	}
	if !s.storm {
		return nil
	}
	h := rand.New(rand.NewPCG(s.seed, s.counts[where]*2654435761+uint64(len(where))*97+uint64(where[0])))
	if h.Float64() < s.rate {
		s.hits[where]++
		return fmt.Errorf("%w at %s", errInjected, where)
	}
	return nil
}

func (s *sim) fail(check, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.errs) < 5 {
		s.errs = append(s.errs, check+": "+fmt.Sprintf(format, args...))
	}
}

func newSim(t *testing.T, seed uint64) *sim {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := &sim{t: t, seed: seed, rng: rng, source: newMemSource("shop"), bus: &onewritetest.MemoryBus{}, sink: &onewritetest.MemorySink{},
		counts: map[string]uint64{}, there: map[string]bool{}, poison: map[string]bool{}, guilty: map[string]bool{}, hits: map[string]int{},
		rate: rng.Float64() * 0.1, storm: true, twins: rng.IntN(3) == 0}
	s.source.chunk = 1 + rng.IntN(20)
	s.sink.After = func(_ context.Context, e onewrite.Event) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.there[e.ID] = true
		return nil
	}
	if s.twins {
		s.bus.Lease = 6 * time.Second
	}
	return s
}

// simBus is the bus as one runner sees it.
type simBus struct {
	s *sim
	r *runner
}

func (b simBus) Position(ctx context.Context, source string) (onewrite.Pos, uint64, error) {
	if err := errors.Join(b.r.pass(), b.s.strike("position")); err != nil {
		return "", 0, err
	}
	b.r.flight = nil
	return b.s.bus.Position(ctx, source)
}

func (b simBus) Append(ctx context.Context, source string, prev onewrite.Pos, batch onewrite.Batch) (uint64, error) {
	if err := errors.Join(b.r.pass(), b.s.strike("append.before")); err != nil {
		return 0, err
	}
	last, err := b.s.bus.Append(ctx, source, prev, batch)
	if err == nil {
		err = errors.Join(b.r.pass(), b.s.strike("append.after"))
	}
	return last, err
}

// Prepare makes it a bus that is asked ahead, and takes several appends at once: the answers
// come later, in order, and none is good behind one that is not.
func (b simBus) Prepare(source string, batch onewrite.Batch) func(context.Context, onewrite.Pos) (uint64, <-chan error, error) {
	return func(ctx context.Context, prev onewrite.Pos) (uint64, <-chan error, error) {
		if err := b.s.strike("append.begin"); err != nil {
			return 0, nil, err
		}
		before, landed, answer := b.r.flight, &simFlight{done: make(chan struct{})}, make(chan error, 1)
		b.r.flight = landed
		last, err := b.Append(ctx, source, prev, batch)
		go func() {
			time.Sleep(time.Duration(len(batch.Events)) * time.Millisecond)
			if before != nil {
				<-before.done
				if before.err != nil {
					err = before.err
				}
			}
			landed.err = err
			close(landed.done)
			answer <- err
		}()
		return last, answer, nil
	}
}

// simFlight is an append under way.
type simFlight struct {
	done chan struct{}
	err  error
}

func (b simBus) Subscribe(ctx context.Context, in onewrite.Interest) (onewrite.Subscription, error) {
	if err := errors.Join(b.r.pass(), b.s.strike("subscribe")); err != nil {
		return nil, err
	}
	sub, err := b.s.bus.Subscribe(ctx, in)
	if err != nil {
		return nil, err
	}
	return simSub{sub, b}, nil
}

type simSub struct {
	onewrite.Subscription
	b simBus
}

func (s simSub) Read(ctx context.Context) ([]onewrite.Message, map[string]uint64, error) {
	if err := errors.Join(s.b.r.pass(), s.b.s.strike("read")); err != nil {
		return nil, nil, err
	}
	return s.Subscription.Read(ctx)
}

func (s simSub) Commit(ctx context.Context, c onewrite.Cursor) error {
	if err := errors.Join(s.b.r.pass(), s.b.s.strike("commit.before")); err != nil {
		return err
	}
	s.b.s.checkCursor(c)
	if err := s.Subscription.Commit(ctx, c); err != nil {
		return err
	}
	return errors.Join(s.b.r.pass(), s.b.s.strike("commit.after"))
}

func (s simSub) Park(ctx context.Context, p onewrite.Parked) (uint64, error) {
	if err := errors.Join(s.b.r.pass(), s.b.s.strike("park.before")); err != nil {
		return 0, err
	}
	ref, err := s.Subscription.Park(ctx, p)
	if err == nil {
		err = errors.Join(s.b.r.pass(), s.b.s.strike("park.after"))
	}
	return ref, err
}

func (s simSub) Unpark(ctx context.Context, refs ...uint64) error {
	if err := errors.Join(s.b.r.pass(), s.b.s.strike("unpark")); err != nil {
		return err
	}
	return s.Subscription.Unpark(ctx, refs...)
}

func (s simSub) Close() error {
	if s.b.r.pass() != nil {
		return errKilled // a dead process gives nothing up
	}
	return s.Subscription.Close()
}

// checkCursor: a place is stored only when what it covers is at the destination
// or parked (L4).
func (s *sim) checkCursor(c onewrite.Cursor) {
	parked := map[string]bool{}
	s.cursors.Lock()
	defer s.cursors.Unlock()
	for _, p := range s.bus.Parked("wh") { // first: a redriven event arrives before it leaves
		parked[p.Message.ID] = true
	}
	events := s.bus.Events("shop")
	covered := func(from, to uint64) {
		for o := from; o <= to && o <= uint64(len(events)); o++ {
			if e := &events[o-1]; e.Topic != "noise" && !parked[e.ID] && !s.has(e.ID) {
				s.fail("I10", "the cursor covers %s, which is neither delivered nor parked", e.ID)
				return
			}
		}
	}
	covered(s.checked+1, c.Logs["shop"].Floor)
	s.checked = max(s.checked, c.Logs["shop"].Floor)
	for _, sp := range c.Logs["shop"].Done {
		covered(sp.From, sp.To)
	}
}

func (s *sim) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.there[id]
}

// simSource is the source as one runner sees it.
type simSource struct {
	onewrite.Source
	s *sim
	r *runner
}

func (x simSource) Read(ctx context.Context) (onewrite.Batch, error) {
	if err := errors.Join(x.r.pass(), x.s.strike("source.read")); err != nil {
		return onewrite.Batch{}, err
	}
	return x.Source.Read(ctx)
}

// Ack checks that nothing is forgotten before its durable mark (I9).
func (x simSource) Ack(ctx context.Context, pos onewrite.Pos) error {
	if err := errors.Join(x.r.pass(), x.s.strike("ack.before")); err != nil {
		return err
	}
	n, _ := strconv.Atoi(string(pos))
	floor, held := x.s.bus.Cursor("wh").Logs["shop"].Floor, len(x.s.bus.Events("shop"))
	for _, p := range x.s.bus.Parked("wh") {
		if p.Message.Offset <= uint64(n) {
			x.s.fail("I9", "row %d was given up though %s before it is only parked", n, p.Message.ID)
		}
	}
	if n > held || uint64(n) > floor {
		x.s.fail("I9", "row %d was given up; the bus holds %d, the destination confirmed %d", n, held, floor)
	}
	return x.Source.Ack(ctx, pos)
}

// simSink is the destination as one runner sees it.
type simSink struct {
	onewrite.Sink
	s *sim
	r *runner
}

func (x simSink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	for i, e := range events {
		if err := errors.Join(x.r.pass(), x.s.strike("sink.before")); err != nil {
			return i, err
		}
		time.Sleep(time.Duration(x.s.count("sink")%7) * time.Millisecond)
		if x.r.dead.Load() {
			return i, errKilled
		}
		x.s.mu.Lock()
		bad := x.s.poison[e.ID]
		x.s.mu.Unlock()
		if bad {
			return i, fmt.Errorf("422: %w", onewrite.ErrRejected)
		}
		if _, err := x.Sink.Write(ctx, events[i:i+1]); err != nil {
			return i, err
		}
		if err := errors.Join(x.r.pass(), x.s.strike("sink.after")); err != nil {
			return i, err
		}
	}
	return len(events), nil
}

func (s *sim) count(where string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[where]++
	return s.counts[where]
}

// boot starts a runner.
func (s *sim) boot() *runner {
	r := &runner{done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.ingest = &pipeline.Ingest{Name: "shop", Bus: simBus{s, r}, Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
		if err := errors.Join(r.pass(), s.strike("open")); err != nil {
			return nil, err
		}
		src, err := s.source.open(ctx, pos)
		return simSource{src, s, r}, err
	}}
	r.d = &pipeline.Delivery{
		Interest: onewrite.Interest{Name: "wh", Sources: []string{"shop"}, Topics: []string{"order"}}, Bus: simBus{s, r},
		Open: func(ctx context.Context) (onewrite.Sink, error) {
			sink, err := s.sink.Open(ctx)
			return simSink{sink, s, r}, errors.Join(err, r.pass(), s.strike("sink.open"))
		},
		Concurrency: 1 + s.rng.IntN(8), BatchCount: 1 + s.rng.IntN(5), Window: 200 + s.rng.IntN(400),
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.ingest.Run(ctx) })
	wg.Go(func() { _ = r.d.Run(ctx) })
	wg.Go(func() { // what the relay's janitor does
		for ctx.Err() == nil {
			if f, ok := r.d.Confirmed("shop"); ok && r.pass() == nil {
				r.ingest.Confirm(f)
			}
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
	go func() { wg.Wait(); close(r.done) }()
	return r
}

func (r *runner) end() {
	r.cancel()
	<-r.done
}

// run tells the story of one seed and returns what it saw broken.
func (s *sim) run() {
	runners := 1
	if s.twins {
		runners = 2
	}
	for range runners {
		s.runners = append(s.runners, s.boot())
	}
	keys, n := 1+s.rng.IntN(12), 0
	for range 30 + s.rng.IntN(60) {
		var tx []onewrite.Event
		for range 1 + s.rng.IntN(6) {
			n++
			e := event(n, fmt.Sprint("k", s.rng.IntN(keys)))
			e.Topic = "order"
			switch s.rng.IntN(12) {
			case 0:
				e.Topic = "noise"
			case 1:
				e.Key = ""
			case 2:
				if s.rng.IntN(8) == 0 && len(s.poison) < keys/2 {
					s.mu.Lock()
					s.poison[e.ID], s.guilty[e.ID] = true, true
					s.mu.Unlock()
				}
			}
			tx = append(tx, e)
		}
		s.source.commit(tx...)
		time.Sleep(time.Duration(s.rng.IntN(400)) * time.Millisecond)
		s.disturb()
	}
	s.mu.Lock()
	s.storm = false
	s.mu.Unlock()
	for range 100 { // light traffic goes on: it shows that the destination is up
		n++
		e := event(n, "")
		e.Topic = "order"
		s.source.commit(e)
		time.Sleep(3 * time.Second)
	}
	s.quiet(n, true)
	s.mu.Lock()
	s.hits["poison"] += len(s.poison)
	clear(s.poison)
	s.mu.Unlock()
	s.redrive()
	time.Sleep(2 * time.Minute)
	s.quiet(n, false)
	s.cleanStop(n)
}

// cleanStop ends everything in the middle of a burst: nothing may come again.
func (s *sim) cleanStop(n int) {
	before := len(s.sink.Received())
	for i := range 30 {
		e := event(n+i+1, fmt.Sprint("k", i%3))
		e.Topic = "order"
		s.source.commit(e)
	}
	time.Sleep(25 * time.Millisecond)
	for _, r := range s.runners {
		r.end()
	}
	s.runners = []*runner{s.boot()}
	time.Sleep(time.Minute)
	if more := len(s.sink.Received()) - before; more != 30 {
		s.fail("I7", "30 events around a clean stop arrived %d times", more)
	}
	s.runners[0].end()
}

// disturb kills, freezes or restarts a runner now and then.
func (s *sim) disturb() {
	i := s.rng.IntN(len(s.runners))
	r := s.runners[i]
	switch s.rng.IntN(25) {
	case 0: // SIGKILL
		s.deaths++
		r.dead.Store(true)
		r.end()
		s.runners[i] = s.boot()
	case 1: // SIGTERM
		s.deaths++
		r.end()
		s.runners[i] = s.boot()
	case 4: // an outage
		s.mu.Lock()
		s.outage = true
		s.mu.Unlock()
		time.Sleep(time.Duration(s.rng.IntN(90)) * time.Second)
		s.mu.Lock()
		s.outage = false
		s.mu.Unlock()
	case 3: // the operator mends what was refused
		s.mu.Lock()
		s.hits["poison"] += len(s.poison)
		clear(s.poison)
		s.mu.Unlock()
		s.redrive()
	case 2: // SIGSTOP, SIGCONT
		if s.twins {
			s.deaths++
			thaw := make(chan struct{})
			r.frozen.Store(&thaw)
			time.Sleep(time.Duration(s.rng.IntN(20)) * time.Second)
			r.frozen.Store(nil)
			close(thaw)
		}
	}
}

// redrive asks every runner; only the owner can.
func (s *sim) redrive() {
	for _, r := range s.runners {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = r.d.Redrive(ctx, 0)
		cancel()
	}
}

// quiet holds the laws against the world at rest.
func (s *sim) quiet(n int, parkedToo bool) {
	committed := map[string]onewrite.Event{}
	s.source.mu.Lock()
	for _, e := range s.source.events {
		committed[e.ID] = e
	}
	s.source.mu.Unlock()
	seen := map[string]onewrite.Event{}
	last := map[string]string{}
	repeats := 0
	for _, e := range s.sink.Received() {
		want, ok := committed[e.ID]
		if !ok {
			s.fail("I2", "%s was never committed", e.ID)
			continue
		}
		if !reflect.DeepEqual(e, want) {
			s.fail("I7", "%s arrived changed: %+v", e.ID, e)
		}
		if _, again := seen[e.ID]; again {
			repeats++
			continue
		}
		seen[e.ID] = e
		if e.Key != "" && e.ID < last[e.Key] {
			s.fail("I3", "key %s: %s first arrived after %s", e.Key, e.ID, last[e.Key])
		}
		last[e.Key] = e.ID
	}
	parked := map[string]bool{}
	for _, p := range s.bus.Parked("wh") {
		parked[p.Message.ID] = true
		if !parkedToo {
			s.fail("I13", "%s is still parked after the redrive", p.Message.ID)
		}
	}
	for id, e := range committed {
		_, ok := seen[id]
		if e.Topic == "noise" {
			if ok {
				s.fail("I2", "%s does not match the destination's topics", id)
			}
			continue
		}
		if !ok && !parked[id] {
			s.fail("I1", "%s was committed and never arrived", id)
		}
		if !ok && parked[id] && !s.excused(id, committed) {
			s.fail("I13", "%s was parked though nothing ever refused it or an event before it", id)
		}
	}
	s.mu.Lock()
	strikes := 0
	for _, h := range s.hits {
		strikes += h
	}
	s.mu.Unlock()
	if limit := (s.deaths + strikes) * 230; repeats > limit {
		s.fail("I7", "%d repeats after %d deaths and %d faults", repeats, s.deaths, strikes)
	}
	owners := 0
	for _, r := range s.runners {
		st := r.d.Status()
		if *simSeed != 0 {
			s.t.Logf("ingest %+v\ndelivery %+v", r.ingest.Status(), st)
		}
		if st.State != pipeline.OK {
			continue
		}
		owners++
		if st.Pending != 0 {
			s.fail("I11", "at rest, but %d pending", st.Pending)
		}
	}
	if owners != 1 {
		s.fail("I14", "%d runners deliver", owners)
	}
}

// excused reports whether a poison event stands at or before id in its key.
func (s *sim) excused(id string, committed map[string]onewrite.Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.guilty {
		if p == id || committed[p].Key == committed[id].Key && committed[p].Key != "" && p < id {
			return true
		}
	}
	return false
}

func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		simulate(t, *simSeed)
		return
	}
	n := *simSeeds
	if n == 0 {
		if n = 2000; testing.Short() || raceEnabled {
			n = 200 // make test runs all of them without the race detector
		}
	}
	hits := map[string]int{}
	var mu sync.Mutex
	work := make(chan uint64)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for seed := range work {
				s := simulate(t, seed)
				mu.Lock()
				for k, v := range s.hits {
					hits[k] += v
				}
				hits["deaths"] += s.deaths
				mu.Unlock()
			}
		})
	}
	for seed := uint64(1); seed <= n && !t.Failed(); seed++ {
		work <- seed
	}
	close(work)
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, where := range []string{"position", "append.begin", "append.before", "append.after", "subscribe", "read", "commit.before", "commit.after",
		"park.before", "park.after", "unpark", "open", "source.read", "ack.before", "sink.before", "sink.after", "sink.open", "deaths", "poison", "outage"} {
		// Few of the faults strike at what is seldom done, and how many is not in the seed alone.
		if hits[where] == 0 && (n >= 1000 || n >= 200 && where != "unpark") {
			t.Errorf("vacuous: no fault ever struck at %s", where)
		}
	}
	t.Logf("%d seeds, faults struck: %v", n, hits)
}

func simulate(t *testing.T, seed uint64) *sim {
	var s *sim
	synctest.Test(t, func(t *testing.T) {
		s = newSim(t, seed)
		s.run()
	})
	if len(s.errs) > 0 {
		for _, e := range s.errs {
			t.Errorf("seed %d: %s", seed, e)
		}
		t.Errorf("replay: go test ./pipeline -run 'TestSimulation$' -sim.seed=%d", seed)
	}
	return s
}

package storm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/torture/history"
)

// machine is a server that can be killed and started again on its data.
type machine interface {
	Pid() int
	Strike() error
	Revive() error
	Shutdown() error
}

// host is a server that destinations write to.
type host struct {
	machine
	name    string
	strikes int
	down    atomic.Bool
	up      atomic.Int64 // when it came back, on the clock of the run
}

// targets are the destinations on real servers, by their names in Config.Sinks.
var targets = map[string]struct {
	host   string
	placed bool // the sink keeps the place: nothing comes twice
	window int  // the most that is in flight to it; 0: as everywhere
	open   func(context.Context, *target) error
}{
	"kafka":       {"kafka", true, 0, openKafka},
	"kafka-plain": {"kafka", false, 4000, openKafka},
	"redis":       {"redis", true, 0, openRedis},
	"rabbitmq":    {"rabbitmq", false, 0, openRabbit},
	"postgres":    {"postgres", true, 0, openTable},
	"mysql":       {"mysql", true, 0, openTable},
	"sqlite":      {"", true, 0, openTable},
}

// Targets returns the names of the destinations on real servers.
func Targets() []string { return slices.Sorted(maps.Keys(targets)) }

// target is such a destination, and a client of the server that reads it back as
// consumers do.
type target struct {
	*consumer
	called string
	host   *host // nil: it has no server
	text   string
	url    string // what ${env:…} of the text is, if it can lead through a proxy
	lost   []byte // what a request has in it whose answer may be lost

	// read reads from where it was until ctx ends or something fails; then it is called
	// again.
	read func(ctx context.Context) error
	heal func(ctx context.Context) error // takes from now on what it refused; nil: it refuses nothing
	was  *table                          // nil: it is none that can be put back
	shut func() error
	stop context.CancelFunc
	done sync.WaitGroup
	err  error        // read after done
	all  atomic.Int64 // arrivals, repeats included
	idle atomic.Int64 // how often there was nothing new
}

// fatal is an error that no fault explains.
type fatal struct{ error }

// openSinks makes the destinations beside the webhook.
func (s *storm) openSinks(ctx context.Context) error {
	if len(s.Sinks) > 0 {
		return s.openTargets(ctx)
	}
	stream, err := newStream(ctx, s)
	if err != nil {
		return err
	}
	s.sinks = append(s.sinks, stream)
	if s.Copies == 1 { // a frozen copy keeps the lock of its file
		s.sinks = append(s.sinks, newArchive(s))
	}
	return nil
}

// openTargets starts the servers, all at once, and the readers.
func (s *storm) openTargets(ctx context.Context) error {
	for _, name := range s.Sinks {
		kind, known := targets[name]
		if !known {
			return fmt.Errorf("sink %q: it is one of %s", name, strings.Join(Targets(), ", "))
		}
		if kind.host != "" && s.hostOf(name) == nil {
			s.hosts = append(s.hosts, &host{name: kind.host})
		}
	}
	var all sync.WaitGroup
	errs := make([]error, len(s.hosts))
	for i, h := range s.hosts {
		all.Go(func() { h.machine, errs[i] = launch(h.name) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, name := range s.Sinks {
		c, err := newConsumer(s, name)
		if err != nil {
			return err
		}
		t := &target{consumer: c, called: name, host: s.hostOf(name)}
		s.sinks = append(s.sinks, t)
		if err := targets[name].open(ctx, t); err != nil {
			return fmt.Errorf("sink %s: %w", name, err)
		}
		ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
		t.stop = stop
		t.done.Go(func() { t.err = t.follow(ctx) })
	}
	return nil
}

func launch(name string) (machine, error) {
	switch name {
	case "kafka":
		return known(servers.LaunchKafka())
	case "redis":
		return known(servers.LaunchRedis())
	case "rabbitmq":
		return known(servers.LaunchRabbitMQ())
	case "mysql":
		return known(servers.LaunchMariaDB())
	default:
		return known(servers.Launch(18))
	}
}

// known keeps a nil pointer from becoming a machine.
func known[M machine](m M, err error) (machine, error) {
	if err != nil {
		return nil, err
	}
	return m, nil
}

// hostOf returns the server of a destination; nil: it is not there.
func (s *storm) hostOf(name string) *host {
	for _, h := range s.hosts {
		if h.name == targets[name].host {
			return h
		}
	}
	return nil
}

// follow reads until it is stopped, through whatever is done to the server.
func (t *target) follow(ctx context.Context) error {
	for ctx.Err() == nil {
		err := t.read(ctx)
		if f := (fatal{}); errors.As(err, &f) {
			return f
		}
		pause(ctx, 50*time.Millisecond)
	}
	return nil
}

// got records what the server holds.
func (t *target) got(list ...history.Arrival) error {
	if len(list) == 0 {
		t.idle.Add(1)
		return nil
	}
	if _, err := t.take(list...); err != nil {
		return fatal{err}
	}
	t.all.Add(int64(len(list)))
	return nil
}

// arrivalOf reads an event that the server holds.
func (t *target) arrivalOf(id string, body []byte) (history.Arrival, error) {
	a, err := t.s.arrival(0, id, body)
	if err != nil {
		return a, fatal{err}
	}
	return a, nil
}

func (t *target) name() string { return t.called }

func (t *target) kind() history.Kind {
	k := targets[t.called]
	return history.Kind{Once: true, Ledger: true, Distinct: k.placed, Window: k.window}
}

func (t *target) yaml() string { return t.text }

// env is the variable that has the address.
func (t *target) env() string {
	return "OW_SINK_" + strings.ToUpper(strings.ReplaceAll(t.called, "-", "_"))
}

// caught returns how many events are there when onewrite says that it delivered n. The
// reader is given the time to come that far; of a server that is down nobody can say.
func (t *target) caught(n uint64) uint64 {
	const looks = 3                   // after which what is not there will not come; one may have begun before
	const patience = 20 * time.Second // with a reader that a busy machine holds up, from batch to batch
	idle, last := t.idle.Load(), uint64(0)
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		seen, all := t.seen(), uint64(t.all.Load())
		if all > last {
			last, end = all, time.Now().Add(patience)
		}
		if h := t.host; seen < n && h != nil && (h.down.Load() || h.up.Load() > 0 && t.s.now()-h.up.Load() < int64(3*time.Second)) {
			return max(seen, n)
		}
		if seen >= n || all >= n && t.idle.Load() >= idle+looks || time.Now().After(end) {
			return seen
		}
	}
}

func (t *target) settle(dir string) error {
	if n := t.s.answersLost(t.called); n > 0 {
		t.s.faults.Add(&history.Fault{At: 1, Until: t.s.now(), Kind: "answer lost", Times: n, On: t.called, Most: n * 256,
			Proof: fmt.Sprintf("%d answers of the server were dropped by the proxy", n)})
	}
	t.stop()
	t.done.Wait()
	err := errors.Join(t.err, t.consumer.settle(dir))
	if t.was != nil {
		err = errors.Join(err, t.was.record(dir))
	}
	return err
}

func (t *target) close() error {
	if t.stop != nil {
		t.stop()
		t.done.Wait()
	}
	var err error
	if t.shut != nil {
		err = t.shut()
	}
	return errors.Join(err, t.consumer.close())
}

// struck kills a server that destinations write to, each in turn, and starts it again.
func (s *storm) struck(ctx context.Context, f *history.Fault) error {
	h := slices.MinFunc(s.hosts, func(a, b *host) int { return a.strikes - b.strikes })
	h.strikes++
	f.On = "the server of " + h.name
	for _, k := range s.sinks {
		if t, ok := k.(*target); ok && t.host == h {
			f.Sinks = append(f.Sinks, t.called)
		}
	}
	old := h.Pid()
	h.down.Store(true)
	if err := h.Strike(); err != nil {
		return err
	}
	pause(ctx, time.Duration(100+s.rng.IntN(1500))*time.Millisecond) // how long it is dead
	if err := h.Revive(); err != nil {
		return err
	}
	h.up.Store(s.now())
	h.down.Store(false)
	if now := h.Pid(); now != old {
		f.Proof = fmt.Sprintf("%s: pid %d is %d", h.name, old, now)
	}
	s.labels.hit("struck " + h.name)
	return nil
}

// consumers are the sinks that a client reads from: those that deeds wait for.
func (s *storm) consumers() (list []sink) {
	for _, k := range s.sinks {
		if _, is := k.(*target); is || len(list) == 0 {
			list = append(list, k)
		}
	}
	return list
}

// redrive has what is parked delivered.
func (s *storm) redrive(ctx context.Context) error {
	st := s.state()
	for _, k := range s.sinks {
		if st.destinations[k.name()].Parked == 0 {
			continue
		}
		if err := s.copies[0].command(ctx, "parked", "retry", k.name(), "--all"); err != nil {
			return err
		}
	}
	return nil
}

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
)

// OnReject says what becomes of a poison event.
type OnReject string

// The policies for a poison event.
const (
	ParkKey OnReject = "park-key" // it is parked and later events of its key wait behind it
	Skip    OnReject = "skip"     // it is parked alone; later events of its key flow
	Stop    OnReject = "stop"     // the delivery stops and waits for an operator
)

// Delivery moves events from the bus to one destination. Fill the fields, then
// Run; the fields are not changed after that.
type Delivery struct {
	// Interest names the destination and what it wants.
	Interest onewrite.Interest
	// Bus hands the events over.
	Bus onewrite.Bus
	// Open opens the sink; it is called again after the sink failed.
	Open func(ctx context.Context) (onewrite.Sink, error)
	// Concurrency is the number of writes under way at once; 1 keeps bus order as
	// long as no write fails.
	Concurrency int
	// BatchCount and BatchBytes bound one write; defaults 1 and 4 MiB.
	BatchCount int
	BatchBytes int
	// Linger waits this long for a batch to fill; 0 sends what is there, or what comes
	// within 5 ms while another write is under way.
	Linger time.Duration
	// Window and WindowBytes bound the events held in memory; defaults 8,192
	// and 32 MiB.
	Window      int
	WindowBytes int
	// Shape, if set, says what the destination gets of an event: another form of it, or
	// nothing, which counts as filtered. An error is a refusal: OnReject decides at
	// once. It leaves the event as it is, always says the same of it, and may be called
	// by several goroutines.
	Shape func(e *onewrite.Event) (out onewrite.Event, keep bool, err error)
	// Attempts is how often a poison event is tried before it is parked, default 10;
	// 1 means 2, as the first failure counts once a second one is held against it.
	Attempts int
	// OnReject says what becomes of a poison event; default ParkKey.
	OnReject OnReject
	// Retry paces the tries.
	Retry Backoff
	// Drain bounds the wait for writes under way at the end; default 10 s.
	Drain time.Duration
	// Observe is told what happens.
	Observe Observer
	// Log gets a line for each change of state; nil is silent.
	Log *slog.Logger

	once     sync.Once
	commands chan command
	mu       sync.Mutex
	status   DeliveryStatus
	floors   map[string]uint64 // per log: durably confirmed, parked or filtered
	safe     map[string]uint64 // per log: durably confirmed or filtered
	running  bool              // a session takes commands
}

// DeliveryStatus is a snapshot of a Delivery. At every moment
// handed to it == Delivered + Pending + Parked + Filtered + Skipped.
type DeliveryStatus struct {
	State     State
	Position  map[string]uint64 // per log: everything up to it is done
	Epoch     uint64
	Delivered uint64
	Pending   uint64
	Parked    uint64
	Filtered  uint64
	Skipped   uint64
	Lag       time.Duration // age of the oldest event not done
	LastError string
}

type command struct {
	run  func(*deliverer) error
	done chan error
}

func (d *Delivery) setup() {
	d.once.Do(func() {
		d.commands = make(chan command)
		if d.Concurrency < 1 {
			d.Concurrency = 1
		}
		if d.BatchCount < 1 {
			d.BatchCount = 1
		}
		if d.BatchBytes < 1 {
			d.BatchBytes = 4 << 20
		}
		if d.Window < 1 {
			d.Window = 8192
		}
		if d.WindowBytes < 1 {
			d.WindowBytes = 32 << 20
		}
		if d.Attempts < 1 {
			d.Attempts = 10
		}
		if d.OnReject == "" {
			d.OnReject = ParkKey
		}
		if d.Drain <= 0 {
			d.Drain = 10 * time.Second
		}
	})
}

// Status returns what the delivery is doing now. While it is running the counts
// are of this moment; else they are those of the end of the last session.
func (d *Delivery) Status() DeliveryStatus {
	d.mu.Lock()
	running, s := d.running, d.status
	d.mu.Unlock()
	if running {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		_ = d.command(ctx, func(r *deliverer) error {
			r.count()
			s = r.publish(time.Now())
			return nil
		})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.State == "" {
		s.State = Waiting
	}
	s.Position = make(map[string]uint64, len(d.floors))
	for k, v := range d.floors {
		s.Position[k] = v
	}
	return s
}

// Confirmed returns the offset of a log up to which everything is confirmed or
// filtered out, durably; ok is false before the cursor was first read. A parked
// event is not confirmed: its row in the outbox is the copy that outlives the bus.
func (d *Delivery) Confirmed(log string) (offset uint64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.safe == nil {
		return 0, false
	}
	return d.safe[log], true
}

// Redrive delivers parked events again, in order: the entry ref and what waits
// behind it, or all for ref 0. It returns when they are under way; the error
// says why they cannot be (the delivery runs in another copy, no such entry).
func (d *Delivery) Redrive(ctx context.Context, ref uint64) error {
	return d.command(ctx, func(r *deliverer) error { return r.redrive(ref) })
}

// RedriveAs is Redrive of one entry with another payload, of the same content type,
// which only this delivery of it has: if it is refused again, it stays parked as it
// was.
func (d *Delivery) RedriveAs(ctx context.Context, ref uint64, data []byte) error {
	return d.command(ctx, func(r *deliverer) error {
		p, err := r.parked(ref)
		if err != nil {
			return err
		}
		if _, underWay := r.lot.loaded[ref]; underWay {
			return fmt.Errorf("parked event %d is being delivered now; try again when it is done", ref)
		}
		r.lot.edited[ref] = data
		return r.redo(p)
	})
}

// Discard forgets the parked entry ref without delivering it and lets what
// waits behind it go. It counts as skipped. Errors are those of Redrive.
func (d *Delivery) Discard(ctx context.Context, ref uint64) error {
	return d.command(ctx, func(r *deliverer) error { return r.discard(ref) })
}

// Parked returns at most limit parked entries with a Ref greater than after.
func (d *Delivery) Parked(ctx context.Context, after uint64, limit int) (list []onewrite.Parked, err error) {
	err = d.command(ctx, func(r *deliverer) error {
		list, err = r.sub.Parked(r.finish, after, limit, nil)
		r.explain(list)
		return err
	})
	return list, err
}

func (d *Delivery) command(ctx context.Context, run func(*deliverer) error) error {
	d.setup()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	c := command{run: run, done: make(chan error, 1)}
	select {
	case d.commands <- c:
	case <-ctx.Done():
		return fmt.Errorf("destination %s is not being delivered by this copy now; look at onewrite status", d.Interest.Name)
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		<-c.done // the loop has the command; it never takes long
		return ctx.Err()
	}
}

// Run delivers until ctx ends, and then returns nil: the writes under way are
// finished and the cursor is stored, so that a clean stop repeats nothing.
func (d *Delivery) Run(ctx context.Context) error {
	d.setup()
	log := logger(d.Log).With("destination", d.Interest.Name)
	for fails := 0; ; {
		before := d.Status().Delivered
		err := d.session(ctx, log)
		if ctx.Err() != nil {
			d.set(func(s *DeliveryStatus) { s.State = Stopped })
			return nil
		}
		if d.Status().Delivered > before {
			fails = 0
		}
		fails++
		pause := d.Retry.Pause(fails)
		if errors.Is(err, onewrite.ErrStandby) || errors.Is(err, onewrite.ErrFenced) {
			pause = time.Second
		}
		d.note(log, err)
		_ = sleep(ctx, pause) // the end of ctx is met at the top
	}
}

// silence is how long the bus may leave a question open before the status says
// so.
const silence = 5 * time.Second

var errSilent = fmt.Errorf("the bus has not answered for %v; is its server or its disk stalled?", silence)

// errStopped halts a delivery: an operator has to look.
var errStopped = errors.New("stopped")

func (d *Delivery) note(log *slog.Logger, err error) {
	d.mu.Lock()
	fresh := d.status.LastError != err.Error()
	if errors.Is(err, onewrite.ErrStandby) || errors.Is(err, onewrite.ErrFenced) {
		d.status = DeliveryStatus{} // the numbers are those of another copy now
	}
	d.status.State, d.status.LastError = Waiting, err.Error()
	d.mu.Unlock()
	if !fresh {
		return
	}
	if errors.Is(err, onewrite.ErrStandby) {
		log.Info("standing by", "reason", err)
		return
	}
	log.Warn("delivery interrupted, will try again", "error", err)
}

func (d *Delivery) set(f func(*DeliveryStatus)) {
	d.mu.Lock()
	f(&d.status)
	d.mu.Unlock()
}

// takeCommands says whether a session answers commands.
func (d *Delivery) takeCommands(yes bool) {
	d.mu.Lock()
	d.running = yes
	d.mu.Unlock()
}

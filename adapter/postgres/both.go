package postgres

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onewrite/onewrite"
)

// Both reads the outbox from its ring, and row changes and messages from the log, as one source: its
// position is a place in each. See [onewrite.Source].
type Both struct {
	ring *Source
	log  atomic.Pointer[logReader] // nil while it cannot be read yet
	from time.Time                 // when it began to be opened

	alive   context.Context
	stop    context.CancelFunc
	pumps   sync.WaitGroup
	ringOut chan ringResult
	logOut  chan logResult

	// Of the goroutine that calls Read.
	at    *logPlace    // nil: nothing of the log was ever read
	pos   onewrite.Pos // in the ring
	gap   *onewrite.Gap
	anew  bool // the log is not there, and may never go on where it was left
	begun bool // the log is read

	pushed *pushed // nil unless the outbox is read from the log too
}

type ringResult struct {
	batch onewrite.Batch
	err   error
}

type logResult struct {
	opened *logReader    // the log can be read from now on
	gap    *onewrite.Gap // is told before: the log may have to wait
	anew   bool          // it cannot be opened, or begins elsewhere and may have to wait
	items  []item
	events []onewrite.Event // of items
	err    error
}

// slotWaits is said while the slot cannot be made.
const slotWaits = "row changes are not read yet: the slot can be made when the transactions that are open now have ended; the oldest: SELECT pid, xact_start, application_name FROM pg_stat_activity ORDER BY xact_start LIMIT 1"

// logWaits is said while the log is being opened, and its slot is there.
const logWaits = "row changes are not read yet: the server has not opened its log so far; look there: SELECT pid, wait_event, left(query, 80) FROM pg_stat_activity WHERE application_name = 'onewrite log'"

// soon is how long the opening of the log is waited for. A slot can be made only when
// the transactions that are open have ended, which may take hours: the outbox does not
// wait for that. Where the ring has all that the log has, it hardly waits: a takeover
// would last that much longer.
const (
	soon   = 2 * time.Second
	sooner = 250 * time.Millisecond
)

// OpenSource opens a source that reads the outbox and, if tables are captured or messages wanted, the log.
// The errors are those of [Open]; one that is a Gap: row changes are missing.
func OpenSource(ctx context.Context, cfg Config, pos onewrite.Pos) (onewrite.Source, error) {
	place, ringPos, err := splitPlaces(pos)
	if err != nil {
		return nil, err
	}
	if cfg.Known == nil {
		cfg.Known = &Known{}
	}
	ring, err := Open(ctx, cfg, ringPos)
	if err != nil {
		return nil, err
	}
	if len(cfg.Tables) == 0 && !cfg.Messages && !cfg.Pushed {
		return ring, nil
	}
	broken := ring.gap != nil && ring.gap.From == "the oldest row"
	b := &Both{ring: ring, at: place, pos: ring.at.pos(), from: time.Now(), ringOut: make(chan ringResult), logOut: make(chan logResult)}
	b.alive, b.stop = context.WithCancel(context.WithoutCancel(ctx))
	b.pumps.Go(func() { b.pumpLog(place, broken) })
	late := time.After(soon)
	if b.fallsBack() {
		late = time.After(sooner)
	}
	for waiting := true; waiting; {
		waiting = false
		select {
		case r := <-b.logOut:
			err = r.err
			b.opened(r)
			waiting = r.gap != nil || r.anew
		case <-late:
			if !b.fallsBack() { // otherwise what is wrong was said
				b.ring.cfg.trouble("log", map[bool]string{true: slotWaits, false: logWaits}[b.ring.slotting.Load()])
			}
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if cfg.Pushed {
		b.pushed = newPushed()
		return b, nil
	}
	b.pumps.Go(b.pumpRing)
	return b, nil
}

// fallsBack reports whether the ring alone has all that is to be read.
func (b *Both) fallsBack() bool {
	return b.ring.cfg.Pushed && len(b.ring.cfg.Tables) == 0 && !b.ring.cfg.Messages
}

// isNews reports whether it is about the log, and holds nothing that was read from it.
func (r *logResult) isNews() bool { return r.opened != nil || r.gap != nil || r.anew }

// opened takes over that the log can be read, or will be after a gap.
func (b *Both) opened(r logResult) {
	if r.gap != nil {
		b.gap = r.gap
	}
	b.anew = b.anew || r.gap != nil || r.anew
	if r.opened != nil {
		b.at, b.begun = &r.opened.begin, true
	}
}

// place is the position when the ring is read up to pos.
func (b *Both) place(at *logPlace, pos onewrite.Pos) onewrite.Pos {
	if at == nil {
		return pos
	}
	return joinPlaces(*at, pos)
}

func (b *Both) pumpRing() {
	for {
		var r ringResult
		r.batch, r.err = b.ring.Read(b.alive)
		select {
		case b.ringOut <- r:
		case <-b.alive.Done():
			return
		}
		if r.err != nil {
			return
		}
	}
}

// pumpLog opens the log and reads it.
func (b *Both) pumpLog(place *logPlace, broken bool) {
	tell := func(gap *onewrite.Gap) {
		select {
		case b.logOut <- logResult{gap: gap, anew: gap == nil}:
		case <-b.alive.Done():
		}
	}
	log, err := openLog(b.alive, b.ring.cfg, b.ring, place, broken, tell)
	for err != nil && b.fallsBack() {
		b.ring.cfg.trouble("log", "the outbox is read from its ring alone: "+err.Error())
		tell(nil)
		select {
		case <-b.alive.Done():
			return
		case <-time.After(watchEvery):
		}
		log, err = openLog(b.alive, b.ring.cfg, b.ring, place, broken, tell)
	}
	r := logResult{opened: log, err: err}
	if err == nil {
		b.log.Store(log)
		b.ring.cfg.trouble("log", "")
	}
	for {
		select {
		case b.logOut <- r:
		case <-b.alive.Done():
			return
		}
		if r.err != nil {
			return
		}
		r = logResult{}
		r.items, r.events, r.err = log.Read(b.alive)
	}
}

// Read returns the next events of either. See [onewrite.Source].
func (b *Both) Read(ctx context.Context) (onewrite.Batch, error) {
	if b.pushed != nil {
		return b.readPushed(ctx)
	}
	for {
		if g := b.gap; g != nil {
			b.gap = nil
			return onewrite.Batch{Pos: b.place(b.at, b.pos), Gap: g}, nil
		}
		select {
		case <-ctx.Done():
			return onewrite.Batch{}, ctx.Err()
		case r := <-b.ringOut:
			return b.fromRing(r)
		case r := <-b.logOut:
			if !r.isNews() {
				return b.fromLog(r)
			}
			b.opened(r)
		}
	}
}

func (b *Both) fromRing(r ringResult) (onewrite.Batch, error) {
	if r.err != nil {
		return onewrite.Batch{}, r.err
	}
	out, at, posAt := r.batch, b.at, r.batch.PosAt
	b.pos = out.Pos
	out.Pos = b.place(at, b.pos)
	if posAt != nil {
		last := out.Pos
		out.PosAt = func(i int) onewrite.Pos {
			if i == len(out.Events)-1 {
				return last
			}
			return b.place(at, posAt(i))
		}
	}
	return out, nil
}

func (b *Both) fromLog(r logResult) (onewrite.Batch, error) {
	if r.err != nil {
		return onewrite.Batch{}, r.err
	}
	at := r.items[len(r.items)-1].at // its address would keep all of them
	b.at = &at
	ring, items := b.pos, r.items
	out := onewrite.Batch{Pos: joinPlaces(*b.at, ring), Events: r.events}
	out.PosAt = func(i int) onewrite.Pos { return joinPlaces(items[i].at, ring) }
	b.log.Load().hand(out.Pos, b.at.done, len(items))
	return out, nil
}

// Stored says that the bus holds all up to pos: the server may forget the log up to
// there. The outbox waits for Ack.
func (b *Both) Stored(pos onewrite.Pos) {
	if log := b.log.Load(); log != nil {
		log.Stored(pos)
	}
}

// Ack notes what of the outbox may be forgotten. See [onewrite.Source].
func (b *Both) Ack(ctx context.Context, pos onewrite.Pos) error {
	_, ring, err := splitPlaces(pos)
	if err != nil || ring == "" {
		return err
	}
	return b.ring.Ack(ctx, ring)
}

// Close ends both.
func (b *Both) Close() error {
	b.stop()
	b.pumps.Wait()
	if log := b.log.Load(); log != nil {
		log.close()
	}
	return b.ring.Close()
}

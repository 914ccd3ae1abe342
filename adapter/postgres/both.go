package postgres

import (
	"context"
	"errors"
	"sync"

	"github.com/onewrite/onewrite"
)

// Both reads the outbox from its ring and row changes from the log, as one source: its
// position is a place in each. See [onewrite.Source].
type Both struct {
	ring *Source
	log  *logReader

	alive   context.Context
	stop    context.CancelFunc
	pumps   sync.WaitGroup
	ringOut chan ringResult
	logOut  chan logResult

	// Of the goroutine that calls Read.
	at  logPlace
	pos onewrite.Pos // in the ring
	gap *onewrite.Gap
}

type ringResult struct {
	batch onewrite.Batch
	err   error
}

type logResult struct {
	items []item
	err   error
}

// OpenSource opens a source that reads the outbox and, if tables are captured, the log.
// The errors are those of [Open]; one that is a Gap: row changes are missing.
func OpenSource(ctx context.Context, cfg Config, pos onewrite.Pos) (onewrite.Source, error) {
	place, ringPos, err := splitPlaces(pos)
	if err != nil {
		return nil, err
	}
	ring, err := Open(ctx, cfg, ringPos)
	if err != nil {
		return nil, err
	}
	if len(cfg.Tables) == 0 {
		return ring, nil
	}
	broken := ring.gap != nil && ring.gap.From == "the oldest row"
	log, gap, err := openLog(ctx, ring.cfg, ring, place, broken)
	if err != nil {
		return nil, errors.Join(err, ring.Close())
	}
	b := &Both{ring: ring, log: log, at: log.begin, pos: ring.at.pos(), gap: gap, ringOut: make(chan ringResult), logOut: make(chan logResult)}
	b.alive, b.stop = context.WithCancel(context.WithoutCancel(ctx))
	b.pumps.Go(b.pumpRing)
	b.pumps.Go(b.pumpLog)
	return b, nil
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

func (b *Both) pumpLog() {
	for {
		var r logResult
		r.items, r.err = b.log.Read(b.alive)
		select {
		case b.logOut <- r:
		case <-b.alive.Done():
			return
		}
		if r.err != nil {
			return
		}
	}
}

// Read returns the next events of either. See [onewrite.Source].
func (b *Both) Read(ctx context.Context) (onewrite.Batch, error) {
	if g := b.gap; g != nil {
		b.gap = nil
		return onewrite.Batch{Pos: joinPlaces(b.at, b.pos), Gap: g}, nil
	}
	select {
	case <-ctx.Done():
		return onewrite.Batch{}, ctx.Err()
	case r := <-b.ringOut:
		return b.fromRing(r)
	case r := <-b.logOut:
		return b.fromLog(r)
	}
}

func (b *Both) fromRing(r ringResult) (onewrite.Batch, error) {
	if r.err != nil {
		return onewrite.Batch{}, r.err
	}
	out, at, posAt := r.batch, b.at, r.batch.PosAt
	b.pos = out.Pos
	out.Pos = joinPlaces(at, b.pos)
	if posAt != nil {
		last := out.Pos
		out.PosAt = func(i int) onewrite.Pos {
			if i == len(out.Events)-1 {
				return last
			}
			return joinPlaces(at, posAt(i))
		}
	}
	return out, nil
}

func (b *Both) fromLog(r logResult) (onewrite.Batch, error) {
	if r.err != nil {
		return onewrite.Batch{}, r.err
	}
	b.at = r.items[len(r.items)-1].at
	out := onewrite.Batch{Pos: joinPlaces(b.at, b.pos), Events: make([]onewrite.Event, len(r.items))}
	for i := range r.items {
		out.Events[i] = r.items[i].event
	}
	ring, items := b.pos, r.items
	out.PosAt = func(i int) onewrite.Pos { return joinPlaces(items[i].at, ring) }
	b.log.hand(out.Pos, items)
	return out, nil
}

// Stored says that the bus holds all up to pos: the server may forget the log up to
// there. The outbox waits for Ack.
func (b *Both) Stored(pos onewrite.Pos) { b.log.Stored(pos) }

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
	b.log.close()
	err := b.ring.Close()
	b.pumps.Wait()
	return err
}

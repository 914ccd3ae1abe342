package onewritetest

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/outbox"
)

// storm: writers commit and take back as they like while the source is closed and
// opened again, at places in the middle of what it read.
func (t *sourceTest) storm() {
	const writers = 4
	var mu sync.Mutex // guards what sourceTest knows of the events
	errs := make(chan error, writers)
	for w := range writers {
		go func() { errs <- t.write(&mu, "key-"+strconv.Itoa(w)) }()
	}
	var got []onewrite.Event
	pos, writing := onewrite.Pos(""), writers
	for end := time.Now().Add(3 * t.h.Patience); writing > 0 || len(got) < len(t.wrote); {
		if time.Now().After(end) {
			t.Fatalf("only %d events came within %v", len(got), 3*t.h.Patience)
		}
		select {
		case err := <-errs:
			t.must(err, "write")
			writing--
			continue
		default:
		}
		r := t.open(pos)
		r.some()
		n := len(r.events) - rand.IntN(min(len(r.events), 5)+1)
		for n > 0 && r.places[n-1] == "" {
			n--
		}
		if n > 0 {
			got, pos = append(got, r.events[:n]...), r.places[n-1]
			if rand.IntN(2) == 0 {
				r.ack(pos)
			}
		}
		r.close()
	}
	t.check(got, t.all())
	t.open(pos).done()
}

// all is what was committed.
func (t *sourceTest) all() (es []outbox.Event) {
	for _, w := range t.wrote {
		es = append(es, w.Event)
	}
	return es
}

// some reads a few batches.
func (r *reader) some() {
	ctx, cancel := context.WithTimeout(r.ctx, while)
	defer cancel()
	for range 1 + rand.IntN(6) {
		if err := r.next(ctx); err != nil {
			if ctx.Err() == nil {
				r.Fatalf("read: %v", err)
			}
			return
		}
	}
}

// write is a writer of a storm, the only one of its key.
func (t *sourceTest) write(mu *sync.Mutex, key string) error {
	for range 40 {
		mu.Lock()
		events, ghosts := t.events(1+rand.IntN(4), key, key, ""), t.events(2, key)
		mu.Unlock()
		tx, err := t.h.Begin(t.ctx)
		if err != nil {
			return err
		}
		if rand.IntN(3) == 0 {
			err = tx.Undo(t.ctx, ghosts...)
		}
		if err == nil {
			err = tx.Publish(t.ctx, events...)
		}
		if err != nil {
			return errors.Join(err, tx.Rollback())
		}
		if rand.IntN(4) == 0 {
			if err := tx.Rollback(); err != nil {
				return err
			}
			continue
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		mu.Lock()
		for _, e := range events {
			t.wrote[e.ID] = written{e, len(t.wrote)}
		}
		mu.Unlock()
	}
	return nil
}

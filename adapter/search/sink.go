package search

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
)

// Sink writes documents to one cluster. Its methods may be called by several
// goroutines at once.
type Sink struct {
	c     Config
	http  *client
	index template
	id    template
	life  life

	mu    sync.Mutex
	state *state // under mu

}

// New looks for the first address that answers and reads what is known of the
// sources. The error says why there is none.
func New(ctx context.Context, c Config) (*Sink, error) {
	addresses, err := c.prepare()
	if err != nil {
		return nil, err
	}
	s := &Sink{c: c, http: newClient(&c, addresses), state: newState(&c), index: parseTemplate(c.Index), id: parseTemplate(c.ID)}
	s.life.begin()
	var errs []error
	for i := range addresses {
		s.http.at = i
		if err = s.state.load(ctx, s.http); err == nil {
			return s, nil
		}
		errs = append(errs, err)
	}
	s.life.end()
	s.http.close()
	return nil, errors.Join(errs...)
}

// closePatience is how long Close may take to store what was seen last.
const closePatience = 2 * time.Second

// Close ends the writes under way and closes the connections. It may be called again.
func (s *Sink) Close() error {
	again := s.life.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !again && s.state.changed {
		ctx, cancel := context.WithTimeout(context.Background(), closePatience)
		defer cancel()
		// What is not stored is seen again: only a restore within a second of the end
		// would not be noticed.
		if err := s.state.save(ctx, s.http, s.c.now()); err != nil {
			s.c.Logger.Debug("what was seen last was not stored", "error", err)
		}
	}
	s.http.close()
	return nil
}

// Write writes the documents of the events; see [onewrite.Sink]. It cuts them into
// requests in which no two are of one key or of one document.
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	ctx, leave, err := s.life.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	done := 0
	for done < len(events) {
		if err := ctx.Err(); err != nil {
			return done, fmt.Errorf("search: %w", err)
		}
		ops, bad := s.window(events[done:])
		if len(ops) > 0 {
			n, err := s.send(ctx, ops)
			done += n
			if err != nil {
				return done, err
			}
		}
		if bad != nil {
			return done, bad
		}
	}
	return done, nil
}

// window returns what the leading events do that may be in one request. The error is
// about the event behind them.
func (s *Sink) window(events []onewrite.Event) ([]op, error) {
	ops := make([]op, 0, len(events))
	lanes := make(map[[2]string]struct{}, len(events))
	docs := make(map[[2]string]struct{}, len(events))
	size := 0
	for i := range events {
		e := &events[i]
		lane := [2]string{e.Source, e.Key}
		if _, twice := lanes[lane]; twice && e.Key != "" {
			return ops, nil
		}
		o, err := s.plan(e)
		if err != nil {
			return ops, err
		}
		doc := [2]string{o.index, o.id}
		_, twice := docs[doc]
		size += len(o.doc) + len(o.id) + 200
		if i > 0 && (twice || size > maxRequest || o.kind == empties) {
			return ops, nil
		}
		if ops = append(ops, o); o.kind == empties {
			return ops, nil
		}
		lanes[lane], docs[doc] = struct{}{}, struct{}{}
	}
	return ops, nil
}

// send writes one request's ops and returns how many leading ones are durable.
func (s *Sink) send(ctx context.Context, ops []op) (int, error) {
	if err := s.number(ctx, ops); err != nil {
		return 0, err
	}
	if ops[0].kind == empties {
		if err := s.truncate(ctx, &ops[0]); err != nil {
			return 0, err
		}
		return 1, nil
	}
	n, bad := s.fillIn(ctx, ops)
	if n == 0 {
		return 0, bad
	}
	n, err := s.bulk(ctx, ops[:n])
	if err == nil {
		err = bad
	}
	return n, err
}

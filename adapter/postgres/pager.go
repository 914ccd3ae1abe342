package postgres

import (
	"context"

	"github.com/onewrite/onewrite/internal/sabotage"
)

// pager reads a difference that is larger than a page: the pair of snapshots is
// frozen and the rows are read in the order of seq, piece by piece, each found
// by its block ranges. Memory is bounded by the size of a piece, whatever the
// backlog. While one piece is handed over the next one is read.
type pager struct {
	to    int64 // the last number that may belong to the difference; 0: off
	step  int64 // numbers looked at in a piece
	last  int64 // the last number read
	found int   // rows in the last piece
	ahead chan piece
	count int
}

// piece is the answer to a read ahead.
type piece struct {
	result
	upto int64
	err  error
}

const (
	fullStep  = 10_000    // numbers in a piece
	maxStep   = 1_000_000 // in a piece of numbers that hold few rows
	breathers = 8         // after so many pieces the session is free for the ring
)

func (p *pager) on() bool { return p.to > 0 }

// begin freezes the pair after a first page that was cut behind number last.
func (p *pager) begin(ctx context.Context, s *Source, last int64) error {
	p.last = last
	return p.start(ctx, s)
}

// resume goes on inside a pair that a position names.
func (p *pager) resume(ctx context.Context, s *Source) error {
	p.last = s.at.seq
	return p.start(ctx, s)
}

func (p *pager) start(ctx context.Context, s *Source) error {
	if _, err := s.conn.Exec(ctx, `SELECT onewrite.summarize()`); err != nil {
		s.log.Debug("block ranges not summarised; reading a backlog is slower", "error", explain(err))
	}
	p.step = fullStep
	// Read after the snapshot: it is not less than any number in it.
	return explain(s.conn.QueryRow(ctx, `SELECT last_value FROM onewrite.seq`).Scan(&p.to))
}

// read reads the piece behind p.last; the session is the caller's.
func (p *pager) read(ctx context.Context, s *Source) piece {
	out := piece{upto: min(p.last+p.step, p.to)}
	out.result, out.err = s.piece(ctx, s.at.from.text, s.at.to.text, p.last, out.upto, max(p.found*9/8, 64))
	if out.more {
		out.upto = out.last()
	}
	return out
}

// next takes the next piece into the queue. When the last one is read, the pair
// is done and the upper snapshot is the new lower one. The session is held.
func (p *pager) next(ctx context.Context, s *Source) (found bool, err error) {
	var got piece
	if p.ahead != nil {
		select {
		case got = <-p.ahead:
			p.ahead = nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	} else {
		got = p.read(ctx, s)
	}
	if got.err == nil {
		got.err = sabotage.At("postgres.page")
	}
	if got.err != nil {
		return false, got.err
	}
	p.step = fullStep
	if got.len() < fullStep/8 && !got.more {
		p.step = min((got.upto-p.last)*2, maxStep)
	}
	p.last, p.found = got.upto, got.len()
	s.queue = got.rows
	s.queue.drop(s.proof.skip)
	if p.last >= p.to {
		p.to = 0
		if s.queue.len() == 0 {
			s.end()
		}
		return s.queue.len() > 0, nil
	}
	// Never after an empty piece: the caller comes back at once with the session.
	if p.count++; s.queue.len() > 0 && p.count%breathers != 0 {
		p.readAhead(s)
	}
	return s.queue.len() > 0, nil
}

// readAhead reads the next piece while the caller works on this one. It takes
// the session when the caller lets go of it.
func (p *pager) readAhead(s *Source) {
	ahead := make(chan piece, 1)
	p.ahead = ahead
	next := pager{to: p.to, step: p.step, last: p.last, found: p.found}
	from := Source{cfg: s.cfg, texts: texts{}, conn: s.conn, at: place{from: s.at.from, to: s.at.to}}
	s.work.Go(func() {
		s.session.Lock()
		defer s.session.Unlock()
		ahead <- next.read(s.alive, &from)
	})
}

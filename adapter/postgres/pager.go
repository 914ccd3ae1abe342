package postgres

import (
	"context"
)

// pager reads a difference that is larger than a page: the pair of snapshots is
// frozen and the rows are read in the order of seq, piece by piece, each found
// by its block ranges. Memory is bounded by the size of a piece, whatever the
// backlog.
type pager struct {
	to   int64 // the last number that may belong to the difference; 0: off
	step int64 // numbers looked at in a piece
	last int64 // the last number read
}

const (
	maxPiece = 10_000    // rows in a piece
	maxStep  = 1_000_000 // numbers in a piece that holds few rows
)

func (p *pager) on() bool { return p.to > 0 }

// begin freezes the pair after a first page that was cut.
func (p *pager) begin(ctx context.Context, s *Source, first []row) error {
	s.at.seq = 0
	p.last = first[len(first)-1].seq
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
	p.step = maxPiece
	// Read after the snapshot: it is not less than any number in it.
	return explain(s.conn.QueryRow(ctx, `SELECT last_value FROM onewrite.seq`).Scan(&p.to))
}

// next reads one piece into the queue. When the last one is read, the pair is
// done and the upper snapshot is the new lower one.
func (p *pager) next(ctx context.Context, s *Source) (found bool, err error) {
	hi := min(p.last+p.step, p.to)
	limit := maxPiece
	res, err := s.run(ctx, pageSQL, limit, s.at.from.text, s.at.to.text, p.last, hi)
	if err != nil {
		return false, err
	}
	if n := len(res.rows); res.more && n > 0 {
		hi = res.rows[n-1].seq
	}
	if len(res.rows) < maxPiece/8 {
		p.step = min(p.step*2, maxStep)
	} else {
		p.step = maxPiece
	}
	p.last = hi
	s.queue = res.rows
	if p.last >= p.to {
		p.to = 0
		if len(res.rows) == 0 {
			s.at.from, s.at.to, s.at.seq = s.at.to, snapshot{}, 0
		}
	}
	return len(res.rows) > 0, nil
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// forked says how the server's history differs from the one that led to a place; ""
// is not at all. A transaction that was read in part is part of it; whether it is there
// shows when it is read on, see meets. A slot that was confirmed up to the place is a proof; it is behind
// after a crash, of the server or of the reader, but also in a backup that was
// restored, where the log may be beyond the place again.
func (s *asked) forked(p *logPlace) (string, error) {
	if p.done > s.flushed || p.tx != 0 && p.tx >= s.flushed {
		return fmt.Sprintf("the database went back in time (a backup was restored, or a failover lost commits): its log ends at %s", s.flushed), nil
	}
	if p.line != s.line {
		at, err := s.ended(p.line)
		if err == nil && (p.done > at || p.tx != 0 && p.tx >= at) {
			return fmt.Sprintf("a failover lost commits that were read already: timeline %d ended at %s", p.line, at), nil
		}
		return "", err
	}
	if s.strayed {
		return fmt.Sprintf("the database went back in time (a backup was restored): no transaction commits at %s, where one that was read in part did", p.tx), nil
	}
	if s.slot.confirmed >= p.done {
		return "", nil
	}
	ok, err := s.history(p)
	if err == nil && !ok {
		return fmt.Sprintf("the database went back in time (a backup was restored): no transaction ends at %s, where one that was read did", p.done), nil
	}
	return "", err
}

// meets is told the commit of each transaction that the log has: where the place that
// reading began at is inside of one, that one has to come, and none in its stead.
func (r *logReader) meets(commit pgoutput.LSN, ends int64) error {
	if r.inside != 0 && commit == r.inside && (r.begin.ends == 0 || ends == r.begin.ends) {
		r.inside = 0
	}
	return r.passes(commit)
}

// passes is told how far the log has come.
func (r *logReader) passes(at pgoutput.LSN) error {
	if r.inside == 0 || at < r.inside {
		return nil
	}
	r.cfg.Known.stray(&r.begin)
	return errStrayed // opening it again says what is missing
}

var errStrayed = errors.New("postgres: the transaction that was read in part is not in the log")

// stray notes that the server's log does not have the transaction that a place is inside of.
func (k *Known) stray(p *logPlace) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.strayed = [2]pgoutput.LSN{p.slot, p.tx}
}

// strays reports whether that was noted of a place.
func (k *Known) strays(p *logPlace) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return p != nil && p.tx != 0 && k.strayed == [2]pgoutput.LSN{p.slot, p.tx}
}

// timelineHistory asks a server how it came to a timeline.
func timelineHistory(ctx context.Context, url string, line uint32) (content string, err error) {
	rep, err := connectSender(ctx, url, "onewrite log")
	if err != nil {
		return "", err
	}
	defer func() { _ = rep.Close(context.WithoutCancel(ctx)) }()
	var file string
	err = rep.QueryRow(ctx, fmt.Sprintf("TIMELINE_HISTORY %d", line)).Scan(&file, &content)
	return content, explain(err)
}

// timelineEnd asks where a timeline ended on the way to the present one.
func timelineEnd(ctx context.Context, url string, line uint32, now uint32) (pgoutput.LSN, error) {
	content, err := timelineHistory(ctx, url, now)
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(content) {
		var n uint32
		var at string
		if _, err := fmt.Sscan(l, &n, &at); err == nil && n == line {
			return pgoutput.ParseLSN(at)
		}
	}
	return 0, nil // no ancestor: nothing of ours is in it
}

// endsThere asks whether the transaction that ended at a place, behind the one that the
// slot is confirmed up to, still does: another history may have one that ends there too,
// but not at the same moment.
func (r *logReader) endsThere(ctx context.Context, p *logPlace) (there bool, err error) {
	var commit []byte
	err = r.host.QueryRow(ctx, `SELECT data FROM pg_logical_slot_peek_binary_changes($1, $2::text::pg_lsn, NULL, `+r.options()+`)
		WHERE lsn = $2::text::pg_lsn AND get_byte(data, 0) = 67`, // 'C', a commit
		r.slot, p.done.String()).Scan(&commit)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, explainSlot(err)
	}
	var m pgoutput.Message
	if err := new(pgoutput.Decoder).Decode(commit, &m); err != nil {
		return false, err
	}
	return p.when == 0 || int64(m.CommitTime) == p.when, nil
}

// unmoved makes sure that the slot, which is held now, was not moved by another since it
// was opened: the server would begin where the slot is, and say nothing.
func (r *logReader) unmoved(ctx context.Context, from pgoutput.LSN) error {
	r.side.Lock()
	s, err := lookAtSlot(ctx, r.host, r.slot, 150000)
	r.side.Unlock()
	if err != nil {
		return err
	}
	r.mu.Lock()
	allowed := max(from, r.judged, r.stored.done, pgoutput.LSN(r.rep.confirmed.Load()))
	r.mu.Unlock()
	if s == nil || s.confirmed > allowed {
		return errMoved
	}
	return nil
}

// errMoved ends a reader; opening it again says what is missing.
var errMoved = errors.New("postgres: the slot is not where this process has left it")

package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// forked says how the server's history differs from the one that led to a place; ""
// is not at all. A slot that was confirmed up to the place is a proof; it is behind
// after a crash, of the server or of the reader, but also in a backup that was
// restored, where the log may be beyond the place again.
func (s *asked) forked(p *logPlace) (string, error) {
	if p.done > s.flushed {
		return fmt.Sprintf("the database went back in time (a backup was restored, or a failover lost commits): its log ends at %s", s.flushed), nil
	}
	if p.line != s.line {
		at, err := s.ended(p.line)
		if err == nil && p.done > at {
			return fmt.Sprintf("a failover lost commits that were read already: timeline %d ended at %s", p.line, at), nil
		}
		return "", err
	}
	if s.slot.confirmed >= p.done {
		return "", nil
	}
	ok, err := s.history(p.done)
	if err == nil && !ok {
		return fmt.Sprintf("the database went back in time (a backup was restored): no transaction ends at %s, where one that was read did", p.done), nil
	}
	return "", err
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

// endsThere asks whether a transaction of the publication ended at a place behind the
// one that the slot is confirmed up to.
func (r *logReader) endsThere(ctx context.Context, at pgoutput.LSN) (there bool, err error) {
	err = r.host.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_logical_slot_peek_binary_changes($1, $2::text::pg_lsn, NULL, `+r.options()+`)
		WHERE lsn = $2::text::pg_lsn AND get_byte(data, 0) = 67)`, // 'C', a commit
		r.slot, at.String()).Scan(&there)
	return there, explainSlot(err)
}

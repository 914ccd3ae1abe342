package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
	"github.com/onewrite/onewrite/internal/sabotage"
)

var errUnreadable = errors.New("it cannot be read")

// load reads a destination's record; rev 0 means that there is none.
func (b *Bus) load(ctx context.Context, dest string) (r places.Record, rev uint64, err error) {
	m, err := b.link.get(ctx, b.stateStream(), query{LastFor: b.cursorSubject(dest)})
	if err != nil {
		return r, 0, b.stateless("cursor of destination "+dest, err)
	}
	if m == nil {
		return r, 0, nil
	}
	if r, err = places.Parse(m.Data); err != nil {
		return r, m.Seq, fmt.Errorf("nats: cursor of destination %s: %w: %w; restore the bus from its backup, or take the destination out of the file and give up all that is pending and parked for it: onewrite reload --forget %s", dest, errUnreadable, err, dest)
	}
	return r, m.Seq, nil
}

// save stores a record if the stored one still has revision rev.
func (b *Bus) save(ctx context.Context, dest string, r *places.Record, rev uint64) (uint64, error) {
	data, err := json.Marshal(r)
	if err == nil {
		err = sabotage.At("bus.save")
	}
	if err != nil {
		return 0, fmt.Errorf("nats: cursor of destination %s: %w", dest, err)
	}
	seq, err := b.publish(ctx, b.stateStream(), casMsg(b.cursorSubject(dest), rev, data))
	if moved(err) {
		return 0, fmt.Errorf("nats: cursor of destination %s: %w", dest, onewrite.ErrFenced)
	}
	if err != nil {
		return 0, b.stateless("cursor of destination "+dest, err)
	}
	return seq, nil
}

// stateless words a failure of the stream of cursors; one that is gone is made
// again at the next start.
func (b *Bus) stateless(what string, err error) error {
	if errors.Is(err, natsgo.ErrNoResponders) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("nats: %s: %w; if the stream %s was removed, restart onewrite: it makes the stream anew and says what is missing", what, err, b.stateStream())
	}
	return fmt.Errorf("nats: %s: %w", what, err)
}

// Destinations returns the names that have a place on the bus, in order.
func (b *Bus) Destinations(ctx context.Context) ([]string, error) {
	js, err := b.link.jetStream()
	if err != nil {
		return nil, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	prefix := b.cursorSubject("")
	s, err := js.Stream(ctx, b.stateStream())
	if err != nil {
		return nil, b.stateless("list destinations", err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(prefix+">"))
	if err != nil {
		return nil, fmt.Errorf("nats: list destinations: %w", err)
	}
	var names []string
	for _, subject := range slices.Sorted(maps.Keys(info.State.Subjects)) {
		name := strings.TrimPrefix(subject, prefix)
		r, _, err := b.load(ctx, name)
		if err != nil && !errors.Is(err, errUnreadable) {
			return nil, err
		}
		if !r.Forgotten {
			names = append(names, name)
		}
	}
	return names, nil
}

// records returns what is stored for every destination.
func (b *Bus) records(ctx context.Context) (map[string]places.Record, error) {
	names, err := b.Destinations(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[string]places.Record, len(names))
	for _, name := range names {
		r, rev, err := b.load(ctx, name)
		if err != nil {
			return nil, err
		}
		if rev > 0 {
			all[name] = r
		}
	}
	return all, nil
}

// Floors returns, for each destination with a stored cursor, the offset of a log
// up to which everything is confirmed, parked or filtered out; whichever copy
// delivers to it.
func (b *Bus) Floors(ctx context.Context, log string) (map[string]uint64, error) {
	if err := b.writable(b.stateStream()); err != nil { // nothing may be there to be told
		return nil, err
	}
	all, err := b.records(ctx)
	if err != nil {
		return nil, err
	}
	floors := make(map[string]uint64, len(all))
	for name, r := range all {
		floors[name] = r.Cursor.Logs[log].Floor
	}
	return floors, nil
}

// take makes this copy the owner of a destination, or returns ErrStandby. rev is
// that of the record, fence that of the parked events.
func (b *Bus) take(ctx context.Context, in onewrite.Interest) (r places.Record, rev, fence uint64, err error) {
	if fence, err = b.fenceOf(ctx, in.Name); err != nil {
		return r, 0, 0, err
	}
	if r, rev, err = b.load(ctx, in.Name); err != nil {
		return r, 0, 0, err
	}
	if rev == 0 || r.Forgotten {
		r.Cursor, r.Forgotten = onewrite.Cursor{}, false
		if r.Cursor.Logs, err = b.floors(ctx, in.Sources, in.From); err != nil {
			return r, 0, 0, err
		}
	} else if err := b.mayTake(in.Name, r, rev); err != nil {
		return r, 0, 0, err
	}
	if err := sabotage.At("bus.take"); err != nil {
		return r, 0, 0, err
	}
	r.Epoch++
	r.Owner, r.Released, r.Topics = b.owner, false, in.Topics
	if rev, err = b.save(ctx, in.Name, &r, rev); err == nil {
		fence, err = b.raiseFence(ctx, in.Name, r.Epoch, fence)
	}
	if errors.Is(err, onewrite.ErrFenced) {
		return r, 0, 0, fmt.Errorf("nats: destination %s: another copy was faster: %w", in.Name, onewrite.ErrStandby)
	}
	if err == nil {
		err = b.name(in.Name, true)
	}
	return r, rev, fence, err
}

// mayTake watches a record that belongs to another copy. The folder of the
// embedded bus is locked, so there the other owner is dead.
func (b *Bus) mayTake(dest string, r places.Record, rev uint64) error {
	if b.emb != nil || b.claims.MayTake(dest, b.owner, r, rev, b.cfg.lease) {
		return nil
	}
	return fmt.Errorf("nats: destination %s: %w", dest, onewrite.ErrStandby)
}

// floors returns where a destination begins in each log that is there.
func (b *Bus) floors(ctx context.Context, sources []string, from onewrite.From) (map[string]onewrite.LogCursor, error) {
	logs := map[string]onewrite.LogCursor{}
	for _, source := range sources {
		floor, err := b.floor(ctx, source, from)
		if err != nil {
			return nil, err
		}
		if floor > 0 {
			logs[source] = onewrite.LogCursor{Floor: floor}
		}
	}
	return logs, nil
}

// floor returns the offset before the first event to hand out.
func (b *Bus) floor(ctx context.Context, source string, from onewrite.From) (uint64, error) {
	if err := b.checkSource(source); err != nil {
		return 0, err
	}
	js, err := b.link.jetStream()
	if err != nil {
		return 0, err
	}
	s, err := js.Stream(ctx, b.stream(source))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("nats: stream of source %s: %w", source, err)
	}
	l, state := b.logOf(source), s.CachedInfo().State
	switch {
	case from.Now:
		return b.lastOffset(ctx, l, state)
	case from.Time.IsZero():
		first, err := b.firstOffset(ctx, l, state)
		return max(first, 1) - 1, err
	}
	m, err := b.since(ctx, source, from.Time)
	if err != nil {
		return 0, err
	}
	if m == nil {
		return b.lastOffset(ctx, l, state)
	}
	h, err := m.header()
	if err != nil {
		return 0, fmt.Errorf("nats: message %d of source %s: %w", m.Seq, source, err)
	}
	at, _, err := place(h, m.Seq)
	if err != nil {
		return 0, fmt.Errorf("nats: message %d of source %s: %w", m.Seq, source, err)
	}
	return at - 1, nil
}

// since returns the first message that the bus stored at or after t.
func (b *Bus) since(ctx context.Context, source string, t time.Time) (*stored, error) {
	t = t.UTC()
	m, err := b.link.get(ctx, b.stream(source), query{NextFor: b.subjects(source) + ">", StartTime: &t})
	if err != nil {
		return nil, fmt.Errorf("nats: events of source %s since %s: %w", source, t.Format(time.RFC3339), err)
	}
	return m, nil
}

// Rewind moves the place of a destination that is not being delivered, so that
// the events stored from then on are handed out again. Its counters stay.
// ErrStandby: another copy delivers to it.
func (b *Bus) Rewind(ctx context.Context, name string, from onewrite.From) error {
	if !validName(name) {
		return fmt.Errorf("nats: destination name %q: use letters, digits, _ and - only", name)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	r, rev, err := b.load(ctx, name)
	if err != nil {
		return err
	}
	if rev == 0 || r.Forgotten {
		return fmt.Errorf("nats: destination %s has no place on the bus yet; start it first", name)
	}
	if err := b.mayTake(name, r, rev); err != nil {
		return fmt.Errorf("%w; run the replay on the copy that delivers", err)
	}
	back, err := b.floors(ctx, slices.Collect(maps.Keys(r.Cursor.Logs)), from)
	if err != nil {
		return err
	}
	r.Rewind(b.owner, back)
	_, err = b.save(ctx, name, &r, rev)
	return err
}

// Forget drops the place of a destination and its parked events. A copy that
// still delivers to it is fenced.
func (b *Bus) Forget(ctx context.Context, name string) error {
	if !validName(name) {
		return fmt.Errorf("nats: destination name %q: use letters, digits, _ and - only", name)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	for _, step := range b.forgetting(name) {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// forgetting are the steps of Forget. After each of them the place is one that a start
// takes for whole.
func (b *Bus) forgetting(name string) []func(context.Context) error {
	return []func(context.Context) error{
		func(context.Context) error { return b.name(name, false) },
		func(ctx context.Context) error { return b.disown(ctx, name) },
		func(ctx context.Context) error {
			return b.purge(ctx, name, b.parkedStream(), b.parkedSubject(name)+">")
		},
	}
}

func (b *Bus) purge(ctx context.Context, name, stream, subject string) error {
	js, err := b.link.jetStream()
	if err != nil {
		return err
	}
	s, err := js.Stream(ctx, stream)
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSubject(subject))
	}
	if err != nil {
		return fmt.Errorf("nats: forget destination %s: %w", name, err)
	}
	return nil
}

// disown stores that the place is given up and nothing is parked, and fences the copy
// that delivers to it. Where nothing is parked a full disk does not keep it from going:
// it is removed, and comes back if the process is killed.
func (b *Bus) disown(ctx context.Context, name string) error {
	for {
		r, rev, err := b.load(ctx, name)
		if err != nil && !errors.Is(err, errUnreadable) {
			return err
		}
		if rev == 0 || r.Forgotten {
			return nil
		}
		parked := r.Cursor.Parked
		r = places.Record{Epoch: r.Epoch + 1, Owner: b.owner, Released: true, Forgotten: true}
		_, err = b.save(ctx, name, &r, rev)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, onewrite.ErrFenced) && ctx.Err() == nil:
			continue // it commits just now, and does not from then on
		case parked == 0 && ctx.Err() == nil:
			return b.purge(ctx, name, b.stateStream(), b.cursorSubject(name))
		}
		return err
	}
}

// finishForgetting removes what a crash has left of the parked events of places that
// were given up.
func (b *Bus) finishForgetting(ctx context.Context) error {
	js, err := b.link.jetStream()
	if err != nil {
		return err
	}
	s, err := js.Stream(ctx, b.parkedStream())
	if err != nil {
		return fmt.Errorf("nats: parked events: %w", err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(b.parkedStream()+".>"))
	if err != nil {
		return fmt.Errorf("nats: parked events: %w", err)
	}
	seen := map[string]bool{}
	for subject := range info.State.Subjects {
		name, _, _ := strings.Cut(strings.TrimPrefix(subject, b.parkedStream()+"."), ".")
		if seen[name] {
			continue
		}
		seen[name] = true
		r, _, err := b.load(ctx, name)
		if err != nil && !errors.Is(err, errUnreadable) {
			return err
		}
		if r.Forgotten {
			if err := b.purge(ctx, name, b.parkedStream(), b.parkedSubject(name)+">"); err != nil {
				return err
			}
		}
	}
	return nil
}

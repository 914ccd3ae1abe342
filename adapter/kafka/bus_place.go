package kafka

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
)

// Headers that say what a record of a place is, behind its mark.
const (
	cursorHeader  = "onewrite-cursor"  // the value is a record of its place
	parkedHeader  = "onewrite-parked"  // a parked event
	unparkHeader  = "onewrite-unpark"  // the value is a list of refs
	cleanedHeader = "onewrite-cleaned" // nothing parked from before counts
)

// place is the log of one destination, read from its beginning: its newest record, and
// what is parked. Who writes to it has read all that is there, so a stale owner finds out
// what came after him before he changes anything.
type place struct {
	b           *Bus
	dest, topic string

	busy   gate   // held while it reads and writes; it guards what follows
	start  int64  // of the topic
	end    int64  // of the topic, where the next record is to lie
	newest []byte // the value of the last record that was read
	whole  unfold
	rec    places.Record
	rev    int64 // where rec lies; -1: there is none
	first  int64 // where the append begins that rec is of
	parked []entry
}

// entry is a parked event; the event itself is read when it is wanted.
type entry struct {
	parkedMark
	at, first int64 // offsets in the topic: its own, and that of the first of its append
	size      int   // of its record
}

// parkedMark is what is kept beside a parked event.
type parkedMark struct {
	Ref      uint64    `json:"ref"`
	Log      string    `json:"log"`
	Offset   uint64    `json:"offset"`
	ID       string    `json:"id"`
	Key      string    `json:"key,omitempty"`
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts,omitempty"`
	Holds    bool      `json:"holds,omitempty"`
	At       time.Time `json:"at"`
}

// placeOf returns the place of a destination. It makes the topic if create says so;
// without, nil is a destination that has none.
func (b *Bus) placeOf(ctx context.Context, dest string, create bool) (*place, error) {
	if !validName(dest) {
		return nil, fmt.Errorf("kafka: destination name %q: use letters, digits, _ and - only", dest)
	}
	topic := b.placeTopic(dest)
	if create {
		if err := b.ensure(ctx, topic); err != nil {
			return nil, err
		}
	} else if there, err := b.exists(ctx, topic); err != nil || !there {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.places[dest]
	if p == nil {
		p = &place{busy: make(gate, 1), b: b, dest: dest, topic: topic, rev: -1}
		b.places[dest] = p
	}
	return p, nil
}

// enter waits until nobody else reads or writes the place here.
func (p *place) enter(ctx context.Context) error {
	return p.b.worded(p.busy.enter(ctx), "place of destination "+p.dest, p.topic)
}

// hold enters and reads what was written since; busy is to be left then.
func (p *place) hold(ctx context.Context) error {
	if err := p.enter(ctx); err != nil {
		return err
	}
	if err := p.refresh(ctx); err != nil {
		p.busy.leave()
		return err
	}
	return nil
}

// refresh reads what was written since; p.busy is held.
func (p *place) refresh(ctx context.Context) error {
	start, end, err := p.b.bounds(ctx, p.topic)
	if err != nil {
		return err
	}
	// What others have cleaned away, or a topic that was made anew, is read again from
	// its beginning: what counts is all there.
	if start > p.end || end < p.end {
		p.anew(start)
	}
	p.start = start
	from := p.end
	if end > p.end {
		from = max(start, p.end-1) // what was read last has to be there yet
	}
	err = p.b.scan(ctx, p.topic, from, end, p.fold)
	if errors.Is(err, errPutBack) {
		p.anew(start)
		err = p.b.scan(ctx, p.topic, start, end, p.fold)
	}
	if err != nil {
		p.anew(0) // half read: begin again
		return err
	}
	if p.end < end { // other programs' control records
		p.end, p.newest = end, nil
	}
	return nil
}

// anew forgets what was read: it begins at an offset.
func (p *place) anew(start int64) {
	p.end, p.newest, p.whole, p.rec, p.rev, p.parked = start, nil, unfold{}, places.Record{}, -1, nil
}

// errPutBack: the log has another record where the last one was.
var errPutBack = errors.New("the log was put back")

// fold takes the next record of the log into account.
func (p *place) fold(r *kgo.Record) error {
	if r.Offset < p.end {
		if r.Offset == p.end-1 && !bytes.Equal(r.Value, p.newest) {
			return errPutBack
		}
		return nil
	}
	p.end, p.newest = r.Offset+1, r.Value
	whole, m, _ := p.whole.take(r)
	for _, r := range whole {
		if err := p.apply(r, m.first); err != nil {
			return fmt.Errorf("kafka: record %d of topic %s: %w; restore the topic, or give up the place and its parked events: kafka-topics.sh --delete --topic %s; the destination then begins again where its from: says, by default with all that the bus keeps", r.Offset, p.topic, err, p.topic)
		}
	}
	return nil
}

// apply takes a record into account that counts, of an append that begins at first.
func (p *place) apply(r *kgo.Record, first int64) error {
	if len(r.Headers) < 2 {
		return nil
	}
	switch h := r.Headers[1]; h.Key {
	case cursorHeader:
		rec, err := places.Parse(r.Value)
		if err != nil {
			return err
		}
		p.rec, p.rev, p.first = rec, r.Offset, first
	case parkedHeader:
		e := entry{at: r.Offset, first: first, size: sizeOf(r)}
		if err := json.Unmarshal(h.Value, &e.parkedMark); err != nil {
			return err
		}
		if i, there := p.find(e.Ref); there { // it was moved
			p.parked[i] = e
		} else {
			p.parked = slices.Insert(p.parked, i, e)
		}
	case unparkHeader:
		var refs []uint64
		if err := json.Unmarshal(r.Value, &refs); err != nil {
			return err
		}
		for _, ref := range refs {
			if i, there := p.find(ref); there {
				p.parked = slices.Delete(p.parked, i, i+1)
			}
		}
	case cleanedHeader:
		p.parked = nil
	}
	return nil
}

// pick calls f with the records of entries, in the order in which they lie. One that is
// not there any more is left out.
func (p *place) pick(ctx context.Context, of []entry, f func(*kgo.Record) error) error {
	at := make([]int64, 0, len(of))
	for _, e := range of {
		if e.at >= p.start {
			at = append(at, e.at)
		}
	}
	slices.Sort(at)
	return p.b.pick(ctx, p.topic, at, f)
}

// find returns where an entry is, or would be.
func (p *place) find(ref uint64) (int, bool) {
	return slices.BinarySearchFunc(p.parked, ref, func(e entry, ref uint64) int { return cmp.Compare(e.Ref, ref) })
}

// errMoved: somebody else has written; all of it is read by now.
var errMoved = errors.New("another copy was faster")

// write stores records behind all that was read; p.busy is held. With errMoved nothing
// was stored, and p has what came before. Any other error is unknown: the next refresh
// tells.
func (p *place) write(ctx context.Context, recs ...*kgo.Record) error {
	m := newMark(p.end, len(recs))
	for i, r := range recs {
		r.Topic, r.Partition = p.topic, 0
		r.Headers = append([]kgo.RecordHeader{m.header(i)}, r.Headers...)
	}
	_, err := p.b.exists(ctx, p.topic) // the client asks for the limit once
	if err == nil {
		err = p.b.store(ctx, recs)
	}
	if err != nil {
		p.b.gone(p.topic, err)
		if errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID) || oversize(err) {
			p.b.cl.PurgeTopicsFromProducing(p.topic) // it takes no other topic of this name before, and no other limit
		}
		return p.b.worded(p.b.heard.with(err), "place of destination "+p.dest, p.topic)
	}
	moved := false
	for i, r := range recs {
		moved = moved || r.Offset != p.end+int64(i)
	}
	if moved {
		if err := p.refresh(ctx); err != nil {
			return err
		}
		return errMoved
	}
	for _, r := range recs {
		if err := p.fold(r); err != nil {
			return err
		}
	}
	return nil
}

// kind is the header that says what a record is.
func kind(key string, value []byte) []kgo.RecordHeader {
	return []kgo.RecordHeader{{Key: key, Value: value}}
}

func cursorRecord(rec *places.Record) (*kgo.Record, error) {
	text, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("kafka: cursor: %w", err)
	}
	return &kgo.Record{Value: text, Headers: kind(cursorHeader, nil)}, nil
}

// save replaces the record as long as it is the one that change was made for; p.busy is
// held. change returns the new one, or an error that ends it.
func (p *place) save(ctx context.Context, change func(now places.Record) (places.Record, error)) error {
	for {
		next, err := change(p.rec)
		if err != nil {
			return err
		}
		r, err := cursorRecord(&next)
		if err != nil {
			return err
		}
		if err := p.write(ctx, r); !errors.Is(err, errMoved) || ctx.Err() != nil {
			return err
		}
	}
}

// mayTake returns ErrStandby for a place that another copy has; p.busy is held.
func (b *Bus) mayTake(p *place) error {
	if b.claims.MayTake(p.dest, b.owner, p.rec, uint64(p.rev), b.cfg.lease) {
		return nil
	}
	return fmt.Errorf("kafka: destination %s: %w", p.dest, onewrite.ErrStandby)
}

// take makes this copy the owner of a destination, or returns ErrStandby.
func (b *Bus) take(ctx context.Context, in onewrite.Interest) (*place, places.Record, error) {
	p, err := b.placeOf(ctx, in.Name, true)
	if err != nil {
		return nil, places.Record{}, err
	}
	if err := p.hold(ctx); err != nil {
		return nil, places.Record{}, err
	}
	defer p.busy.leave()
	was := p.rec.Epoch
	next := p.rec
	if p.rev < 0 || next.Forgotten {
		next.Cursor, next.Known, next.Forgotten = onewrite.Cursor{}, nil, false
		if next.Cursor.Logs, err = b.floors(ctx, in.Sources, in.From); err != nil {
			return nil, next, err
		}
	} else if err := b.mayTake(p); err != nil {
		return nil, next, err
	}
	next.Epoch, next.Owner, next.Released, next.Topics = was+1, b.owner, false, in.Topics
	err = p.save(ctx, func(now places.Record) (places.Record, error) {
		if now.Epoch != was { // it is just as well if only the cursor of a dying owner has moved
			return now, fmt.Errorf("kafka: destination %s: another copy was faster: %w", in.Name, onewrite.ErrStandby)
		}
		if p.rev >= 0 && !now.Forgotten {
			next.Cursor, next.Known = now.Cursor, now.Known
		}
		return next, nil
	})
	return p, next, err
}

// Destinations returns the names that have a place on the bus, in order.
func (b *Bus) Destinations(ctx context.Context) ([]string, error) {
	all, err := b.records(ctx)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// records returns what is stored for every destination.
func (b *Bus) records(ctx context.Context) (map[string]places.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	names, err := b.names(ctx, b.placeTopic(""))
	if err != nil {
		return nil, err
	}
	all := make(map[string]places.Record, len(names))
	for _, name := range names {
		p, err := b.placeOf(ctx, name, false)
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue
		}
		rec, there, err := p.read(ctx)
		if err != nil {
			return nil, err
		}
		if there {
			all[name] = rec
		}
	}
	return all, nil
}

// read returns the newest record; false: the destination has no place.
func (p *place) read(ctx context.Context) (places.Record, bool, error) {
	if err := p.hold(ctx); err != nil {
		return places.Record{}, false, err
	}
	defer p.busy.leave()
	return p.rec, p.rev >= 0 && !p.rec.Forgotten, nil
}

// Floors returns, for each destination with a stored cursor, the offset of a log up to
// which everything is confirmed, parked or filtered out; whichever copy delivers to it.
func (b *Bus) Floors(ctx context.Context, log string) (map[string]uint64, error) {
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

// Rewind moves the place of a destination that is not being delivered, so that the
// events stored from then on are handed out again. Its counters stay.
// ErrStandby: another copy delivers to it.
func (b *Bus) Rewind(ctx context.Context, name string, from onewrite.From) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p, err := b.placeOf(ctx, name, false)
	if err != nil {
		return err
	}
	none := fmt.Errorf("kafka: destination %s has no place on the bus yet; start it first", name)
	if p == nil {
		return none
	}
	sources, err := b.names(ctx, b.logTopic(""))
	if err != nil {
		return err
	}
	back, err := b.floors(ctx, sources, from)
	if err != nil {
		return err
	}
	if err := p.hold(ctx); err != nil {
		return err
	}
	defer p.busy.leave()
	return p.save(ctx, func(now places.Record) (places.Record, error) {
		if p.rev < 0 || now.Forgotten {
			return now, none
		}
		if err := b.mayTake(p); err != nil {
			return now, fmt.Errorf("%w; run the replay on the copy that delivers", err)
		}
		now.Rewind(b.owner, back)
		return now, nil
	})
}

// Forget drops the place of a destination and its parked events. A copy that still
// delivers to it is fenced.
func (b *Bus) Forget(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p, err := b.placeOf(ctx, name, false)
	if err != nil || p == nil {
		return err
	}
	if err := p.hold(ctx); err != nil {
		return err
	}
	defer p.busy.leave()
	for {
		if p.rev < 0 || p.rec.Forgotten {
			return nil
		}
		r, err := cursorRecord(&places.Record{Epoch: p.rec.Epoch + 1, Owner: b.owner, Released: true, Forgotten: true})
		if err != nil {
			return err
		}
		if err := p.write(ctx, &kgo.Record{Headers: kind(cleanedHeader, nil)}, r); !errors.Is(err, errMoved) || ctx.Err() != nil {
			return err
		}
	}
}

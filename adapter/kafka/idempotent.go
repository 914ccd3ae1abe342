package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
)

// Idempotent writes without transactions, and waits for all replicas in sync. The
// brokers drop what the client sends again by itself; what a crash leaves
// unconfirmed is written again and is there twice.
type Idempotent struct {
	*core
	dirty bool // records are under way that nobody waits for; whose turn it is
}

// NewIdempotent connects, and creates the topic of places, which has the partitions'
// numbers here, if there is none. The error says why it cannot.
func NewIdempotent(ctx context.Context, c Config) (*Idempotent, error) {
	s, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	return &Idempotent{core: s}, nil
}

// Write sends events in windows of which each partition gets one batch, so that what
// stands behind a refused record in its key never passes it; see [onewrite.Sink].
// Writes take turns.
func (s *Idempotent) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	if len(events) == 0 {
		return 0, nil
	}
	ctx, end, err := s.begin(ctx, writeTimeout)
	if err != nil {
		return 0, err
	}
	defer end()
	if err := s.prepare(ctx); err != nil {
		return 0, err
	}
	n, cause := s.admit(ctx, events)
	if err := s.note(ctx); err != nil {
		return 0, err
	}
	done := 0
	for done < n {
		sent, err := s.writeWindow(ctx, events[done:done+s.window(events[done:n])])
		done += sent
		if err != nil {
			return done, err
		}
	}
	return done, cause
}

// prepare waits for what an earlier call left under way, and reads what is remembered.
func (s *Idempotent) prepare(ctx context.Context) error {
	if s.dirty {
		if err := s.giveUp(ctx); err != nil {
			return s.worded(err, "give up records without an answer", "")
		}
		s.dirty = false
	}
	if s.counts != nil {
		return nil
	}
	mark, token := s.mark()
	if err := s.put(ctx, mark); err != nil {
		return err
	}
	m, err := s.recall(ctx, mark, token)
	if err != nil {
		return err
	}
	return s.recollect(m)
}

// note writes the partitions' numbers before a topic is written to.
func (s *Idempotent) note(ctx context.Context) error {
	counts := s.remember(false)
	if counts == nil {
		return nil
	}
	err := s.put(ctx, counts)
	if err != nil {
		s.forgot()
	}
	return err
}

// put writes one record to the topic of places.
func (s *Idempotent) put(ctx context.Context, r *kgo.Record) error {
	errs, err := s.send(ctx, []*kgo.Record{r})
	if err != nil {
		s.dirty = true
	} else if errs[0] != nil {
		err = unsteered{errs[0]}
	}
	return s.worded(err, "the places of "+s.c.Destination, s.c.Places)
}

// window returns how many leading events may be under way together: each partition's
// are one batch, and each key's are in one partition.
func (s *Idempotent) window(events []onewrite.Event) int {
	type lane struct{ source, key string }
	sizes, keys := map[string]int{}, make(map[lane]string, len(events))
	for i := range events {
		e := &events[i]
		name := s.topicOf(e)
		size := s.sizeOf(e)
		if had := sizes[name]; had > 0 && had+size+batchOverhead > s.known(name).limit || i == chunk {
			return i
		}
		sizes[name] += size
		if e.Key == "" {
			continue
		}
		l := lane{e.Source, e.Key}
		if other, has := keys[l]; has && other != name {
			return i
		}
		keys[l] = name
	}
	return len(events)
}

// writeWindow sends a window and waits for the answers. A batch that is refused as
// a whole is sent again in halves, to find the event.
func (s *Idempotent) writeWindow(ctx context.Context, events []onewrite.Event) (int, error) {
	recs, of := s.records(events)
	errs, err := s.send(ctx, recs)
	if err != nil {
		s.dirty = true
		return 0, s.worded(err, "event "+events[0].ID, recs[0].Topic)
	}
	i := failed(errs)
	if i < 0 {
		return len(events), nil
	}
	bad := of[first(errs)]
	r := recs[i]
	switch {
	case !refusal(errs[i]) && s.moved(r) != nil:
		return bad, s.moved(r)
	case fenced(errs[i]): // no twin can do that to a producer without a transactional.id
		return bad, s.worded(unsteered{errs[i]}, "event "+events[bad].ID, r.Topic)
	case batchwide(errs[i]) && bad == of[i] && s.shared(recs, errs, of, i):
		return s.halves(ctx, events, errs, of)
	case bad != of[i]:
		return bad, s.worded(errs[first(errs)], "event "+events[bad].ID, recs[first(errs)].Topic)
	}
	return bad, s.worded(errs[i], "event "+events[bad].ID, r.Topic)
}

// first returns the first record with an error.
func first(errs []error) int {
	for i, err := range errs {
		if err != nil {
			return i
		}
	}
	return -1
}

// shared reports whether records of other events were refused with record i.
func (s *Idempotent) shared(recs []*kgo.Record, errs []error, of []int, i int) bool {
	for j := range recs {
		if errs[j] != nil && of[j] != of[i] && errors.Is(errs[j], errs[i]) && recs[j].Topic == recs[i].Topic && recs[j].Partition == recs[i].Partition {
			return true
		}
	}
	return false
}

// halves sends again what was not stored, in two windows.
func (s *Idempotent) halves(ctx context.Context, events []onewrite.Event, errs []error, of []int) (int, error) {
	var rest []onewrite.Event
	var at []int // where they were in events
	for j, err := range errs {
		if k := of[j]; err != nil && (len(at) == 0 || at[len(at)-1] != k) {
			rest, at = append(rest, events[k]), append(at, k)
		}
	}
	mid := (len(rest) + 1) / 2
	for _, part := range [][2]int{{0, mid}, {mid, len(rest)}} {
		n, err := s.writeWindow(ctx, rest[part[0]:part[1]])
		if err != nil {
			return at[part[0]+n], err
		}
	}
	return len(events), nil
}

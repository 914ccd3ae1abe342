package kafka

import (
	"context"
	"reflect"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
	"github.com/onewrite/onewrite/internal/topics"
)

// view looks at a place that belongs to nobody here.
type view struct {
	b       *Bus
	name    string
	sources []string
	s       *subscription // that counts; it remembers what was counted while the place stays
	at      places.Record // the record that it was made for
}

// View returns what looks at the place of a destination that nobody delivers to here;
// sources are the logs to count in.
func (b *Bus) View(name string, sources []string) places.View {
	return &view{b: b, name: name, sources: sources}
}

// Held returns what the destination has on the bus.
func (v *view) Held(ctx context.Context) (places.Held, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p, err := v.b.placeOf(ctx, v.name, false)
	if err != nil || p == nil {
		return places.Held{}, err
	}
	if err := p.hold(ctx); err != nil {
		return places.Held{}, err
	}
	rec, there, parked := p.rec, p.rev >= 0 && !p.rec.Forgotten, len(p.parked)
	p.busy.leave()
	if !there {
		return places.Held{}, nil
	}
	if v.s == nil || !reflect.DeepEqual(v.at.Cursor.Logs, rec.Cursor.Logs) {
		if err := v.open(ctx, rec); err != nil {
			return places.Held{}, err
		}
	}
	pending, err := v.s.Pending(ctx, rec.Cursor.Logs)
	return places.Held{Cursor: places.Clone(rec.Cursor), Epoch: rec.Epoch, Pending: pending, Parked: uint64(parked)}, err
}

// open makes what counts behind a place.
func (v *view) open(ctx context.Context, rec places.Record) error {
	v.at, v.s = rec, nil
	rec.Cursor = places.Clone(rec.Cursor) // opening a log may move it
	s := &subscription{b: v.b, filter: topics.New(rec.Topics), rec: rec}
	for _, source := range v.sources {
		l := v.b.logOf(source)
		if there, err := v.b.exists(ctx, l.topic); err != nil {
			return err
		} else if !there {
			continue
		}
		r, _, err := s.open(ctx, l)
		if err != nil {
			return err
		}
		s.logs = append(s.logs, r)
	}
	v.s = s
	return nil
}

// Parked lists parked events of the destination.
func (v *view) Parked(ctx context.Context, after uint64, limit int) ([]onewrite.Parked, error) {
	p, err := v.b.placeOf(ctx, v.name, false)
	if err != nil || p == nil {
		return nil, err
	}
	return (&subscription{b: v.b, place: p}).Parked(ctx, after, limit, nil)
}

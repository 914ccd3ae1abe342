package nats

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
	ctx, cancel := bounded(ctx)
	defer cancel()
	rec, rev, err := v.b.load(ctx, v.name)
	if err != nil || rev == 0 || rec.Forgotten {
		return places.Held{}, err
	}
	if v.s == nil || !reflect.DeepEqual(v.at.Cursor.Logs, rec.Cursor.Logs) {
		v.at, v.s = rec, &subscription{b: v.b, in: onewrite.Interest{Name: v.name}, filter: topics.New(rec.Topics)}
		for _, source := range v.sources {
			v.s.logs = append(v.s.logs, newLogReader(v.b, source, rec.Cursor.Logs[source]))
		}
	}
	h := places.Held{Cursor: places.Clone(rec.Cursor), Epoch: rec.Epoch}
	if h.Pending, err = v.s.Pending(ctx, rec.Cursor.Logs); err == nil {
		h.Parked, err = v.s.countOf(ctx, v.b.parkedStream(), v.b.parkedSubject(v.name)+"*.*")
	}
	return h, err
}

// Parked lists parked events of the destination.
func (v *view) Parked(ctx context.Context, after uint64, limit int) ([]onewrite.Parked, error) {
	return (&subscription{b: v.b, in: onewrite.Interest{Name: v.name}}).Parked(ctx, after, limit, nil)
}

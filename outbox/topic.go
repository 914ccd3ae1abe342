package outbox

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/onewrite/onewrite"
)

// Topic says how values of one type travel: the application publishes through it,
// and whoever consumes decodes with the same value.
//
//	var OrderPlaced = outbox.Topic[Order]{
//		Name: "order.placed",
//		Key:  func(o Order) string { return o.Customer },
//	}
//
// Only Name is required.
type Topic[T any] struct {
	// Name is the topic of the events; see [Event].
	Name string
	// Key gives the key of a value; nil: no order is promised.
	Key func(T) string
	// Type is the CloudEvents type; empty: the topic.
	Type string
	// Codec makes the payload; nil is [JSON].
	Codec Codec[T]
}

// Codec turns values into payloads and back. Many goroutines may use it.
type Codec[T any] interface {
	// ContentType is the media type of the payloads.
	ContentType() string
	// Marshal returns the payload of v.
	Marshal(v T) ([]byte, error)
	// Unmarshal returns the value of a payload.
	Unmarshal(data []byte) (T, error)
}

// JSON is the codec of encoding/json. What a payload has beyond the fields of T is
// ignored, so that fields can be added.
func JSON[T any]() Codec[T] { return jsonCodec[T]{} }

type jsonCodec[T any] struct{}

// ContentType is application/json.
func (jsonCodec[T]) ContentType() string { return "application/json" }

// Marshal is json.Marshal.
func (jsonCodec[T]) Marshal(v T) ([]byte, error) { return json.Marshal(v) }

// Unmarshal is json.Unmarshal into a new value.
func (jsonCodec[T]) Unmarshal(data []byte) (v T, err error) {
	err = json.Unmarshal(data, &v)
	return v, err
}

func (t Topic[T]) codec() Codec[T] {
	if t.Codec == nil {
		return JSON[T]()
	}
	return t.Codec
}

// Event returns the event of a value, to be changed (its ID, Headers or DeliverAt)
// and published. The error is the codec's.
func (t Topic[T]) Event(v T) (Event, error) {
	c := t.codec()
	payload, err := c.Marshal(v)
	if err != nil {
		return Event{}, fmt.Errorf("outbox: topic %s: %w", t.Name, err)
	}
	if payload == nil { // a value without bytes is data all the same
		payload = []byte{}
	}
	e := Event{Topic: t.Name, Type: t.Type, Payload: payload, ContentType: c.ContentType()}
	if t.Key != nil {
		e.Key = t.Key(v)
	}
	return e, nil
}

// Publish publishes values in tx with the settings of p, as [Publisher.Publish]
// does, in the order given and with one statement. The error is the codec's, and
// then nothing was written, or one of Publisher.Publish.
func (t Topic[T]) Publish(ctx context.Context, p *Publisher, tx Execer, values ...T) error {
	events := make([]Event, len(values))
	for i, v := range values {
		var err error
		if events[i], err = t.Event(v); err != nil {
			return err
		}
	}
	return p.Publish(ctx, tx, events...)
}

// Decode returns the value of an event. An error is [onewrite.ErrRejected], for the
// event will never do: it has another topic, no data, or data that the codec does not
// take.
func (t Topic[T]) Decode(e onewrite.Event) (v T, err error) {
	switch {
	case e.Topic != t.Name:
		return v, fmt.Errorf("outbox: %w: event %s is of topic %s, not %s", onewrite.ErrRejected, e.ID, e.Topic, t.Name)
	case e.Data == nil:
		return v, fmt.Errorf("outbox: %w: event %s of topic %s has no data", onewrite.ErrRejected, e.ID, t.Name)
	}
	v, err = t.codec().Unmarshal(e.Data)
	if err != nil {
		var zero T
		return zero, fmt.Errorf("outbox: %w: event %s of topic %s cannot be decoded: %w", onewrite.ErrRejected, e.ID, t.Name, err)
	}
	return v, nil
}

package protocodec_test

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/outbox/protocodec"
)

func TestThereAndBack(t *testing.T) {
	topic := outbox.Topic[*structpb.Struct]{Name: "order.placed", Codec: protocodec.Of[*structpb.Struct](),
		Key: func(s *structpb.Struct) string { return s.GetFields()["customer"].GetStringValue() }}
	want, err := structpb.NewStruct(map[string]any{"customer": "alice", "items": []any{1.0, "two"}, "a": true, "b": nil})
	if err != nil {
		t.Fatal(err)
	}
	e, err := topic.Event(want)
	if err != nil || e.Key != "alice" || e.ContentType != "application/protobuf" {
		t.Fatalf("%+v, %v", e, err)
	}
	got, err := topic.Decode(onewrite.Event{Topic: "order.placed", Data: e.Payload})
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := topic.Decode(onewrite.Event{Topic: "order.placed", Data: []byte{0xff}}); !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("no message: %v", err)
	}
	// A message without content has no bytes, and is no tombstone.
	if e, err := topic.Event(&structpb.Struct{}); err != nil || e.Payload == nil || len(e.Payload) != 0 {
		t.Errorf("%+v, %v", e, err)
	}
}

// Package protocodec is the protobuf codec for typed topics of package outbox:
//
//	var OrderPlaced = outbox.Topic[*shoppb.Order]{
//		Name: "order.placed", Codec: protocodec.Of[*shoppb.Order](),
//		Key: func(o *shoppb.Order) string { return o.GetCustomer() },
//	}
package protocodec

import (
	"google.golang.org/protobuf/proto"

	"github.com/onewrite/onewrite/outbox"
)

// Of returns the codec for a generated message type. The payload is the binary
// form, with the content type application/protobuf. Fields that T does not know are
// kept when a value is decoded and encoded again.
func Of[T proto.Message]() outbox.Codec[T] { return codec[T]{} }

type codec[T proto.Message] struct{}

// ContentType is application/protobuf.
func (codec[T]) ContentType() string { return "application/protobuf" }

// Marshal encodes in a stable order of the fields: equal messages give equal bytes
// as long as the program is the same.
func (codec[T]) Marshal(v T) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(v)
}

// Unmarshal decodes into a new message.
func (codec[T]) Unmarshal(data []byte) (T, error) {
	var zero T
	v := zero.ProtoReflect().New().Interface()
	err := proto.Unmarshal(data, v)
	if err != nil {
		return zero, err
	}
	return v.(T), nil //nolint:forcetypeassert // a message makes its own type
}

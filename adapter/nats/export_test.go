package nats

import (
	"context"
	"errors"
	"log/slog"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/topics"
)

// SetLease shortens the lease of an external bus.
func SetLease(c *Config, lease time.Duration) { c.lease = lease }

// StoreOnly makes readers take every event from the store.
func StoreOnly(c *Config) { c.recent = -1 }

// Decode reads the form on the wire.
var Decode = decode

// Filter is the topic filter by itself.
func Filter(patterns []string) (wants func(string) bool, subject string) {
	f := topics.New(patterns)
	return f.Wants, subjectFor(f, "")
}

// SubjectOf is the subject of a topic.
var SubjectOf = subjectOf

// Encode writes an event as a message, and Canonical is how it comes back.
func Encode(e *onewrite.Event) *natsgo.Msg {
	var enc encoder
	return enc.encode("x", e)
}

// Pack writes events as one message, as many of them as fit.
func Pack(events []onewrite.Event, first uint64) (*natsgo.Msg, int) {
	var enc encoder
	return enc.pack("x.", events, first, 0, packBytes)
}

// Unpack reads the events of a message that wants says yes to, by their offsets.
func Unpack(h natsgo.Header, data []byte, first uint64, wants func(offset uint64, topic string) bool) (map[uint64]onewrite.Event, error) {
	all := map[uint64]onewrite.Event{}
	return all, unpack(h, data, first, wants, func(offset uint64, e onewrite.Event) { all[offset] = e })
}

// ServerWarns is a warning of the embedded server on its way to a log.
func ServerWarns(log *slog.Logger, format string, args ...any) {
	(&serverLog{log: log}).Warnf(format, args...)
}

// PackBytes is about where a pack ends.
const PackBytes = packBytes

// Canonical is an event as readers in this process get it.
var Canonical = canonical

// ExamineAt is Examine of a machine whose clock is off by so much.
func ExamineAt(ctx context.Context, c Config, off time.Duration, sources ...string) []diagnosis.Finding {
	e := &examiner{now: func() time.Time { return time.Now().Add(off) }}
	e.bus(ctx, c, sources)
	return e.Found
}

// VersionOf judges the version of a server.
func VersionOf(text string) diagnosis.Finding {
	e := &examiner{}
	e.version(text)
	return e.Found[0]
}

// SubjectsWanted are the patterns that topics become.
var SubjectsWanted = subjectsOf

// ExamineStream is what Examine says of one stream, from what a server tells of it.
func ExamineStream(info *jetstream.StreamInfo) []diagnosis.Finding {
	var e examiner
	e.stream(info, 1)
	return e.Found
}

// ForgetUntil does the first steps of Forget, as one does that dies then; all says that
// there are no more.
func ForgetUntil(ctx context.Context, b *Bus, name string, steps int) (all bool, err error) {
	list := b.forgetting(name)
	for _, step := range list[:steps] {
		if err := step(ctx); err != nil {
			return false, err
		}
	}
	return steps == len(list), nil
}

// Sound looks whether the store holds what it must, and tells whether an error says that
// it does not.
func Sound(ctx context.Context, b *Bus) (isDamaged bool, err error) {
	err = b.sound(ctx)
	return errors.As(err, &damaged{}), err
}

// Held is how many events a subscription keeps beyond what Read returned.
func Held(s onewrite.Subscription) (n int) {
	for _, r := range s.(*subscription).logs {
		n += len(r.held)
	}
	return n
}

package nats

import (
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite"
)

// SetLease shortens the lease of an external bus.
func SetLease(c *Config, lease time.Duration) { c.lease = lease }

// StoreOnly makes readers take every event from the store.
func StoreOnly(c *Config) { c.recent = -1 }

// Decode reads the form on the wire.
var Decode = decode

// Filter is the topic filter by itself.
func Filter(topics []string) (wants func(string) bool, subject string) {
	f := newTopicFilter(topics)
	return f.wants, f.subject("")
}

// SubjectOf is the subject of a topic.
var SubjectOf = subjectOf

// Encode writes an event as a message, and Canonical is how it comes back.
func Encode(e *onewrite.Event) *natsgo.Msg {
	var enc encoder
	return enc.encode("x", e)
}

// Canonical is an event as readers in this process get it.
var Canonical = canonical

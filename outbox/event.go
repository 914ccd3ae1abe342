package outbox

import (
	"fmt"
	"strings"
	"time"
)

// Dialect is the SQL spoken by the application's database.
type Dialect int

// The dialects. Postgres writes to onewrite.outbox, the others to
// onewrite_outbox.
const (
	Postgres Dialect = iota + 1
	SQLite
	MySQL // and MariaDB
)

// Event is one fact to publish. Only Topic is required.
type Event struct {
	// ID is the event's identity, a UUID in its 36 character form. Consumers
	// drop what they have seen by it: equal ids are the same event. Empty: Publish
	// makes a UUIDv7. Set it to [NewID] to know it. It is stored in lower case.
	ID string
	// Topic routes the event: words of letters, digits, _ and - joined by dots
	// ("order.placed"), at most 255 bytes.
	Topic string
	// Key orders: events of one key arrive in commit order. At most 1024 bytes
	// of UTF-8 without NUL. Empty: no order is promised.
	Key string
	// Type is the CloudEvents type, at most 255 bytes without control
	// characters. Empty: the topic.
	Type string
	// Payload arrives byte for byte. nil is an event without data (a
	// tombstone); an empty, non-nil payload is data of no bytes.
	Payload []byte
	// ContentType is the payload's media type. Empty: what [DefaultContentType]
	// says; a payload of UTF-8 without NUL is text then, any other one binary.
	// A JSON type, and text/* in UTF-8 or without a charset, promise text: a
	// payload that is none is refused. All other types are stored as binary. So
	// name the type of binary data that may look like text. It is ignored for
	// an event without data.
	ContentType string
	// Headers are further attributes. Names of 1 to 20 lower-case letters and
	// digits travel as CloudEvents attributes, other names (RFC 9110 tokens) as
	// headers of the transport. Names that onewrite sets itself are refused.
	// Values are UTF-8 without control characters. A traceparent set here wins
	// over that of ctx.
	Headers map[string]string
	// DeliverAt, if it lies in the future, keeps the event until then: to the second
	// at least, as the database's clock has it, and never before. Its place in the
	// order of its key is the moment when it is due. See [Publisher.Cancel]. MySQL has
	// no scheduled events yet.
	DeliverAt time.Time
}

// Problem is one reason why an event cannot be published.
type Problem struct {
	// Event is the event's index in the call, from 0.
	Event int
	// Field is the name of the field of [Event], or "Size" for the whole.
	Field string
	// Text says what is wrong and how to cure it. It quotes no payload, no key
	// and no header value.
	Text string
}

// String returns the problem as one line.
func (p Problem) String() string {
	return fmt.Sprintf("event %d: %s %s", p.Event, p.Field, p.Text)
}

// InvalidError tells all that is wrong with the events of one call, of which
// none was written. Find it with errors.As.
type InvalidError struct {
	// Problems are in the order of the events; there is at least one.
	Problems []Problem
}

// maxListed bounds the text of an error about a whole batch of bad events.
const maxListed = 20

// Error lists the problems, the first twenty in full.
func (e *InvalidError) Error() string {
	var b strings.Builder
	b.WriteString("outbox: nothing was written")
	for i, p := range e.Problems {
		if i == maxListed {
			fmt.Fprintf(&b, "; and %d more", len(e.Problems)-i)
			break
		}
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString("; ")
		}
		b.WriteString(p.String())
	}
	return b.String()
}

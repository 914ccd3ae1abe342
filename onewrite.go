// Package onewrite holds the nouns and the laws of the system; it imports
// nothing but the standard library and implements nothing.
//
// An application commits one transaction. A [Source] reads what was committed,
// a [Bus] makes it durable together with the place it was read up to, a
// [Subscription] hands it to one destination, and a [Sink] makes it durable in
// another system. Left to right, never back: acknowledgements are the only
// thing that flows the other way.
//
// The laws that every implementation keeps:
//
//	L1  Nothing committed is lost; what cannot be healed is loud.
//	L2  Nothing uncommitted is seen.
//	L3  Per key, first deliveries are in commit order.
//	L4  Order of effects: events and position durable on the bus (one atomic
//	    step), then the source is acknowledged; sink durable, then the bus.
//	L5  A stale twin changes nothing: positions move by compare-and-swap.
//	L6  Repeats are bounded by what was in flight and carry the same id and
//	    the same bytes.
//	L7  Everything is bounded: memory by bytes, queues, retries, every loop.
//	L8  Nothing unconfirmed is dropped, by no setting.
//	L9  The application's transaction never waits for us.
//	L10 After ctx ends no goroutine remains, and a clean stop causes no repeats.
//
// Adapters fail fast: they hold no reconnect loop and no retry. Package
// pipeline owns retry, backoff, parking and positions, once.
package onewrite

import (
	"context"
	"errors"
	"time"
)

// Pos is a place in a source's log. It is opaque: only the source that made it
// can read it. The empty Pos is the beginning.
type Pos string

// Event is one fact to deliver: an outbox message or a row change.
type Event struct {
	// ID is the stable identity that consumers remember; it comes from the row
	// or the log, never from the moment of delivery.
	ID string
	// Source is the source's name in the configuration.
	Source string
	// Topic routes the event; dots make the hierarchy ("order.placed").
	Topic string
	// Type is the event's type; for an outbox event it defaults to the topic,
	// for a change it is insert, update, delete, truncate or snapshot.
	Type string
	// Key orders: events of one source with equal keys arrive in commit order.
	// Empty means that no order is promised.
	Key string
	// Time is the commit time where the log tells it, else the insertion time.
	Time time.Time
	// Seq is the place in the source as text that compares within the source:
	// of two events with one key, the later one has the greater Seq.
	Seq string
	// ContentType is the media type of Data; empty when Data is nil.
	ContentType string
	// Header holds the application's own attributes and transport headers.
	Header map[string]string
	// Data is the payload byte for byte; nil is an event without data.
	Data []byte
	// Tx tells the place in the source's transaction; zero for outbox events.
	Tx Tx
}

// Tx is the place of a row change in its transaction.
type Tx struct {
	// ID names the transaction within its source; empty when unknown.
	ID string
	// Index counts the events of the transaction from 0.
	Index int
	// Last is true for the transaction's last event.
	Last bool
}

// Barrier reports whether the event keeps order across keys: what its source had
// before it is delivered before, and what came after it after. A TRUNCATE does.
func (e *Event) Barrier() bool { return e.Type == "truncate" && e.Tx.ID != "" }

// Size is the memory an event holds, in bytes, near enough to bound queues by.
func (e *Event) Size() int {
	n := 160 + len(e.ID) + len(e.Source) + len(e.Topic) + len(e.Type) + len(e.Key) + len(e.Seq) + len(e.ContentType) + len(e.Data)
	for k, v := range e.Header {
		n += 32 + len(k) + len(v)
	}
	return n
}

// MaxBatch is the largest number of events in one [Batch], and so in one
// atomic append to the bus.
const MaxBatch = 1000

// Batch is a run of committed events in order.
type Batch struct {
	// Events are at most [MaxBatch] events, of one source.
	Events []Event
	// Pos is the place just after the last event. It may move while Events is
	// empty: then nothing needs to be stored.
	Pos Pos
	// PosAt returns the place just after Events[i], so that a bus may store the
	// events one by one. Nil: the batch can only be stored whole.
	PosAt func(i int) Pos
	// More says that more is there to be read: the batch is part of a backlog. A batch of
	// MaxBatch events is taken for one all the same.
	More bool
	// Gap reports damage that the source met on the way to this batch and healed
	// by reading again; see [Gap].
	Gap *Gap
}

// Gap says that history cannot be vouched for over a range: a restored backup,
// a foreign bus, a lost slot. A source that can heal it (by reading again, with
// the same ids) hands it over with the next [Batch]; one that cannot returns it
// as an error that is [ErrGap].
type Gap struct {
	// Reason is a sentence for the person on call.
	Reason string
	// From and To name the range covered, in the source's own terms.
	From, To string
	// Cure is the command or SQL to run, or what is left to do; empty when the source
	// healed it.
	Cure string
}

// Error returns the gap as one line.
func (g *Gap) Error() string {
	s := g.Reason + " [" + g.From + " .. " + g.To + "]"
	if g.Cure != "" {
		s += "; cure: " + g.Cure
	}
	return s
}

// Is makes every Gap an [ErrGap].
func (g *Gap) Is(target error) bool { return target == ErrGap }

// Source reads one database's committed events. A source is opened at a [Pos]
// by its adapter. Read is called by one goroutine; Ack may be called at the
// same time by another.
//
// A source with a method Stored(Pos) is told as soon as the bus holds all up to
// a position that it handed out, which may be long before Ack: a log that can be
// trimmed by then need not wait for the destinations.
type Source interface {
	// Read blocks until there is something to hand over and returns it.
	//   - a batch: every event is committed; nothing between the previous
	//     batch's Pos and this one's is missing
	//   - an error that is ErrGap: history is missing and only an operator can
	//     say how to go on
	//   - any other error, ctx's included: the source is broken; close it and
	//     open another one at the last stored position.
	// The events are the caller's to keep.
	Read(ctx context.Context) (Batch, error)
	// Ack says that all events up to pos are where they need to be and the
	// source may forget them. It may be late or repeated, and never goes back.
	// It does not wait for the clean-up. An error means as much as one of Read.
	Ack(ctx context.Context, pos Pos) error
	// Close releases what the source holds. Nothing is acknowledged by it.
	Close() error
}

// Sink makes events durable in another system.
type Sink interface {
	// Write is io.Writer's contract counted in events: the n leading events are
	// durable. If n < len(events), err is not nil and is about events[n]:
	//   - ErrRejected: the system was reached and refuses this very event
	//   - ErrGone: the system asked for no more events at all
	//   - ErrFenced: a newer copy owns this destination
	//   - any other error: unknown; the event may or may not be durable, and
	//     the same event will be written again with the same id.
	// An error with a method RetryAfter() time.Duration asks for that pause; one
	// with a method Answered() bool that returns true says that the system was
	// reached and failed on this event, without saying that it refuses it. With
	// both, the pause is that of the event and its key; others go on.
	// Write may be called by several goroutines at once, never with events of
	// one key in two of them.
	Write(ctx context.Context, events []Event) (n int, err error)
	// Close releases what the sink holds.
	Close() error
}

// Placed is a [Sink] that keeps a record of its destination's place together with
// the events, in one atomic step. What a crash leaves unconfirmed is compared with
// the record and not written again: no event comes twice. A delivery writes to it
// by WriteAt alone, one write at a time.
type Placed interface {
	Sink
	// Place returns the record of the last WriteAt that is durable; nil if there is
	// none. From when it returns, WriteAt of every sink of this destination that was
	// opened before fails with ErrFenced and changes nothing.
	Place(ctx context.Context) ([]byte, error)
	// WriteAt makes all messages and the record durable, or nothing. An error is
	// about messages[bad], and as one of Write otherwise; if it is unknown whether
	// all is durable or nothing, Place of the next sink says so. The messages are
	// in the order of their logs, but for those that were refused before.
	WriteAt(ctx context.Context, messages []Message, place []byte) (bad int, err error)
}

// Bus is the durable, ordered middle. It keeps one log per source; events and
// the source's position are stored together, in one atomic step.
type Bus interface {
	// Position returns the place up to which source's events are on the bus,
	// and the offset of its last event; "" and 0 for a source never seen.
	Position(ctx context.Context, source string) (Pos, uint64, error)
	// Append stores a batch of source's events, that follow prev, and b.Pos.
	//   - nil: all is on stable storage; last is the offset of the last event
	//   - ErrFenced: prev is not the position of the source (any more), or a
	//     newer copy is writing; nothing was stored
	//   - ErrFull: the bus holds as much unconfirmed as it may; nothing stored
	//   - ErrRejected: the bus can never store these events
	//   - any other error: unknown; ask Position.
	Append(ctx context.Context, source string, prev Pos, b Batch) (last uint64, err error)
	// Subscribe opens one destination's view of the bus.
	//   - ErrStandby: another live copy delivers to this destination; ask again
	Subscribe(ctx context.Context, in Interest) (Subscription, error)
}

// Interest says what a subscription wants.
type Interest struct {
	// Name is the destination's; its cursor is kept under it. An empty name is
	// an onlooker: it starts where From says, owns nothing and stores nothing.
	Name string
	// Sources are the logs to read.
	Sources []string
	// Topics are NATS patterns ("order.>", "*.placed"); empty means all.
	Topics []string
	// From is where a name never seen before begins.
	From From
}

// From is where a new destination begins on the bus; the zero value is the
// oldest event kept.
type From struct {
	// Now skips all that is there already.
	Now bool
	// Time skips what the bus stored before it.
	Time time.Time
}

// Message is an event at its place on the bus.
type Message struct {
	Event
	// Log is the ordered log the event is in.
	Log string
	// Offset is the event's place in the log, counted from 1.
	Offset uint64
}

// Span is an inclusive range of offsets.
type Span struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// LogCursor is a destination's place in one log.
type LogCursor struct {
	// Floor: every event up to and including it is confirmed, parked or
	// filtered out.
	Floor uint64 `json:"floor"`
	// Done are the events above Floor that are confirmed or parked already.
	Done []Span `json:"done,omitempty"`
}

// Cursor is what the bus remembers for one destination.
type Cursor struct {
	// Logs is the place in each log.
	Logs map[string]LogCursor `json:"logs"`
	// Delivered, Skipped and Filtered count events for ever.
	Delivered uint64 `json:"delivered"`
	Skipped   uint64 `json:"skipped"`
	Filtered  uint64 `json:"filtered"`
	// Settled are refs of parked entries that count as delivered or skipped
	// already and are about to be forgotten.
	Settled []uint64 `json:"settled,omitempty"`
	// Ahead are events that count already, though the place in their log does not say
	// so: parked by an owner who died before it stored the place, and delivered or
	// skipped since. They are not delivered when their turn comes.
	Ahead []Ahead `json:"ahead,omitempty"`
	// Parked counts the parked entries that must be there, LastParked is the ref
	// of the newest of them; 0 if none is.
	Parked     uint64 `json:"parked,omitempty"`
	LastParked uint64 `json:"last_parked,omitempty"`
	// Refused are the answers to parked events that were tried again, the newest last.
	Refused []Refusal `json:"refused,omitempty"`
	// Placed ties the cursor to the record that a [Placed] sink keeps; empty if there
	// is none. It begins with [PlacedVoid] if what the record names is to be written again.
	Placed string `json:"placed,omitempty"`
}

// Ahead is an event that a place does not cover. It is known by its id too, for a log
// may be made anew and have another one at the offset.
type Ahead struct {
	Log    string `json:"log"`
	Offset uint64 `json:"offset"`
	ID     uint64 `json:"id"` // the 64 bits of its FNV-1a hash
}

// Refusal is the answer to a parked event that was tried again.
type Refusal struct {
	Ref      uint64    `json:"ref"`
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts"` // those of all tries since it was parked
	At       time.Time `json:"at"`
}

// PlacedVoid stands before Cursor.Placed when the cursor was moved back on purpose.
const PlacedVoid = "void:"

// Parked is an event that a destination refused, or that waits behind one.
type Parked struct {
	// Ref names the entry within its destination; it grows with every entry.
	Ref uint64
	// Message is the event as it came.
	Message Message
	// Reason is the destination's last answer; "waits behind ID" for followers.
	Reason string
	// Attempts counts the failures held against the event; 0 for followers.
	Attempts int
	// Holds is true when later events of the key have to wait behind it; of
	// followers too.
	Holds bool
	// At is when it was parked.
	At time.Time
	// RefusedAt is when it was tried again and refused; zero if it was not. Reason and
	// Attempts include that then. No bus keeps it: the [Cursor] does.
	RefusedAt time.Time
}

// Subscription is one destination's place on the bus. Read is called by one
// goroutine; the other methods may be called at the same time by others, Commit
// by one at a time.
type Subscription interface {
	// Cursor returns what was stored last, and the epoch of this owner: it is
	// greater than that of every owner before.
	Cursor() (Cursor, uint64)
	// Read blocks for the next events in the order of each log. The events up to
	// a log's Floor and those in Done are not handed out again. upto, which may
	// come without messages, says up to which offset of which log everything was
	// handed out by now or does not match the topics. Only events that can no
	// longer vanish are handed out.
	Read(ctx context.Context) (msgs []Message, upto map[string]uint64, err error)
	// Pending returns how many matching events of each log lie above its Floor in
	// at and in none of its Done spans; a log that at does not name counts whole.
	Pending(ctx context.Context, at map[string]LogCursor) (uint64, error)
	// Commit stores the cursor. ErrFenced: another copy owns the destination
	// now; stop at once.
	Commit(ctx context.Context, c Cursor) error
	// Lease is how long this owner may go without Commit before another copy
	// takes over; 0 when no other copy can.
	Lease() time.Duration
	// Park keeps a refused event, durably, when it returns. Parking the same
	// event again changes nothing. ErrFenced: another copy owns the destination
	// now; nothing is kept.
	Park(ctx context.Context, p Parked) (ref uint64, err error)
	// Parked returns at most limit entries with Ref > after in the order of Ref;
	// of one log and key if key is not nil.
	Parked(ctx context.Context, after uint64, limit int, key *Lane) ([]Parked, error)
	// Unpark forgets entries that were delivered or that an operator skipped.
	// ErrFenced: another copy owns the destination now.
	Unpark(ctx context.Context, refs ...uint64) error
	// Close ends the subscription; an owner gives up its lease.
	Close() error
}

// Lane is the unit of order: one key in one log.
type Lane struct {
	// Log is the bus log.
	Log string
	// Key is the event key; an event without a key has no lane.
	Key string
}

// The sentinels steer; each is found with errors.Is. Where they come from says
// the interface.
var (
	// ErrRejected: the other side was reached and refuses this very event.
	ErrRejected = errors.New("rejected")
	// ErrFenced: a newer owner exists; this copy must change nothing more.
	ErrFenced = errors.New("fenced: another copy has taken over")
	// ErrStandby: another live copy does this work; wait and ask again.
	ErrStandby = errors.New("standby: another copy is active")
	// ErrGap: history is missing; see Gap.
	ErrGap = errors.New("gap")
	// ErrFull: no room for unconfirmed events; wait and try again.
	ErrFull = errors.New("full")
	// ErrGone: the destination asked for no more events.
	ErrGone = errors.New("gone")
)

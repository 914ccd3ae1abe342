package inbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/causality"
	"github.com/onewrite/onewrite/internal/doorbell"
)

// Dialect is the SQL spoken by the consumer's database.
type Dialect int

// The dialects. Postgres needs PostgreSQL 13 or newer, SQLite 3.35 or newer.
const (
	Postgres Dialect = iota + 1
	SQLite
)

// Outcome is what became of an event.
type Outcome int

// The outcomes; see the package. The zero value is none of them: nothing was
// decided, and an error says why.
const (
	Applied Outcome = iota + 1
	Duplicate
	Gap
)

// String returns the outcome's name.
func (o Outcome) String() string {
	switch o {
	case Applied:
		return "applied"
	case Duplicate:
		return "duplicate"
	case Gap:
		return "gap"
	}
	return "undecided"
}

// DefaultKeep is how many ids are remembered unless [Keep] says otherwise. onewrite
// repeats what was in flight, some thousands of events at most.
const DefaultKeep = 250_000

// Inbox is one consumer's memory in one database. It may be used by many goroutines
// at once.
type Inbox struct {
	consumer string
	layout   layout
	ordered  bool
	keep     int
	fresh    atomic.Int64 // ids that were marked since the last trim
}

// Option changes a setting of [New].
type Option func(*Inbox)

// Ordered remembers one place for each source and key instead of ids; see the
// package for when that is right.
func Ordered() Option { return func(in *Inbox) { in.ordered = true } }

// Keep sets how many ids are remembered; 0 or less means [DefaultKeep]. An eighth more
// are stored. Those that come while an effect runs count as well. Make it more than the events that can pass before a
// repeat comes: after `onewrite replay`, for instance, all that the bus keeps.
func Keep(ids int) Option {
	return func(in *Inbox) {
		if ids > 0 {
			in.keep = ids
		}
	}
}

// New returns the inbox of a consumer. The name tells its marks from those of other
// consumers in the same database; a consumer that changes it handles everything
// anew. A d that is none of the dialects, or an empty name, shows at the first use.
func New(d Dialect, consumer string, opts ...Option) *Inbox {
	in := &Inbox{consumer: consumer, layout: layouts[d], keep: DefaultKeep}
	for _, o := range opts {
		o(in)
	}
	in.fresh.Store(in.every()) // what processes before left: they may have been short
	return in
}

// every is after how many new ids the old ones are forgotten.
func (in *Inbox) every() int64 { return int64(max(in.keep/8, 1)) }

// Message is an event, and for an [Ordered] inbox its place in the input.
type Message struct {
	onewrite.Event
	// Lane is the unit of order within the event's source: a partition, a stream.
	// Empty: the event's key.
	Lane string
	// Place is the place in the lane; it compares as text and grows from event to
	// event. Empty: the event's Seq.
	Place string
	// After is the Place of the lane's event just before this one, where the
	// transport tells it. Empty: unknown, and no gap can be seen. A lane's first
	// event may come after anything.
	After string
	// Unordered says that the transport may bring this lane's events out of order: the
	// id is remembered, also by an [Ordered] inbox.
	Unordered bool
}

// place returns the lane and the place, and whether there is one.
func (m *Message) place() (lane, place string, ok bool) {
	lane, place = m.Lane, m.Place
	if lane == "" {
		lane = m.Key
	}
	if place == "" {
		place = m.Seq
	}
	// What was scheduled has its number from when it was due, which does not say that
	// all of its key with a smaller one came before.
	return lane, place, lane != "" && place != "" && !m.Unordered && m.Header["deliverat"] == ""
}

// GapError says that a lane's event is missing before this one. It is
// [onewrite.ErrGap].
type GapError struct {
	// Source, Lane and ID name the event, Last is the place that the inbox knows,
	// After the one that the event follows.
	Source, Lane, ID, Last, After string
}

// Error tells the gap as one line.
func (e *GapError) Error() string {
	return fmt.Sprintf("inbox: event %s of %s, lane %q, follows %s, but the last one handled is %s; let the missing events come first, or give the lane up with Inbox.Forget",
		e.ID, e.Source, e.Lane, e.After, e.Last)
}

// Is makes every GapError an [onewrite.ErrGap].
func (e *GapError) Is(target error) bool { return target == onewrite.ErrGap }

// Queryer is what Mark needs of a transaction: *sql.Tx has it, and so have the
// transactions of most libraries that wrap database/sql.
type Queryer interface {
	// QueryContext runs one statement in the caller's transaction.
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Mark marks the events as handled in tx and tells of each whether it was new, in
// one round trip. It is for those who hold the transaction themselves; others use
// [Inbox.Apply].
//
//   - nil: outcomes[i] is Applied or Duplicate. Do the effect of those that are
//     Applied, then commit. If all are Duplicate, roll back: there is nothing to
//     keep.
//   - an error that is a [GapError]: outcomes has what was decided, Gap included.
//     Roll back.
//   - any other error is the database's, or says that an event has no id. Roll back.
//
// The marks of other transactions that are not yet committed are waited for. With
// SQLite let Mark be the first statement, or begin immediate transactions.
//
// A batch of an [Ordered] inbox in which some events have no key costs two round
// trips.
func (in *Inbox) Mark(ctx context.Context, tx Queryer, messages ...Message) (outcomes []Outcome, err error) {
	return in.MarkBy(ctx, func(ctx context.Context, query string, args []any, row func(scan func(...any) error) error) error {
		rows, err := tx.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // Err tells
		for rows.Next() {
			if err := row(rows.Scan); err != nil {
				return err
			}
		}
		return rows.Err()
	}, messages...)
}

// Query runs one statement in the caller's transaction and calls row for each row
// of its answer.
type Query func(ctx context.Context, query string, args []any, row func(scan func(...any) error) error) error

// MarkBy is Mark for libraries that cannot be a [Queryer].
func (in *Inbox) MarkBy(ctx context.Context, query Query, messages ...Message) (outcomes []Outcome, err error) {
	if in.layout.seen == "" {
		return nil, errors.New("inbox: unknown dialect; use inbox.New(inbox.Postgres, …) or SQLite")
	}
	if in.consumer == "" {
		return nil, errors.New("inbox: the consumer has no name; give inbox.New one")
	}
	outcomes = make([]Outcome, len(messages))
	var byID, byPlace []int
	for i := range messages {
		if messages[i].ID == "" {
			return nil, fmt.Errorf("inbox: message %d has no id, so a repeat could not be told: %w", i, onewrite.ErrRejected)
		}
		if _, _, ok := messages[i].place(); ok && in.ordered {
			byPlace = append(byPlace, i)
		} else {
			byID = append(byID, i)
		}
	}
	if err := in.markPlaces(ctx, query, messages, byPlace, outcomes); err != nil {
		return outcomes, err
	}
	return outcomes, in.markIDs(ctx, query, messages, byID, outcomes)
}

// EffectError is an error of an effect, as against one of the database's.
type EffectError struct {
	// ID is the event's id.
	ID string
	// Err is what the effect returned.
	Err error
}

// Error names the event and its error.
func (e *EffectError) Error() string { return fmt.Sprintf("inbox: event %s: %v", e.ID, e.Err) }

// Unwrap returns what the effect returned.
func (e *EffectError) Unwrap() error { return e.Err }

// Apply handles one event: in one transaction of db it marks the event and calls
// effect, unless it was handled before. See the package for the outcomes, and
// [Inbox.ApplyAll] for the errors.
func (in *Inbox) Apply(ctx context.Context, db *sql.DB, m Message, effect func(ctx context.Context, tx *sql.Tx) error) (Outcome, error) {
	outcomes, err := in.ApplyAll(ctx, db, []Message{m}, func(ctx context.Context, tx *sql.Tx, _ onewrite.Event) error {
		return effect(ctx, tx)
	})
	if len(outcomes) != 1 {
		return 0, err
	}
	return outcomes[0], err
}

// ApplyAll handles a batch in one transaction, all or nothing: effect is called, in
// order, for each event that was not handled before.
//
//   - nil: outcomes[i] is Applied or Duplicate, and committed
//   - an error that is a [GapError]: outcomes tells where; nothing was done
//   - an [EffectError]: effect failed; nothing was done
//   - any other error: of the database. Nothing was done, or the answer to the
//     commit was lost: let the batch come again, and it is found out.
func (in *Inbox) ApplyAll(ctx context.Context, db *sql.DB, messages []Message, effect func(ctx context.Context, tx *sql.Tx, e onewrite.Event) error) (outcomes []Outcome, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("inbox: begin: %w", err)
	}
	ended := false
	defer func() {
		if !ended {
			_ = tx.Rollback() // what failed before says more
		}
	}()
	if outcomes, err = in.Mark(ctx, tx, messages...); err != nil {
		return outcomes, err
	}
	applied := 0
	for i, o := range outcomes {
		if o != Applied {
			continue
		}
		applied++
		if err := effect(Caused(ctx, &messages[i].Event), tx, messages[i].Event); err != nil {
			return nil, &EffectError{messages[i].ID, err}
		}
	}
	if applied == 0 {
		return outcomes, nil
	}
	ended = true
	if err := tx.Commit(); err != nil {
		return nil, fmt.Errorf("inbox: commit: %w", err)
	}
	in.Committed(ctx, applied, func(ctx context.Context, query string, args ...any) error {
		_, err := db.ExecContext(ctx, query, args...)
		return err
	})
	return outcomes, nil
}

// Receiver takes what a transport delivered: one event, or a batch that is handled
// whole or not at all. The outcomes and errors are those of [Inbox.ApplyAll].
type Receiver func(ctx context.Context, messages []Message) ([]Outcome, error)

// Receiver returns the receiver that applies effect in transactions of db, for
// [HTTP] and its like. An error of effect that is [onewrite.ErrRejected] tells the
// sender that this event will never do.
func (in *Inbox) Receiver(db *sql.DB, effect func(ctx context.Context, tx *sql.Tx, e onewrite.Event) error) Receiver {
	return func(ctx context.Context, messages []Message) ([]Outcome, error) {
		return in.ApplyAll(ctx, db, messages, effect)
	}
}

// Caused returns the ctx for the effect of e: what package outbox publishes with it
// is marked as caused by e. [Inbox.Apply] does this by itself.
func Caused(ctx context.Context, e *onewrite.Event) context.Context {
	if t := causality.Checked(e.Header[causality.Traceparent], e.Header[causality.Tracestate]); t.Parent != "" {
		ctx = causality.WithTrace(ctx, t)
	}
	return causality.WithCause(ctx, causality.CauseBy(e.ID, e.Header[causality.Correlation]))
}

// Committed is called after the commit of a transaction in which so many events
// were Applied: it wakes the relay, as the effect may have published, and now and
// then forgets old ids by exec, outside of transactions. [Inbox.Apply] does this by
// itself.
func (in *Inbox) Committed(ctx context.Context, applied int, exec func(ctx context.Context, query string, args ...any) error) {
	doorbell.Ring()
	every := in.every()
	if in.fresh.Add(int64(applied)) < every {
		return
	}
	in.fresh.Store(0)
	query, args := in.layout.trim(in.consumer, in.keep)
	if exec(ctx, query, args...) != nil {
		in.fresh.Store(every) // the effect is committed all the same; the next one tries again
	}
}

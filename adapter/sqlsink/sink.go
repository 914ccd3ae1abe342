package sqlsink

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// Kinds of databases.
const (
	Postgres = "postgres"
	MySQL    = "mysql"
	SQLite   = "sqlite"
)

// Config says which database is written to, and how.
type Config struct {
	// Kind is Postgres, MySQL (MariaDB too) or SQLite.
	Kind string
	// URL is where the server is: postgres://…, mysql://user:password@host:3306/database.
	// It is never shown.
	URL string
	// Path is the file of SQLite.
	Path string
	// TLS are certificates for MySQL; PostgreSQL's are named in its URL.
	TLS *tls.Config
	// Destination is the name under which the place is kept.
	Destination string
	// Table makes the name of a table from {schema}, {table} and {topic}; default {table}.
	Table string
	// Messages is the table of the events that are no row changes; default
	// onewrite_messages.
	Messages string
	// NoCreate refuses events whose table is missing instead of making it.
	NoCreate bool
	// Fixed refuses events with columns that the table lacks instead of adding them.
	Fixed bool
	// IgnoreTruncate leaves the rows where the source was truncated.
	IgnoreTruncate bool
	// Logger is told of tables and columns that were made; nil is silent.
	Logger *slog.Logger
}

// placesTable holds the place of each destination.
const placesTable = "onewrite_places"

// placed is the record that a write stores with its events.
type placed struct {
	destination, owner string
	record             []byte
}

// database is one connection to a server, with what differs between servers.
type database interface {
	// describe reads a table; nil: there is none.
	describe(ctx context.Context, n name) (*table, error)
	// alter runs a statement that makes or changes a table, by itself.
	alter(ctx context.Context, sql string) error
	// create, createMessages and addColumn are statements for alter; bad is the event
	// that asks for what cannot be.
	create(w *want) (sql string, bad int, err error)
	createMessages(n name) string
	addColumn(t *table, s *shape) (string, error)
	// folds reports whether names of columns are equal in any case.
	folds() bool
	// bind makes a value for a column; an error says why it cannot be one.
	bind(c *column, v cell) (any, error)
	// exists reports whether a table has a row with this key.
	exists(ctx context.Context, t *table, key []*column, values []any) (bool, error)
	// apply does the steps, and stores the place if there is one, in one transaction.
	// failed is the step that an error is about; len(steps) if it is about all of them.
	apply(ctx context.Context, p *placed, steps []*step, single bool) (failed int, err error)
	// culprit finds the step after which the constraints that are checked at the end
	// stay broken.
	culprit(ctx context.Context, steps []*step) (int, error)
	// owns is ErrFenced if owner does not own the destination.
	owns(ctx context.Context, destination, owner string) error
	// take makes owner the owner and returns the record.
	take(ctx context.Context, destination, owner string) ([]byte, error)
	// judge says what an error means, cure what to do about it.
	judge(err error) verdict
	cure(err error, t *table) string
	// around is the cure of an error about what a table is in, a schema or a database of
	// MySQL; home makes one, allow lets the user make tables in it.
	around(err error, n name) string
	home(schema string) string
	allow(schema string) string
	// who is the user as GRANT names it.
	who() string
	// usable reports whether the connection can be used again.
	usable() bool
	close() error
}

// Sink writes to one database. It implements [onewrite.Placed].
type Sink struct {
	cfg      Config
	log      *slog.Logger
	tables   template
	messages name
	owner    string // of the place, made at random
	closed   atomic.Bool

	turn  chan struct{} // holds the only token; who has it may use what follows
	db    database      // nil: not connected
	known map[name]*table
	named map[origin]name
	doubt error // a commit that nobody answered for
}

var _ onewrite.Placed = (*Sink)(nil)

// Open connects and makes the table of places if it is missing.
func Open(ctx context.Context, c Config) (*Sink, error) {
	s := &Sink{cfg: c, log: c.Logger, turn: make(chan struct{}, 1), known: map[name]*table{}, named: map[origin]name{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.tables, s.messages, err = c.names(); err != nil {
		return nil, err
	}
	var token [16]byte
	rand.Read(token[:]) // never fails, by its contract
	s.owner = hex.EncodeToString(token[:])
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	s.turn <- struct{}{}
	return s, nil
}

func (c *Config) names() (template, name, error) {
	if c.Table == "" {
		c.Table = "{table}"
	}
	if c.Messages == "" {
		c.Messages = "onewrite_messages"
	}
	if c.Destination == "" {
		c.Destination = "onewrite"
	}
	t, err := templateOf(c.Table)
	if err != nil {
		return t, name{}, fmt.Errorf("sqlsink: table: %w", err)
	}
	m, err := templateOf(c.Messages)
	if err == nil && strings.Contains(c.Messages, "{") {
		err = fmt.Errorf("%q has braces, and all messages go to one table; write onewrite_messages", c.Messages)
	}
	if err != nil {
		return t, name{}, fmt.Errorf("sqlsink: messages: %w", err)
	}
	if m.schema == "" && !strings.Contains(t.schema, "{") {
		m.schema = t.schema // beside the others
	}
	return t, name(m), nil
}

// connect opens the connection.
func (s *Sink) connect(ctx context.Context) error {
	db, err := dial(ctx, s.cfg)
	if err != nil {
		return err
	}
	s.db = db
	clear(s.known)
	return nil
}

func dial(ctx context.Context, c Config) (database, error) {
	switch c.Kind {
	case Postgres:
		return openPostgres(ctx, c)
	case MySQL:
		return openMySQL(ctx, c)
	case SQLite:
		return openSQLite(ctx, c)
	}
	return nil, fmt.Errorf("sqlsink: %q is no kind of database; write postgres, mysql or sqlite", c.Kind)
}

// begin takes the turn and sees to it that there is a connection. end gives it back.
func (s *Sink) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := error(nil)
	switch {
	case s.closed.Load():
		err = errors.New("sqlsink: the sink is closed")
	case s.db == nil:
		err = s.connect(ctx)
	}
	if err != nil {
		s.turn <- struct{}{}
	}
	return err
}

func (s *Sink) end() {
	if s.db != nil && !s.db.usable() {
		_ = s.db.close() // it is broken already
		s.db = nil
	}
	s.turn <- struct{}{}
}

// Write applies events in one transaction, without a place. What is before a refused
// event is applied by itself.
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	if len(events) == 0 {
		return 0, nil
	}
	if err := s.begin(ctx); err != nil {
		return 0, err
	}
	defer s.end()
	n := len(events)
	var first error
	for range len(events) {
		bad, err := s.write(ctx, events[:n], nil)
		switch {
		case err == nil:
			return n, first
		case isRefused(err) && bad > 0:
			n, first = bad, err
		case first != nil && !isRefused(err):
			return 0, err // the prefix could not be written, which is about nothing of it
		default:
			if bad > 0 {
				err = fmt.Errorf("sqlsink: nothing of a write of %d events is durable: %w", n, err)
			}
			return 0, err
		}
	}
	return 0, first
}

// WriteAt applies all messages and stores the record, in one transaction.
func (s *Sink) WriteAt(ctx context.Context, messages []onewrite.Message, place []byte) (int, error) {
	if err := s.begin(ctx); err != nil {
		return 0, err
	}
	defer s.end()
	if s.doubt != nil {
		return 0, fmt.Errorf("sqlsink: nobody knows whether the write before is durable, so another sink has to ask: %w", s.doubt)
	}
	events := make([]onewrite.Event, len(messages))
	for i := range messages {
		events[i] = messages[i].Event
	}
	if place == nil {
		place = []byte{}
	}
	return s.write(ctx, events, &placed{s.cfg.Destination, s.owner, place})
}

// Place takes the destination over and returns its record.
func (s *Sink) Place(ctx context.Context) ([]byte, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	record, err := s.db.take(ctx, s.cfg.Destination, s.owner)
	if err != nil {
		return nil, judged(s.db.judge(err), fmt.Errorf("sqlsink: take the place of destination %s over: %w", s.cfg.Destination, err), s.db.cure(err, &table{quoted: placesTable}))
	}
	return record, nil
}

// write applies events in runs; if that is refused, one by one, which tells the event.
func (s *Sink) write(ctx context.Context, events []onewrite.Event, p *placed) (bad int, err error) {
	changes := make([]change, len(events))
	for i := range events {
		if changes[i], err = s.changeOf(&events[i]); err != nil {
			return i, about(&events[i], err)
		}
	}
	for _, single := range []bool{false, true} {
		bad, err = s.pass(ctx, events, changes, p, single)
		if err == nil || !isRefused(err) || !s.db.usable() {
			break
		}
		clear(s.known) // what was refused may be due to a table that was changed
	}
	switch {
	case err == nil:
		return 0, nil
	case bad < len(events):
		return bad, about(&events[bad], err)
	}
	return bad, fmt.Errorf("sqlsink: %w", err) // a record without events
}

// about names the event in an error that is about it.
func about(e *onewrite.Event, err error) error {
	switch {
	case isRefused(err):
		return fmt.Errorf("sqlsink: event %s (%s): %w", e.ID, e.Topic, err)
	case !strings.HasPrefix(err.Error(), "sqlsink: "):
		return fmt.Errorf("sqlsink: %w", err)
	}
	return err
}

func (s *Sink) pass(ctx context.Context, events []onewrite.Event, changes []change, p *placed, single bool) (bad int, err error) {
	if bad, err = s.ensure(ctx, changes, p); err != nil {
		return bad, err
	}
	if bad, err = s.swaps(ctx, events, changes); err != nil {
		return bad, err
	}
	steps, bad, err := s.plan(changes, single)
	if err != nil {
		return bad, err
	}
	if err := sabotage.At("sql.write"); err != nil {
		return 0, err
	}
	failed, err := s.db.apply(ctx, p, steps, single)
	if err == nil {
		return 0, nil
	}
	var unknown *unknownOutcome
	if errors.As(err, &unknown) && p != nil {
		s.doubt = err
	}
	v := s.db.judge(err)
	if failed >= len(steps) && len(steps) > 0 && v == refused && single {
		at, cerr := s.db.culprit(ctx, steps)
		if cerr != nil {
			return 0, cerr
		}
		failed = at
	}
	var t *table
	if failed < len(steps) {
		t, bad = steps[failed].table, steps[failed].events[0]
	}
	return bad, judged(v, err, s.db.cure(err, t))
}

// committed runs a COMMIT. What fails before it, and what is lost after, is as uncertain
// as a COMMIT without an answer.
func committed(commit func() error) error {
	err := sabotage.At("sql.commit")
	if err == nil {
		err = commit()
	}
	if err == nil {
		err = sabotage.At("sql.committed")
	}
	return err
}

// unknownOutcome is the error of a commit that was sent and not answered.
type unknownOutcome struct{ err error }

func (u *unknownOutcome) Error() string { return u.err.Error() }

func (u *unknownOutcome) Unwrap() error { return u.err }

// Close ends the connection; a write under way ends first.
func (s *Sink) Close() error {
	if !s.closed.CompareAndSwap(false, true) {
		return nil
	}
	<-s.turn
	defer func() { s.turn <- struct{}{} }()
	if s.db == nil {
		return nil
	}
	err := s.db.close()
	s.db = nil
	return err
}

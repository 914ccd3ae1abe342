package frameworks_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/onewrite/onewrite/outbox"
)

// order has the fields that the examples' own types have.
type order struct {
	ID, Customer string
	Document     []byte
}

// placed is an order with the id of its event, empty where the example makes it.
type placed struct {
	order
	event string
}

// transaction is an open one of a framework.
type transaction struct {
	// place is the example's Place.
	place func(o order, eventID string) error
	// nested runs fn in a savepoint, which an error of fn rolls back.
	nested func(fn func(transaction) error) error
}

// framework is an example behind functions that are the same for all.
type framework struct {
	// name begins with the folder; behind a comma follows what is special.
	name string
	// placeOrder is the example's PlaceOrder. nil: it has none of this kind.
	placeOrder func(ctx context.Context, o order, eventID string) error
	// inTx runs fn in a transaction, which an error of fn rolls back.
	inTx func(ctx context.Context, fn func(transaction) error) error
	// textOnly says that documents have to be text.
	textOnly bool
}

// one places one order in a transaction that is committed.
func (f framework) one(ctx context.Context, o order, eventID string) error {
	if f.placeOrder != nil {
		return f.placeOrder(ctx, o, eventID)
	}
	return f.inTx(ctx, func(tx transaction) error { return tx.place(o, eventID) })
}

// Customers; the databases know all but the stranger. The odd one has what
// frameworks write placeholders with, and what ends a string; the long one's name
// is refused as the key of an event, and by nothing else.
const (
	alice    = "alice"
	odd      = `o'Hara "?" ?0 $1 :id @id %s \ ä😀`
	stranger = "nobody"
)

var long = strings.Repeat("k", 1025)

// documents is what a framework could spoil on the way.
func (f framework) documents() [][]byte {
	all := [][]byte{
		[]byte(`{"order":"o-1","total":"12.50"}`),
		[]byte("it's \"so\" \\ \\? ? ?? ?0 ?1 $1 $2 :id ::text @id %s %[1]s {{.}} -- /* */ ;\r\n\t ä😀"),
		{},
		[]byte(`\x4142`),
		[]byte(`\N`),
		[]byte("NULL"),
		[]byte("\x01 \u2028 \ufeff"),
		bytes.Repeat([]byte("ä"), 100_000),
		{0, 1, 2, 255, '\\', '?', '\''},
		[]byte("text\x00with NUL"),
		{0xc3},
	}
	if !f.textOnly {
		return all
	}
	return slices.DeleteFunc(all, func(b []byte) bool { return !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 })
}

// check holds an example against what it promises: the order and its event are
// there together, or not at all.
func check(t *testing.T, s shop, f framework) {
	t.Run(f.name, func(t *testing.T) {
		t.Run("committed", func(t *testing.T) { checkCommitted(t, s, f) })
		t.Run("refused", func(t *testing.T) { checkRefused(t, s, f) })
		t.Run("rolled back", func(t *testing.T) { checkRolledBack(t, s, f) })
		t.Run("savepoint rolled back", func(t *testing.T) { checkSavepoint(t, s, f) })
		t.Run("many at once", func(t *testing.T) { checkManyAtOnce(t, s, f) })
		folder, _, _ := strings.Cut(f.name, ",")
		checked[folder]++
	})
}

func checkCommitted(t *testing.T, s shop, f framework) {
	documents := f.documents()
	if len(documents) < 8 {
		t.Fatalf("only %d documents", len(documents))
	}
	var want []placed
	for i, document := range documents {
		p := placed{order{fmt.Sprintf("o-%02d", i), []string{alice, odd}[i%2], document}, outbox.NewID()}
		if i == 0 {
			p.event = "" // the example makes it
		}
		rung := rings(func() {
			if err := f.one(t.Context(), p.order, p.event); err != nil {
				t.Fatalf("document %d: %v", i, err)
			}
		})
		if f.placeOrder != nil && !rung {
			t.Errorf("document %d: a relay of this process would not have been woken", i)
		}
		want = append(want, p)
	}
	s.take(t, want...)
}

// checkRefused makes each statement of PlaceOrder fail, and then the commit.
func checkRefused(t *testing.T, s shop, f framework) {
	first := placed{order{"o-1", alice, []byte("first")}, outbox.NewID()}
	if err := f.one(t.Context(), first.order, first.event); err != nil {
		t.Fatal(err)
	}
	for what, o := range map[string]order{
		"the row: its id is taken":                    {"o-1", alice, []byte("second")},
		"the event: its key is too long":              {"o-2", long, []byte("long")},
		"the commit: there is no customer of the row": {"o-3", stranger, []byte("strange")},
	} {
		rung := rings(func() {
			if err := f.one(t.Context(), o, outbox.NewID()); err == nil {
				t.Errorf("%s: no error", what)
			}
		})
		if rung {
			t.Errorf("%s: the bell rang for what was not committed", what)
		}
	}
	last := placed{order{"o-4", odd, []byte("last")}, outbox.NewID()}
	if err := f.one(t.Context(), last.order, last.event); err != nil {
		t.Errorf("nothing can be placed after what was refused: %v", err)
	}
	s.take(t, first, last)
}

var errUndo = errors.New("undo this")

func checkRolledBack(t *testing.T, s shop, f framework) {
	placedInIt := 0
	rung := rings(func() {
		err := f.inTx(t.Context(), func(tx transaction) error {
			for _, id := range []string{"o-1", "o-2"} {
				if err := tx.place(order{id, alice, []byte("gone")}, outbox.NewID()); err != nil {
					return err
				}
				placedInIt++
			}
			return errUndo
		})
		if !errors.Is(err, errUndo) || placedInIt != 2 {
			t.Fatalf("%d were placed, then: %v", placedInIt, err)
		}
	})
	if rung {
		t.Error("Place rang, which is for the caller to do after the commit")
	}
	s.take(t)
}

func checkSavepoint(t *testing.T, s shop, f framework) {
	before := placed{order{"o-1", alice, []byte("before")}, outbox.NewID()}
	kept := placed{order{"o-2", alice, []byte("kept")}, outbox.NewID()}
	after := placed{order{"o-5", alice, []byte("after")}, outbox.NewID()}
	undone := 0
	err := f.inTx(t.Context(), func(tx transaction) error {
		if err := tx.place(before.order, before.event); err != nil {
			return err
		}
		err := tx.nested(func(tx transaction) error { return tx.place(kept.order, kept.event) })
		if err != nil {
			return err
		}
		for id, taken := range map[string]bool{"o-3": false, "o-1": true} { // undone by the function, and by the database
			err := tx.nested(func(tx transaction) error {
				err := tx.place(order{"o-4", alice, []byte("undone")}, outbox.NewID())
				if err == nil {
					err = tx.place(order{id, alice, []byte("undone too")}, outbox.NewID())
				}
				if (err != nil) != taken {
					t.Errorf("order %s in a savepoint: %v", id, err)
				}
				undone++
				return errUndo
			})
			if !errors.Is(err, errUndo) {
				return err
			}
		}
		return tx.place(after.order, after.event)
	})
	if err != nil || undone != 2 {
		t.Fatalf("%d were undone: %v", undone, err)
	}
	s.take(t, before, kept, after)
}

func checkManyAtOnce(t *testing.T, s shop, f framework) {
	const callers, each = 4, 8
	// Who takes a second connection inside of a transaction waits for himself.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	errs := make(chan error, callers)
	for c := range callers {
		go func() {
			var err error
			for i := range each {
				id := fmt.Sprintf("o-%d-%d", c, i)
				if i%2 == 1 {
					if f.one(ctx, order{id, stranger, []byte(id)}, outbox.NewID()) == nil {
						err = errors.Join(err, fmt.Errorf("%s: a stranger's order was taken", id))
					}
					continue
				}
				err = errors.Join(err, f.one(ctx, order{id, alice, []byte(id)}, ""))
			}
			errs <- err
		}()
	}
	for range callers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	// In which order they were is nobody's to say: each order has its event.
	orders, events := s.read(t)
	var ids, told []string
	for _, o := range orders {
		ids = append(ids, o.ID)
	}
	for _, e := range events {
		told = append(told, string(e.payload))
	}
	slices.Sort(told)
	if len(ids) != callers*each/2 || !slices.Equal(ids, told) {
		t.Errorf("orders %q, events of %q", ids, told)
	}
	s.empty(t)
}

// rings reports whether fn rang.
func rings(fn func()) bool {
	bell := outbox.Bell()
	fn()
	select {
	case <-bell:
		return true
	default:
		return false
	}
}

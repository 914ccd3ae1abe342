package onewritetest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/outbox"
)

// table is an outbox in memory: its rows are in the order of their commits, and a
// position is how many are before it. It may have one fault.
type table struct {
	fault string
	once  sync.Once // it need not strike again

	mu      sync.Mutex
	changed chan struct{}
	history int // which one the rows belong to
	seq     int // given out so far
	rows    []row
	freed   int // rows before it are gone
	open    bool
	busy    int // transactions that are open
}

type row struct {
	onewrite.Event
	seq int
}

func newTable(fault string) *table { return &table{fault: fault, changed: make(chan struct{})} }

// is says whether the table has a fault; it may be one of several.
func (tb *table) is(faults ...string) bool { return slices.Contains(faults, tb.fault) }

// tableTx is a transaction on a table.
type tableTx struct {
	tb   *table
	rows []row
}

func (tb *table) begin(context.Context) (onewritetest.SourceTx, error) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.busy++
	return &tableTx{tb: tb}, nil
}

func (tx *tableTx) Publish(_ context.Context, events ...outbox.Event) error {
	tb := tx.tb
	tb.mu.Lock()
	defer tb.mu.Unlock()
	for _, e := range events {
		tb.seq++
		w := onewrite.Event{ID: e.ID, Source: "table", Topic: e.Topic, Type: e.Type, Key: e.Key, Header: e.Headers,
			Seq: fmt.Sprintf("%08d", tb.seq), Time: time.Now(), ContentType: e.ContentType, Data: slices.Clone(e.Payload)}
		if w.Type == "" {
			w.Type = w.Topic
		}
		if w.ContentType == "" {
			w.ContentType = outbox.DefaultContentType(e.Payload, false)
		}
		tx.rows = append(tx.rows, row{w, tb.seq})
	}
	if tb.is("shows what is open") {
		tb.add(tx.rows)
		tx.rows = nil
	}
	return nil
}

func (tx *tableTx) Undo(ctx context.Context, events ...outbox.Event) error {
	n := len(tx.rows)
	err := tx.Publish(ctx, events...)
	if !tx.tb.is("shows what was undone", "shows what is open") {
		tx.rows = tx.rows[:n]
	}
	return err
}

func (tx *tableTx) Commit() error {
	tx.tb.mu.Lock()
	defer tx.tb.mu.Unlock()
	tx.tb.busy--
	tx.tb.add(tx.rows)
	return nil
}

func (tx *tableTx) Rollback() error {
	if tx.tb.is("shows what was rolled back") {
		return tx.Commit()
	}
	tx.tb.mu.Lock()
	defer tx.tb.mu.Unlock()
	tx.tb.busy--
	return nil
}

// add makes rows visible; tb.mu is held.
func (tb *table) add(rows []row) {
	tb.rows = append(tb.rows, rows...)
	if !tb.is("sleeps on") {
		close(tb.changed)
		tb.changed = make(chan struct{})
	}
}

// reading is an open source.
type reading struct {
	tb      *table
	history int
	next    int // rows before it were handed out
	top     int // greatest seq handed out
	reads   int
	gap     *onewrite.Gap
	buffer  []byte
}

func (tb *table) place(history, n int) onewrite.Pos {
	return onewrite.Pos(strconv.Itoa(history) + ":" + strconv.Itoa(n))
}

func parse(pos onewrite.Pos) (history, n int, err error) {
	if pos == "" {
		return -1, 0, nil
	}
	_, err = fmt.Sscanf(string(pos), "%d:%d", &history, &n)
	return history, n, err
}

func (tb *table) source(_ context.Context, pos onewrite.Pos) (onewrite.Source, error) {
	history, n, err := parse(pos)
	if err != nil {
		if !tb.is("takes any position for the beginning") {
			return nil, err
		}
		history, n = -1, 0
	}
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if tb.open && !tb.is("gives a twin nothing") {
		if tb.is("fails beside another") {
			return nil, errors.New("in use")
		}
		return nil, onewrite.ErrStandby
	}
	r := &reading{tb: tb, history: tb.history, next: max(n, tb.freed)}
	if tb.open {
		r.next = len(tb.rows)
	}
	tb.open = true
	if history >= 0 && history != tb.history {
		r.gap = &onewrite.Gap{Reason: "another history", From: "the oldest row", To: "the newest"}
		r.next = tb.freed
		switch tb.fault {
		case "a silent gap":
			r.gap = nil
		case "a gap without its events":
			r.next = len(tb.rows)
		case "a gap without a reason":
			r.gap.Reason = ""
		case "a gap without a cure":
			return nil, &onewrite.Gap{Reason: "another history"}
		case "a gap for ever":
			r.history = history
		}
	}
	if n > 0 && tb.is("goes on one too late") {
		r.next++
	}
	if tb.is("a gap of its own making") {
		r.gap = &onewrite.Gap{Reason: "none", From: "a", To: "b"}
	}
	return r, nil
}

func (r *reading) Read(ctx context.Context) (onewrite.Batch, error) {
	tb := r.tb
	for {
		tb.mu.Lock()
		b, changed := r.batch(), tb.changed
		tb.mu.Unlock()
		if len(b.Events) > 0 || b.Gap != nil {
			return b, nil
		}
		done := ctx.Done()
		if tb.is("ignores ctx") {
			done = nil
		}
		select {
		case <-done:
			if tb.is("calls its end a gap") {
				return onewrite.Batch{}, &onewrite.Gap{Reason: "cancelled"}
			}
			return onewrite.Batch{}, ctx.Err()
		case <-changed:
		}
	}
}

// batch takes the next rows; tb.mu is held.
func (r *reading) batch() onewrite.Batch {
	tb, from := r.tb, r.next
	size := onewrite.MaxBatch
	if tb.is("takes too many") {
		size++
	}
	taken := tb.rows[min(from, len(tb.rows)):min(from+size, len(tb.rows))]
	r.next += len(taken)
	b := onewrite.Batch{Pos: tb.place(r.history, r.next), Gap: r.gap}
	if b.Gap != nil && tb.is("a gap behind its events") && len(taken) > 0 {
		b.Gap = nil
	} else {
		r.gap = nil
	}
	for i, w := range taken {
		if e, ok := r.event(w, i); ok {
			b.Events = append(b.Events, e)
		}
	}
	if tb.is("reversed") {
		slices.Reverse(b.Events)
	}
	if len(b.Events) > 3 && tb.is("hands one out twice") {
		b.Events = append(b.Events, b.Events[0])
	}
	r.reads++
	n := len(b.Events)
	if !tb.is("whole batches") {
		b.PosAt = func(i int) onewrite.Pos { return tb.place(r.history, from+i+1) }
	}
	switch {
	case n == 0 && b.Gap == nil:
		return onewrite.Batch{}
	case tb.is("a place too early"):
		b.PosAt = func(i int) onewrite.Pos { return tb.place(r.history, from+i+(i+1)/n) }
	case tb.is("a place too late"):
		b.PosAt = func(i int) onewrite.Pos { return tb.place(r.history, min(from+i+2, r.next)) }
	case tb.is("two last places"):
		b.PosAt = func(i int) onewrite.Pos { return tb.place(r.history, from+i+1) + "." }
	case tb.is("acknowledges what it hands out"):
		tb.free(from)
	case tb.is("a position that stands still"):
		b.Pos, b.PosAt = tb.place(r.history, 0), nil
	}
	return b
}

// event is what is handed out for a row, the i-th of a batch.
func (r *reading) event(w row, i int) (onewrite.Event, bool) {
	e, tb := w.Event, r.tb
	e.Data = slices.Clone(e.Data)
	switch tb.fault {
	case "follows the numbers":
		if w.seq < r.top {
			return e, false
		}
		r.top = w.seq
	case "loses the last of a full batch":
		return e, i < onewrite.MaxBatch-1
	case "trims":
		e.Data = []byte(strings.TrimSpace(string(e.Data)))
	case "no tombstones":
		e.Data = append([]byte{}, e.Data...)
	case "no headers":
		e.Header = nil
	case "numbers that are no text":
		e.Seq = strconv.Itoa(w.seq)
	case "its own ids":
		e.ID = outbox.NewID()
	case "the time of reading":
		e.Time = time.Now()
	case "another source each time":
		e.Source = strconv.Itoa(r.reads)
		if r.reads == 0 {
			e.Source = fmt.Sprint(time.Now().UnixNano())
		}
	case "one buffer":
		if e.Data != nil {
			r.buffer = append(r.buffer[:0], e.Data...)
			e.Data = r.buffer
		}
	case "a time long ago":
		e.Time = time.Unix(0, 0)
	}
	return e, true
}

// free forgets the rows before n; tb.mu is held.
func (tb *table) free(n int) { tb.freed = max(tb.freed, n) }

func (r *reading) Ack(_ context.Context, pos onewrite.Pos) error {
	history, n, err := parse(pos)
	if err != nil {
		return err
	}
	tb := r.tb
	if tb.is("waits for writers") {
		tb.once.Do(tb.waitForWriters)
	}
	tb.mu.Lock()
	defer tb.mu.Unlock()
	switch {
	case history != tb.history, tb.is("forgets nothing"):
		return nil
	case tb.is("refuses old news") && n < tb.freed:
		return errors.New("that is old")
	case tb.is("forgets the batch"):
		n = r.next
	}
	tb.free(n)
	return nil
}

func (tb *table) waitForWriters() {
	idle := func() bool {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		return tb.busy == 0
	}
	for end := time.Now().Add(6 * time.Second); !idle() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

func (r *reading) Close() error {
	r.tb.mu.Lock()
	defer r.tb.mu.Unlock()
	r.tb.open = r.tb.is("stays open")
	switch r.tb.fault {
	case "leaks":
		go func() { select {} }()
	case "acknowledges by Close":
		r.tb.free(r.next)
	case "fails to close":
		return errors.New("no")
	}
	return nil
}

func (tb *table) harness() onewritetest.SourceHarness {
	return onewritetest.SourceHarness{
		Open: tb.source, Begin: tb.begin,
		Held: func(*testing.T) int {
			tb.mu.Lock()
			defer tb.mu.Unlock()
			return len(tb.rows) - tb.freed
		},
		Break: func(*testing.T) {
			tb.mu.Lock()
			defer tb.mu.Unlock()
			tb.history++
		},
	}
}

// TestTableSource runs the suite on a right source, or on a wrong one when
// TestSourceSuiteSees has started it.
func TestTableSource(t *testing.T) {
	onewritetest.TestSource(t, func(*testing.T) onewritetest.SourceHarness {
		h := newTable(os.Getenv(faultVariable)).harness()
		if os.Getenv(faultVariable) != "" {
			h.Patience = 3 * time.Second // it waits in vain
		}
		return h
	})
}

// A source whose batches are stored whole, and that says gaps as errors, is right
// too.
func TestWholeSource(t *testing.T) {
	onewritetest.TestSource(t, func(*testing.T) onewritetest.SourceHarness {
		tb := newTable("whole batches")
		h := tb.harness()
		h.OneWriter = true
		open := h.Open
		h.Open = func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
			src, err := open(ctx, pos)
			if r, ok := src.(*reading); ok && r.gap != nil {
				return nil, errors.Join(r.Close(), &onewrite.Gap{Reason: "another history", Cure: "start anew"})
			}
			return src, err
		}
		return h
	})
}

// TestSourceSuiteSees proves that the suite can fail: each fault has to be found by
// the check that is there for it.
func TestSourceSuiteSees(t *testing.T) {
	suiteSees(t, "TestTableSource", map[string]string{
		"reversed": "order", "hands one out twice": "order", "numbers that are no text": "order", "its own ids": "order",
		"one buffer": "order", "a time long ago": "order", "a gap of its own making": "order", "two last places": "order",
		"a position that stands still": "order", "sleeps on": "order", "fails to close": "order",
		"trims": "fidelity", "no tombstones": "fidelity", "no headers": "fidelity",
		"takes too many": "large", "loses the last of a full batch": "large",
		"shows what is open": "uncommitted", "shows what was undone": "uncommitted", "shows what was rolled back": "uncommitted",
		"follows the numbers":  "late commits",
		"goes on one too late": "resume", "a place too early": "resume", "a place too late": "resume",
		"the time of reading": "resume", "another source each time": "resume",
		"acknowledges by Close": "close", "acknowledges what it hands out": "resume",
		"forgets the batch": "ack", "forgets nothing": "ack", "refuses old news": "ack", "waits for writers": "ack",
		"ignores ctx": "cancelled", "calls its end a gap": "cancelled",
		"leaks": "goroutines", "gives a twin nothing": "twins", "fails beside another": "twins", "stays open": "close",
		"takes any position for the beginning": "foreign position",
		"a silent gap":                         "gap", "a gap without its events": "gap", "a gap without a reason": "gap", "a gap without a cure": "gap",
		"a gap behind its events": "gap", "a gap for ever": "gap",
	})
}

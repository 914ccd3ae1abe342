package postgres

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"weak"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// TestKeeper: what is kept stays as it was while the buffer that it came from is used
// again, whatever its size, and nil is not empty.
func TestKeeper(t *testing.T) {
	columns := make([]tableColumn, 40)
	for i := range columns {
		columns[i].name = fmt.Sprint("c", i)
	}
	tab := newTable(1, "db", "public", "t", columns, nil)
	var k keeper
	if first := k.data([]byte{}); first == nil || k.data(nil) != nil {
		t.Errorf("an empty value is %#v, none is %#v", first, k.data(nil))
	}
	var buf []byte
	dice := rand.New(rand.NewPCG(1, 2))
	tuple := func(n int) (t, want pgoutput.Tuple) {
		for range n {
			c := pgoutput.Column{Kind: pgoutput.ColumnNull}
			if size := []int{-1, 0, 1, 20, 300, slabBytes/16 - 1, slabBytes / 16, slabBytes/16 + 1, 2 * slabBytes}[dice.IntN(9)]; size >= 0 {
				c = pgoutput.Column{Kind: pgoutput.ColumnText, Data: []byte{}}
				for range size {
					buf = append(buf, byte(dice.Uint32()))
				}
				c.Data = buf[len(buf)-size:]
			}
			t = append(t, c)
			want = append(want, pgoutput.Column{Kind: c.Kind, Data: bytes.Clone(c.Data)})
		}
		return t, want
	}
	type pair struct {
		kept          *change
		before, after pgoutput.Tuple
	}
	var all []pair
	for i := range 3*slabChanges + 1 {
		buf = make([]byte, 0, 80*2*slabBytes)
		c := change{table: tab, index: uint32(i)}
		var p pair
		if i%3 > 0 {
			c.before, p.before = tuple(1 + dice.IntN(len(columns)))
		}
		if i%3 < 2 {
			c.after, p.after = tuple(1 + dice.IntN(len(columns)))
		} else if i%2 > 0 {
			c.after, p.after = pgoutput.Tuple{}, pgoutput.Tuple{}
		}
		p.kept = k.keep(&c)
		all = append(all, p)
		clear(buf)
		clear(c.before)
		clear(c.after)
	}
	for i, p := range all {
		if p.kept.index != uint32(i) || !sameTuple(p.kept.before, p.before) || !sameTuple(p.kept.after, p.after) {
			t.Fatalf("change %d is another one now", i)
		}
	}
}

func sameTuple(a, b pgoutput.Tuple) bool {
	if (a == nil) != (b == nil) || len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Kind != b[i].Kind || (a[i].Data == nil) != (b[i].Data == nil) || !bytes.Equal(a[i].Data, b[i].Data) {
			return false
		}
	}
	return true
}

// TestMakeEvents: the event that is made of what was kept is the one of the change, and
// nothing of the change is left.
func TestMakeEvents(t *testing.T) {
	tab := newTable(1, "db", "public", "t", []tableColumn{{name: "id"}, {name: "note"}}, []string{"id"})
	v := newEnvelope(Config{Name: "shop"}, 7)
	var k keeper
	var items []item
	var want []string
	for i := range 300 {
		c := change{table: tab, kind: "insert", op: 'c', xid: 1 + uint32(i/7), order: i % 7, count: i%7 + 1, index: uint32(i % 7), lsn: 77,
			after: pgoutput.Tuple{{Kind: pgoutput.ColumnText, Data: fmt.Append(nil, i)}, {Kind: pgoutput.ColumnText, Data: bytes.Repeat([]byte{'x'}, i)}}}
		e := newEnvelope(Config{Name: "shop"}, 7).event(&c)
		e.Tx.Last = i%7 == 6
		want = append(want, fmt.Sprintf("%+v", e))
		it := item{row: k.keep(&c), last: i%7 == 6}
		if size := e.Size(); it.size() < size*3/4 || it.size() > size*5/4+300 {
			t.Errorf("an event of %d bytes is taken for one of %d", size, it.size())
		}
		items = append(items, it)
	}
	rows := make([]*change, len(items))
	for i := range items {
		rows[i] = items[i].row
	}
	events := v.makeEvents(items)
	for i := range items {
		if got := fmt.Sprintf("%+v", events[i]); got != want[i] || items[i].event != &events[i] || items[i].row != nil {
			t.Fatalf("event %d is\n%s, want\n%s", i, got, want[i])
		}
		if rows[i].after != nil || rows[i].table != nil {
			t.Fatalf("change %d is still there", i)
		}
	}
}

// TestQueueForgets: what was taken is kept alive neither by the room of the queue, which
// has items for thousands more, nor by the place behind it.
func TestQueueForgets(t *testing.T) {
	q, env, b := newLogQueue(), &envelope{}, &Both{}
	b.log.Store(&logReader{})
	pass := func(n int) (events []weak.Pointer[byte]) {
		run := make([]item, n)
		for i := range run {
			data := make([]byte, 64)
			run[i].event = &onewrite.Event{ID: "x", Data: data}
			events = append(events, weak.Make(&data[0]))
		}
		q.put(run)
		for len(q.items) > 0 {
			items, err := q.take(t.Context(), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.fromLog(logResult{items: items, events: env.makeEvents(items)}); err != nil {
				t.Fatal(err)
			}
		}
		return events
	}
	pass(queueEvents)
	if cap(q.items) < queueEvents {
		t.Fatalf("room for %d more: nothing is tried", cap(q.items))
	}
	gone := pass(3)
	runtime.GC()
	for i, e := range gone {
		if e.Value() != nil {
			t.Errorf("event %d is still there", i)
		}
	}
	runtime.KeepAlive(q)
	runtime.KeepAlive(b)
}

// What goes into the queue comes out in order, and its room has nothing else.
func TestQueueRoom(t *testing.T) {
	q, rnd := newLogQueue(), rand.New(rand.NewPCG(5, 6))
	in, out, same := int64(0), int64(0), 0
	for range 3000 {
		run := make([]item, 1+rnd.IntN(300))
		for i := range run {
			in++
			run[i] = item{event: &onewrite.Event{}, seq: in}
		}
		before := q.buf
		q.put(run)
		if len(before) > 0 && &before[0] == &q.buf[0] {
			same++
		}
		for len(q.items) > 1000+rnd.IntN(2000) {
			items, err := q.take(t.Context(), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for i := range items {
				if out++; items[i].seq != out {
					t.Fatalf("item %d came after %d", items[i].seq, out-1)
				}
			}
		}
		held := 0
		for i := range q.buf {
			if q.buf[i].event != nil {
				held++
			}
		}
		if held != len(q.items) || int64(held) != in-out {
			t.Fatalf("the room holds %d, %d wait, %d are due", held, len(q.items), in-out)
		}
	}
	if out < 300_000 || same < 2900 {
		t.Errorf("%d came out, the room was kept %d times", out, same)
	}
}

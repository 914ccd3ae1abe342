package places

import (
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/onewrite/onewrite"
)

// A place is taken when its record has stood still for the lease, however seldom one looks;
// at once when it was given up, or is one's own.
func TestMayTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lease = 6 * time.Second
		var c Claims
		r := Record{Owner: "a"}
		for rev := range uint64(5) { // it moves, and is looked at after more than a lease
			if c.MayTake("d", "b", r, rev, lease) {
				t.Fatalf("taken from an owner that commits, at revision %d", rev)
			}
			time.Sleep(lease + time.Second)
		}
		if c.MayTake("d", "b", r, 9, lease) {
			t.Fatal("taken at the first look at a revision")
		}
		time.Sleep(lease - time.Millisecond)
		if c.MayTake("d", "b", r, 9, lease) {
			t.Fatal("taken before the lease has ended")
		}
		if c.MayTake("other", "b", r, 9, lease) {
			t.Fatal("taken for the sake of another destination")
		}
		time.Sleep(time.Millisecond)
		if !c.MayTake("d", "b", r, 9, lease) {
			t.Fatal("not taken when the lease has ended")
		}
		if c.MayTake("d", "b", r, 9, lease) {
			t.Fatal("a claim that was used counts once more")
		}
	})
	var c Claims
	for _, r := range []Record{{Owner: "b"}, {Owner: "a", Released: true}, {Owner: "a", Forgotten: true}} {
		if !c.MayTake("d", "b", r, 1, time.Hour) {
			t.Errorf("%+v is not to be had", r)
		}
	}
}

func TestRewind(t *testing.T) {
	r := Record{Owner: "a", Epoch: 3, Rewinds: 1, Cursor: onewrite.Cursor{Delivered: 9, Placed: "pair/1/x", Ahead: []onewrite.Ahead{
		{Log: "part", Offset: 6}, {Log: "part", Offset: 11}, {Log: "gone", Offset: 8},
	}, Logs: map[string]onewrite.LogCursor{
		"back": {Floor: 10, Done: []onewrite.Span{{From: 12, To: 14}, {From: 20, To: 20}}},
		"part": {Floor: 3, Done: []onewrite.Span{{From: 5, To: 9}}},
		"gone": {Floor: 7},
	}}}
	was := r.Cursor.Logs
	r.Rewind("b", map[string]onewrite.LogCursor{"back": {Floor: 4}, "part": {Floor: 6}, "new": {Floor: 2}})
	want := Record{Owner: "b", Epoch: 4, Rewinds: 2, Released: true, Cursor: onewrite.Cursor{Delivered: 9, Placed: onewrite.PlacedVoid + "pair/1/x", Ahead: []onewrite.Ahead{{Log: "part", Offset: 6}}, Logs: map[string]onewrite.LogCursor{
		"back": {Floor: 4}, "part": {Floor: 3, Done: []onewrite.Span{{From: 5, To: 6}}}, "gone": {},
	}}}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("rewound to %+v\nwant %+v", r, want)
	}
	if was["back"].Floor != 10 {
		t.Error("the cursor of before was changed")
	}
	r.Rewind("b", nil)
	if r.Cursor.Placed != want.Cursor.Placed {
		t.Errorf("void twice: %q", r.Cursor.Placed)
	}
}

func TestMoveUp(t *testing.T) {
	lc := onewrite.LogCursor{Floor: 3, Done: []onewrite.Span{{From: 5, To: 6}, {From: 9, To: 12}, {From: 20, To: 21}}}
	up, lost, moved := MoveUp(lc, 11)
	want := onewrite.LogCursor{Floor: 10, Done: []onewrite.Span{{From: 11, To: 12}, {From: 20, To: 21}}}
	if !reflect.DeepEqual(up, want) || lost != 3 || !moved { // 4, 7 and 8
		t.Errorf("%+v, %d lost, %v; want %+v and 3", up, lost, moved, want)
	}
	if up, lost, moved := MoveUp(lc, 4); !reflect.DeepEqual(up, lc) || lost != 0 || moved {
		t.Errorf("a place at the first event: %+v, %d, %v", up, lost, moved)
	}
	if got := Seen(lc); got != 21 {
		t.Errorf("it has seen %d", got)
	}
}

func TestParseAndClone(t *testing.T) {
	r, err := Parse([]byte(`{"cursor":{"logs":null},"epoch":2,"owner":"a"}`))
	if err != nil || r.Epoch != 2 || r.Cursor.Logs == nil {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := Parse([]byte("{")); err == nil {
		t.Error("half a record was read")
	}
	c := onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"l": {Done: []onewrite.Span{{From: 1, To: 1}}}}, Ahead: []onewrite.Ahead{{Log: "l", Offset: 3}}}
	d := Clone(c)
	d.Logs["l"].Done[0].To, d.Logs["m"], d.Ahead[0].Offset = 9, onewrite.LogCursor{}, 9
	if c.Logs["l"].Done[0].To != 1 || len(c.Logs) != 1 || c.Ahead[0].Offset != 3 {
		t.Errorf("a copy shares with its original: %+v", c)
	}
}

func TestTexts(t *testing.T) {
	long := strings.Repeat("é", 600)
	for _, n := range []int{0, 1, 2, 7, 1000, 1200} {
		got := Shorten(long, n)
		if !utf8.ValidString(got) || len(got) > n+len("…") {
			t.Errorf("cut to %d: %d bytes, valid %v", n, len(got), utf8.ValidString(got))
		}
	}
	if got := Shorten("no", 2); got != "no" {
		t.Errorf("%q", got)
	}
	for s, want := range map[string]bool{"a-B_9": true, "": false, "a.b": false, "ü": false, "a b": false, strings.Repeat("a", 9): false} {
		if ValidName(s, 8) != want {
			t.Errorf("name %q: %v", s, !want)
		}
	}
}

// TestTallyBehindItsPlace: a place may be ahead of what is known, after a count that had no
// time to end; and what is confirmed is not kept, wanted or not.
func TestTallyBehindItsPlace(t *testing.T) {
	tally := NewTally(0)
	for o := uint64(1); o <= 1024*64+1; o++ {
		tally.Note(o, true)
	}
	if n := tally.Pending(onewrite.LogCursor{Floor: 1025 * 64}, 1026*64); n != 64 {
		t.Fatalf("%d pending, want 64", n)
	}
	tally.Note(1024*64+2, true)
	if n := tally.Pending(onewrite.LogCursor{Floor: 1024 * 64}, 1024*64+2); n != 2 {
		t.Fatalf("%d pending, want 2", n)
	}
	tally.Note(1<<40, false)
	tally.Pending(onewrite.LogCursor{Floor: 1 << 40}, 1<<40)
	tally.Note(1<<40+1, true)
	if n := tally.Pending(onewrite.LogCursor{Floor: 1 << 40}, 1<<40+1); n != 1 || len(tally.bits) > 2000 {
		t.Fatalf("%d pending, want 1; %d words", n, len(tally.bits))
	}
}

// What is known of a log is owed, and an earlier copy of the record keeps what it knew.
func TestKnow(t *testing.T) {
	var r Record
	r.Know("shop", 5)
	was := r
	r.Know("shop", 3)
	r.Know("shop", 9)
	r.Know("stock", 2)
	if r.Seen("shop") != 9 || r.Seen("stock") != 2 || r.Seen("other") != 0 || was.Seen("shop") != 5 || was.Seen("stock") != 0 {
		t.Errorf("knows %v, the earlier one %v", r.Known, was.Known)
	}
	r.Cursor.Logs = map[string]onewrite.LogCursor{"shop": {Floor: 4, Done: []onewrite.Span{{From: 8, To: 12}}}}
	if r.Seen("shop") != 12 {
		t.Errorf("has seen %d", r.Seen("shop"))
	}
}

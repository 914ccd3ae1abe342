package nats_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
)

// storeWith makes a closed store with 40 events, a place at 30 and one parked event.
func storeWith(t *testing.T) (dir, id string) {
	t.Helper()
	dir = t.TempDir()
	b, err := nats.Open(t.Context(), nats.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, b, "", batch(1, 20), batch(21, 19), batch(40, 1))
	for _, name := range []string{"hook", "other"} {
		sub := subscribe(t, b, onewrite.Interest{Name: name})
		c := onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": {Floor: 30}}}
		if name == "hook" {
			ref, err := sub.Park(t.Context(), onewrite.Parked{Message: read(t, sub, 1)[0], At: time.Now()})
			if err != nil {
				t.Fatal(err)
			}
			c.Parked, c.LastParked = 1, ref
		}
		if err := sub.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
	}
	id = b.ID()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, id
}

// stream is a file of a stream in a store.
func stream(dir, name, file string) string {
	return filepath.Join(dir, "jetstream", "$G", "streams", "onewrite-"+name, filepath.FromSlash(file))
}

// change rewrites a file.
func change(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// at changes one bit where text begins, at an offset from there.
func at(text string, offset int) func([]byte) []byte {
	return func(data []byte) []byte {
		i := bytes.Index(data, []byte(text)) + offset
		data[i] ^= 1
		return data
	}
}

// TestDamageUndelivered: a log that is gone is noticed although no destination has
// delivered anything of it, so that it is read again from the outbox.
func TestDamageUndelivered(t *testing.T) {
	dir := t.TempDir()
	b := open(t, nats.Config{Dir: dir})
	sub := subscribe(t, b, onewrite.Interest{Name: "late"})
	appendAll(t, b, "", batch(1, 5))
	read(t, sub, 5)
	id, nothing := b.ID(), onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": {}}}
	if err := errors.Join(sub.Commit(t.Context(), nothing), sub.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	mustRemove(t, filepath.Join(dir, "seal"))
	if err := os.RemoveAll(stream(dir, "shop", "")); err != nil {
		t.Fatal(err)
	}
	b, said := reopened(t, dir)
	if len(said) != 1 || b.ID() == id {
		t.Errorf("said %q, and the bus is %s, which was %s", said, b.ID(), id)
	}
}

// reopened opens a store and returns its identity and what it says of damage.
func reopened(t *testing.T, dir string) (b *nats.Bus, said []string) {
	t.Helper()
	b = open(t, nats.Config{Dir: dir, Damaged: func(what string) { said = append(said, what) }})
	return b, said
}

// TestDamage changes the folder of a stopped bus. What is damaged is set aside and
// said; the destinations keep a place, and begin with what is read again.
func TestDamage(t *testing.T) {
	half := func(data []byte) []byte { return data[:len(data)/2] }
	// A clean stop leaves a seal and the server's index. Without either the records
	// alone have to tell.
	unsealed := func(t *testing.T, dir string) { mustRemove(t, filepath.Join(dir, "seal")) }
	crash := func(t *testing.T, dir string) {
		unsealed(t, dir)
		for _, s := range []string{"shop", "state", "parked"} {
			mustRemove(t, stream(dir, s, "msgs/index.db"))
		}
	}
	for name, f := range map[string]func(t *testing.T, dir string){
		"payload":       func(t *testing.T, dir string) { change(t, stream(dir, "shop", "msgs/1.blk"), at(`{"order":5}`, 3)) },
		"header length": func(t *testing.T, dir string) { change(t, stream(dir, "shop", "msgs/1.blk"), at("NATS/1.0", -4)) },
		"record length": func(t *testing.T, dir string) {
			change(t, stream(dir, "shop", "msgs/1.blk"), func(d []byte) []byte { d[2] ^= 1; return d })
		},
		"place": func(t *testing.T, dir string) { change(t, stream(dir, "state", "msgs/1.blk"), at(`"floor":30`, 8)) },
		"parked event": func(t *testing.T, dir string) {
			change(t, stream(dir, "parked", "msgs/1.blk"), at("Onewrite-Reason", 3))
		},
		"description": func(t *testing.T, dir string) { change(t, stream(dir, "shop", "meta.inf"), at("max_bytes", 2)) },
		"checksum":    func(t *testing.T, dir string) { change(t, stream(dir, "parked", "meta.sum"), half) },
		"short log":   func(t *testing.T, dir string) { change(t, stream(dir, "shop", "msgs/1.blk"), half) },
		"block gone":  func(t *testing.T, dir string) { mustRemove(t, stream(dir, "parked", "msgs/1.blk")) },
		"crash, log":  func(t *testing.T, dir string) { crash(t, dir); change(t, stream(dir, "shop", "msgs/1.blk"), half) },
		"crash, half a batch": func(t *testing.T, dir string) {
			crash(t, dir)
			change(t, stream(dir, "shop", "msgs/1.blk"), func(d []byte) []byte { return d[:bytes.Index(d, []byte(`{"order":37}`))] })
		},
		"no seal, log": func(t *testing.T, dir string) {
			unsealed(t, dir)
			change(t, stream(dir, "shop", "msgs/1.blk"), half)
		},
		"no seal, no log": func(t *testing.T, dir string) { unsealed(t, dir); mustRemove(t, stream(dir, "shop", "msgs/1.blk")) },
		"crash, parked":   func(t *testing.T, dir string) { crash(t, dir); change(t, stream(dir, "parked", "msgs/1.blk"), half) },
		"crash, no lot":   func(t *testing.T, dir string) { crash(t, dir); mustRemove(t, stream(dir, "parked", "msgs/1.blk")) },
		"crash, places": func(t *testing.T, dir string) {
			crash(t, dir)
			change(t, stream(dir, "state", "msgs/1.blk"), func(d []byte) []byte { return d[:bytes.Index(d, []byte("cursor.hook"))] })
		},
		"crash, no log": func(t *testing.T, dir string) { crash(t, dir); mustRemove(t, stream(dir, "shop", "msgs/1.blk")) },
		"crash, payload": func(t *testing.T, dir string) {
			crash(t, dir)
			change(t, stream(dir, "shop", "msgs/1.blk"), at(`{"order":5}`, 3))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, id := storeWith(t)
			f(t, dir)
			b, said := reopened(t, dir)
			aside, err := filepath.Glob(filepath.Join(dir, "damaged-*"))
			if err != nil || len(aside) != 1 {
				t.Errorf("set aside: %v, %v", aside, err)
			}
			if b.ID() == id || len(said) != 1 && !strings.HasPrefix(name, "crash") && !strings.HasPrefix(name, "no seal") || !strings.Contains(strings.Join(said, "\n"), "read again from the outbox") {
				t.Errorf("the same identity: %v; said %q", b.ID() == id, said)
			}
			names, err := b.Destinations(t.Context())
			if err != nil || !slices.Equal(names, []string{"hook", "other"}) {
				t.Errorf("places of %v, %v", names, err)
			}
			appendAll(t, b, "", batch(1, 3)) // the source may be faster than a destination that wants what is new
			if m := read(t, subscribe(t, b, onewrite.Interest{Name: "hook", From: onewrite.From{Now: true}}), 3); m[0].Seq != "1" {
				t.Errorf("it begins with %s", m[0].Seq)
			}
		})
	}
}

func mustRemove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestHarmless: what the store can do without, and what a crash leaves behind, is
// no damage.
func TestHarmless(t *testing.T) {
	for name, f := range map[string]func(t *testing.T, dir string){
		"nothing": func(*testing.T, string) {},
		"index":   func(t *testing.T, dir string) { change(t, stream(dir, "shop", "msgs/index.db"), at("", 20)) },
		"seal":    func(t *testing.T, dir string) { change(t, filepath.Join(dir, "seal"), at("", 3)) },
		"places":  func(t *testing.T, dir string) { change(t, filepath.Join(dir, "places"), at("hook", 1)) },
		"crash":   func(t *testing.T, dir string) { mustRemove(t, filepath.Join(dir, "seal")) },
		"crash in a write": func(t *testing.T, dir string) {
			mustRemove(t, filepath.Join(dir, "seal"))
			mustRemove(t, stream(dir, "shop", "msgs/index.db")) // written at a clean stop
			change(t, stream(dir, "shop", "msgs/1.blk"), func(d []byte) []byte { return d[:len(d)-9] })
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, id := storeWith(t)
			f(t, dir)
			b, said := reopened(t, dir)
			if torn := name == "crash in a write"; b.ID() != id || torn != (len(said) == 1) {
				t.Errorf("the same identity: %v; said %q", b.ID() == id, said)
			}
			pos, last, err := b.Position(t.Context(), "shop")
			if err != nil || name != "crash in a write" && (pos != "40" || last != 40) {
				t.Errorf("position %q at %d, %v", pos, last, err)
			}
		})
	}
}

// TestForgetHalfDone: whoever dies while a destination is forgotten leaves a sound bus,
// from which it can be forgotten, or to which it can come back.
func TestForgetHalfDone(t *testing.T) {
	for steps, all := 1, false; !all; steps++ {
		for _, clean := range []bool{true, false} {
			for _, back := range []bool{true, false} {
				t.Run(fmt.Sprintf("%d steps, clean %v, back %v", steps, clean, back), func(t *testing.T) {
					all = forgetHalf(t, steps, clean, back)
				})
			}
		}
	}
}

func forgetHalf(t *testing.T, steps int, clean, back bool) (all bool) {
	dir, id := storeWith(t)
	b, err := nats.Open(t.Context(), nats.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Sole("shop", 40, 30, true); err != nil { // so damage would keep it from starting
		t.Fatal(err)
	}
	if all, err = nats.ForgetUntil(t.Context(), b, "hook", steps); err != nil {
		t.Fatal(err)
	}
	if !clean { // as a kill leaves it
		crashed := t.TempDir()
		if err := os.CopyFS(crashed, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		dir = crashed
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	given := steps >= 2 // up, whatever is still there of it
	b, said := reopened(t, dir)
	if b.ID() != id || len(said) > 0 {
		t.Fatalf("the same identity: %v; said %q", b.ID() == id, said)
	}
	if names, err := b.Destinations(t.Context()); err != nil || slices.Contains(names, "hook") == given || !slices.Contains(names, "other") {
		t.Errorf("places of %v, %v", names, err)
	}
	if !back {
		if err := b.Forget(t.Context(), "hook"); err != nil {
			t.Fatal(err)
		}
	} else {
		sub := subscribe(t, b, onewrite.Interest{Name: "hook"})
		list, err := sub.Parked(t.Context(), 0, 10, nil)
		if c, _ := sub.Cursor(); err != nil || c.Parked > uint64(len(list)) {
			t.Errorf("%d parked events, %d of them there, %v", c.Parked, len(list), err)
		}
		if err := sub.Commit(t.Context(), onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": {Floor: 40}}}); err != nil {
			t.Error(err)
		}
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again, said := reopened(t, dir)
	names, err := again.Destinations(t.Context())
	if again.ID() != id || len(said) > 0 || err != nil || slices.Contains(names, "hook") != back {
		t.Errorf("in the end: the same identity %v, said %q, places of %v, %v", again.ID() == id, said, names, err)
	}
	return all
}

// TestDamageOfOnlyCopy: a folder that holds the only copy of something is not set
// aside, but refused with the cure.
func TestDamageOfOnlyCopy(t *testing.T) {
	dir, id := storeWith(t)
	b, err := nats.Open(t.Context(), nats.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		last, confirmed uint64
		freed           bool
	}{{40, 30, true}, {45, 30, false}} { // it stays one until 40 is confirmed
		if err := b.Sole("shop", c.last, c.confirmed, c.freed); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var was []byte
	change(t, stream(dir, "shop", "msgs/1.blk"), func(d []byte) []byte { was = bytes.Clone(d); return at(`{"order":5}`, 3)(d) })
	for range 2 {
		_, err = nats.Open(context.Background(), nats.Config{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), "only copy") || !strings.Contains(err.Error(), "rm '"+filepath.Join(dir, "only-copy-shop")+"'") {
			t.Fatalf("Open of a damaged folder: %v", err)
		}
	}
	change(t, stream(dir, "shop", "msgs/1.blk"), func([]byte) []byte { return was })
	again, _ := reopened(t, dir)
	if again.ID() != id {
		t.Error("a folder that was put right was set aside")
	}
	if err := again.Sole("shop", 45, 40, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "only-copy-shop")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it still is the only copy: %v", err)
	}
}

// endsAt is a context that ends when it was asked for so often.
type endsAt struct {
	context.Context
	cancel context.CancelFunc
	left   atomic.Int64
}

func (e *endsAt) ask() {
	if e.left.Add(-1) == 0 {
		e.cancel()
	}
}

func (e *endsAt) Done() <-chan struct{} { e.ask(); return e.Context.Done() }

func (e *endsAt) Err() error { e.ask(); return e.Context.Err() }

// TestSoundGivenUp: a look at the store that is given up, wherever it is, says nothing of
// the store.
func TestSoundGivenUp(t *testing.T) {
	b := open(t, nats.Config{Dir: t.TempDir()})
	appendAll(t, b, "", batch(1, 100), batch(101, 100))
	sub := subscribe(t, b, onewrite.Interest{Name: "d"})
	defer sub.Close()
	if err := sub.Commit(t.Context(), onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": {Floor: 150}}}); err != nil {
		t.Fatal(err)
	}
	for n := int64(1); ; n++ {
		inner, cancel := context.WithTimeout(t.Context(), time.Minute)
		ctx := &endsAt{Context: inner, cancel: cancel}
		ctx.left.Store(n)
		damaged, err := nats.Sound(ctx, b)
		left := ctx.left.Load()
		cancel()
		if damaged {
			t.Errorf("given up when the context was asked for the %d. time, the store is said to be damaged: %v", n, err)
		}
		if left > 0 {
			if err != nil || n < 5 {
				t.Fatalf("nothing ended it, and %v", err)
			}
			return
		}
	}
}

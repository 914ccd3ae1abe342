package nats_test

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/internal/retention"
)

// contents are what can be removed of a bus whose folder stays, as patterns.
var contents = []string{"jetstream/*", "jetstream/*/streams", "jetstream/*/streams/*", "jetstream/*/streams/*/msgs", "jetstream/*/streams/*/msgs/*"}

// loseContents opens a bus that has three events and a place of one destination.
func loseContents(t *testing.T) (b *nats.Bus, dir string, add, commit func() error) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("a file in use cannot be removed")
	}
	dir = filepath.Join(t.TempDir(), "bus")
	b = open(t, nats.Config{Dir: dir})
	n := 0
	add = func() error { // behind what is there: a refused one may be there when the files are back
		prev, _, err := b.Position(t.Context(), "shop")
		if err != nil {
			return err
		}
		n++
		_, err = b.Append(t.Context(), "shop", prev, batch(n, 1))
		return err
	}
	for range 3 {
		if err := add(); err != nil {
			t.Fatal(err)
		}
	}
	sub := subscribe(t, b, onewrite.Interest{Name: "d"})
	t.Cleanup(func() { _ = sub.Close() })
	commit = func() error {
		return sub.Commit(t.Context(), onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": {Floor: 1}}})
	}
	return b, dir, add, commit
}

func saysRemoved(err error) bool {
	return err != nil && strings.Contains(err.Error(), "was removed or put elsewhere")
}

// move moves the files of a pattern to where aside says.
func move(t *testing.T, dir, pattern string, aside func(path string) string) (moved [][2]string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("nothing is %s: %v", pattern, err)
	}
	for _, path := range paths {
		to := aside(path)
		if err := os.Rename(path, to); err != nil {
			t.Fatal(err)
		}
		moved = append(moved, [2]string{path, to})
	}
	return moved
}

// TestContentsRemoved: nothing is confirmed that the server writes to files that are gone,
// though the folder itself is there; what is put back is written to again.
func TestContentsRemoved(t *testing.T) {
	for _, pattern := range contents {
		for what, step := range map[string]int{"an append": 0, "a place": 1} {
			t.Run(pattern+", "+what, func(t *testing.T) {
				b, dir, add, commit := loseContents(t)
				write := []func() error{add, commit}[step]
				away := t.TempDir()
				moved := move(t, dir, pattern, func(path string) string { return filepath.Join(away, strings.ReplaceAll(path, "/", "-")) })
				for range 3 {
					if err := write(); !saysRemoved(err) {
						t.Fatalf("%s says %v", what, err)
					}
				}
				for _, m := range moved {
					if err := os.Rename(m[1], m[0]); err != nil {
						t.Fatal(err)
					}
				}
				until(t, "the bus goes on", func() bool { return add() == nil })
				has, _, err := b.Position(t.Context(), "shop")
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				again, said := reopened(t, dir)
				if pos, _, err := again.Position(t.Context(), "shop"); pos != has || err != nil || len(said) > 0 {
					t.Errorf("started again it is at %q, was at %q; %v; said %q", pos, has, err, said)
				}
			})
		}
	}
}

// TestContentsReplaced: what is not in the copy that was put in place of the store is not
// confirmed; the copy is what holds then.
func TestContentsReplaced(t *testing.T) {
	b, dir, add, _ := loseContents(t)
	had, _, err := b.Position(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	twin := t.TempDir()
	if err := os.CopyFS(twin, os.DirFS(filepath.Join(dir, "jetstream"))); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "jetstream", "$G")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(twin, "$G"), filepath.Join(dir, "jetstream", "$G")); err != nil {
		t.Fatal(err)
	}
	if err := add(); !saysRemoved(err) {
		t.Fatalf("an append says %v", err)
	}
	var has onewrite.Pos
	until(t, "the bus goes on", func() bool {
		has, _, err = b.Position(t.Context(), "shop")
		return err == nil
	})
	if has != had {
		t.Errorf("it is at %q, the copy is at %q", has, had)
	}
	if err := add(); err != nil {
		t.Error(err)
	}
}

// bulk is a batch that no block has room for together with what is in it.
func bulk(first int) onewrite.Batch {
	x := batch(first, 12)
	for i := range x.Events {
		x.Events[i].Data = make([]byte, 1<<20)
		_, _ = rand.Read(x.Events[i].Data)
	}
	return x
}

// TestContentsRemovedBetweenBlocks: a new block does not hide that those before it are gone.
func TestContentsRemovedBetweenBlocks(t *testing.T) {
	b, dir, _, _ := loseContents(t)
	moved := move(t, dir, "jetstream/$G/streams/onewrite-shop/msgs/1.blk", func(path string) string { return path + ".away" })
	_, err := b.Append(t.Context(), "shop", "3", bulk(4))
	if !saysRemoved(err) {
		t.Fatalf("an append says %v", err)
	}
	if err := os.Rename(moved[0][1], moved[0][0]); err != nil {
		t.Fatal(err)
	}
	until(t, "the bus goes on", func() bool {
		_, _, err := b.Position(t.Context(), "shop")
		return err == nil
	})
}

// TestBlocksComeAndGo: the server makes blocks, writes them anew and removes them; nothing is
// missing then.
func TestBlocksComeAndGo(t *testing.T) {
	var said strings.Builder
	dir := t.TempDir()
	b := open(t, nats.Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	last := appendAll(t, b, "", bulk(1))
	var all sync.WaitGroup
	for d := range 3 { // records of some 30 KB, each of which makes the one before it void
		sub := subscribe(t, b, onewrite.Interest{Name: "d" + strconv.Itoa(d)})
		all.Go(func() {
			defer sub.Close()
			c := onewrite.LogCursor{}
			for i := range uint64(1000) {
				c.Done = append(c.Done, onewrite.Span{From: 3*i + 2, To: 3*i + 2})
			}
			for range 120 {
				if err := sub.Commit(t.Context(), onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": c}}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Go(func() {
		for i := range 60 {
			if _, err := b.Retain(t.Context(), "shop", uint64(12+10*i), retention.Keep{Size: 1}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 2 {
		last = appendAll(t, b, onewrite.Pos(strconv.FormatUint(last, 10)), bulk(int(last)+1))
		for range 20 {
			last = appendAll(t, b, onewrite.Pos(strconv.FormatUint(last, 10)), batch(int(last)+1, 1))
		}
	}
	all.Wait()
	if _, err := b.Retain(t.Context(), "shop", last, retention.Keep{Size: 1}); err != nil {
		t.Error(err)
	}
	appendAll(t, b, onewrite.Pos(strconv.FormatUint(last, 10)), batch(int(last)+1, 1))
	if _, err := os.Stat(stream(dir, "shop", "msgs/1.blk")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the first block of the log did not go: %v", err)
	}
	if list, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", "onewrite-state", "msgs", "*.blk")); len(list) < 2 {
		t.Errorf("the places are all in one block: %v, %v", list, err)
	}
	if strings.Contains(said.String(), "level=ERROR") {
		t.Errorf("it says %s", said.String())
	}
}

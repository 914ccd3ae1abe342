package disk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gofrs/flock"
)

func TestHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if pid, held := Holder(path); held {
		t.Errorf("a lock without a file is held by %d", pid)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the lock file was made")
	}
	l := flock.New(path)
	if ok, err := l.TryLock(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	pid, held := Holder(path)
	if !held || pid != 0 && pid != os.Getpid() {
		t.Errorf("held %v by %d, this is %d", held, pid, os.Getpid())
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if pid, held := Holder(path); held {
		t.Errorf("a lock that was given back is held by %d", pid)
	}
}

func TestExisting(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{dir: dir, filepath.Join(dir, "a", "b"): dir, ".": ".", "a/b": "."} {
		if got := Existing(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1 kB", 1536000: "1.5 MB", 75_900_000_000: "75.9 GB", 2e15: "2000 TB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestScarce(t *testing.T) {
	const gb = 1e9
	for _, c := range []struct {
		free, total uint64
		want        bool
	}{{gb - 1, 10 * gb, true}, {gb, 10 * gb, false}, {4 * gb, 100 * gb, true}, {5 * gb, 100 * gb, false}, {0, 0, true}} {
		if got := scarce(c.free, c.total); got != c.want {
			t.Errorf("%d of %d: %v", c.free, c.total, got)
		}
	}
}

func TestQuote(t *testing.T) {
	for path, want := range map[string]string{"/a/b-1.db": "/a/b-1.db", "a b": "'a b'", "it's": `'it'\''s'`, "": "''", "$x": "'$x'"} {
		if got := Quote(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

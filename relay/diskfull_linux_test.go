package relay_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/pipeline"
	"github.com/onewrite/onewrite/relay"
)

// TestDiskFull runs itself in a mount namespace of its own, where it can have a
// small disk for the bus.
func TestDiskFull(t *testing.T) {
	servers.WithDisk(t, func(mount func(dir, size string)) { diskFull(t, mount) })
}

// fill leaves so many bytes of the disk of dir, and returns what gives the rest
// back.
func fill(t *testing.T, dir string, leave uint64) (empty func()) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	until(t, "the disk to be filled", func() bool { // the bus may write in between
		var s syscall.Statfs_t
		if err := syscall.Statfs(dir, &s); err != nil {
			t.Fatal(err)
		}
		err := os.WriteFile(ballast, make([]byte, s.Bavail*uint64(s.Bsize)-leave), 0o600)
		if errors.Is(err, syscall.ENOSPC) {
			err = os.Remove(ballast)
			if err == nil {
				return false
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	})
	return func() {
		if err := os.Remove(ballast); err != nil {
			t.Error(err)
		}
	}
}

// diskFull: when the disk of the bus is full, events wait in the database, which
// is said with the cure, and are delivered when there is room again; whether they
// are stored one by one or as a batch, and whether the log or a cursor met it.
func diskFull(t *testing.T, mount func(dir, size string)) {
	w := newWebhook(t)
	g := newRig(t, "", w.line("hook"))
	bus := filepath.Join(g.dir, "bus")
	if err := os.Mkdir(bus, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(bus, "16m")
	empty := fill(t, bus, 0)
	err := relay.New(g.load(), relay.Options{}).Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), "df -h "+bus) {
		t.Fatalf("a start on a full disk: %v", err)
	}
	empty()
	g.start()
	for _, c := range []struct {
		leave uint64
		each  int // events in a transaction
	}{{40 << 10, 1}, {200 << 10, 800}, {0, 1}} {
		empty := fill(t, bus, c.leave)
		for range 80 / min(c.each, 80) {
			g.publish("order.placed", "a", strings.Repeat("x", 1000), c.each)
		}
		until(t, "the status to say it with the cure", func() bool {
			s := g.status()
			for _, v := range []struct {
				state pipeline.State
				text  string
			}{{s.Sources["shop"].State, s.Sources["shop"].LastError}, {s.Destinations["hook"].State, s.Destinations["hook"].LastError}} {
				if v.state == pipeline.Waiting && strings.HasSuffix(v.text, "df -h "+bus) {
					return true
				}
			}
			return false
		})
		until(t, "it not to be ready", func() bool {
			code, body := g.api(http.MethodGet, "/readyz", nil)
			return code == http.StatusServiceUnavailable && strings.Contains(body, "df -h")
		})
		empty()
		until(t, "all to be delivered, in order", func() bool { return slices.Equal(once(w.received()), g.ids) })
		until(t, "it to be ready", func() bool { code, _ := g.api(http.MethodGet, "/readyz", nil); return code == http.StatusOK })
	}
	g.stop()
	g.start()
	if n := len(w.received()); n > len(g.ids)+2*80 { // what was in flight comes twice
		t.Errorf("%d deliveries of %d events", n, len(g.ids))
	}
}

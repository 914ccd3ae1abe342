package nats_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/onewritetest"
)

// open opens a bus and closes it at the end of the test.
func open(t testing.TB, c nats.Config) *nats.Bus {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b, err := nats.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close the bus: %v", err)
		}
	})
	return b
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// natsServer starts a NATS server with JetStream on a free port of loopback.
func natsServer(t testing.TB, dir string, change func(*server.Options)) *server.Server {
	t.Helper()
	o := &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: dir,
		MaxPayload: 8 << 20, JetStreamMaxStore: 10 << 30,
	}
	if change != nil {
		change(o)
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server did not start")
	}
	return s
}

func TestEmbedded(t *testing.T) {
	onewritetest.TestBus(t, func(t *testing.T, dir string) onewritetest.Bus {
		return closer{open(t, nats.Config{Dir: dir})}
	})
}

// TestEmbeddedStore reads everything from the store, as a reader that lags.
func TestEmbeddedStore(t *testing.T) {
	onewritetest.TestBus(t, func(t *testing.T, dir string) onewritetest.Bus {
		c := nats.Config{Dir: dir}
		nats.StoreOnly(&c)
		return closer{open(t, c)}
	})
}

// TestEmbeddedOpen stores each event for itself, as others may read them.
func TestEmbeddedOpen(t *testing.T) {
	onewritetest.TestBus(t, func(t *testing.T, dir string) onewritetest.Bus {
		return closer{open(t, nats.Config{Dir: dir, Listen: "127.0.0.1:0", User: "reader", Password: "made-up"})}
	})
}

func TestExternal(t *testing.T) {
	var mu sync.Mutex
	running := map[string]*server.Server{}
	onewritetest.TestBus(t, func(t *testing.T, dir string) onewritetest.Bus {
		mu.Lock()
		defer mu.Unlock()
		s := running[dir]
		if s == nil {
			s = natsServer(t, dir, nil)
			running[dir] = s
		}
		c := nats.Config{URL: s.ClientURL()}
		nats.StoreOnly(&c)
		return closer{open(t, c)}
	})
}

// closer lets the suite close what the test's cleanup closes again.
type closer struct{ *nats.Bus }

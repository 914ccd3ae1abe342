package kafka_test

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/onewritetest"
)

type testLog struct{ t testing.TB }

func (w testLog) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

func openBus(t testing.TB, c kafka.BusConfig) *kafka.Bus {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	b, err := kafka.OpenBus(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBus: another folder of the suite is another bus in the same cluster.
func TestBus(t *testing.T) {
	k := servers.Kafka(t)
	onewritetest.TestBus(t, func(t *testing.T, dir string) onewritetest.Bus {
		name := strings.ReplaceAll(filepath.Base(filepath.Dir(dir))+filepath.Base(dir), ",", "")
		name = name[max(0, len(name)-60):]
		return openBus(t, kafka.BusConfig{Brokers: []string{k.Addr()}, Name: name})
	})
}

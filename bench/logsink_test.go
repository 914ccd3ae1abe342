package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
)

// BenchmarkLogToSink carries rows from the log through the embedded bus to one
// destination by the program: what a destination costs beside the bus alone, of which
// BenchmarkLogByProgram tells. In bus, Kafka is the bus, and nothing is behind it; in
// bus-file, a file is.
func BenchmarkLogToSink(b *testing.B) {
	kafka := func(b *testing.B) string {
		return fmt.Sprintf("{type: kafka, brokers: [%q], topic: \"rows%d.{topic}\"", servers.Kafka(b).Addr(), time.Now().UnixNano())
	}
	for _, c := range []struct {
		name string
		to   func(b *testing.B) string
	}{
		{"file", func(b *testing.B) string {
			return fmt.Sprintf("{type: file, path: %q}", filepath.Join(b.TempDir(), "rows.jsonl"))
		}},
		{"kafka", func(b *testing.B) string { return kafka(b) + "}" }},
		{"idempotent", func(b *testing.B) string { return kafka(b) + ", transactions: false}" }},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := newLogProgram(b, "destinations:\n  to: "+c.to(b)+"\n")
			p.to = "to"
			logToSink(p)
		})
	}
	bus := func(b *testing.B) string {
		return fmt.Sprintf("{type: kafka, name: rows%d, brokers: [%q], max_size: 20GB}", time.Now().UnixNano(), servers.Kafka(b).Addr())
	}
	b.Run("bus", func(b *testing.B) { logToSink(newLogProgramOn(b, bus(b), "")) })
	b.Run("bus-file", func(b *testing.B) {
		to := fmt.Sprintf("{type: file, path: %q}", filepath.Join(b.TempDir(), "rows.jsonl"))
		p := newLogProgramOn(b, bus(b), "destinations:\n  to: "+to+"\n")
		p.to = "to"
		logToSink(p)
	})
}

func logToSink(p *logProgram) {
	p.b.Helper()
	end(p.cmd, os.Interrupt)
	n, got := short(logRows/2), samples{}
	for range runs {
		p.load(n, 1000)
		p.drain(got, n)
	}
	got["peak-MB"] = []float64{slices.Max(got["peak-MB"])}
	got.report(p.b)
}

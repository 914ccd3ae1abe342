//go:build unix

package relay_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/relay"
)

// TestDoctorLeavesWhatHangs: a file that cannot be read to its end holds nobody up.
func TestDoctorLeavesWhatHangs(t *testing.T) {
	cfg := parsed(t, "sources: {a: {type: sqlite, path: app.db}}\nlisten: off\n")
	if err := os.Mkdir(cfg.Bus.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(cfg.Bus.Dir, "format")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	found := findings(relay.Doctor(t.Context(), cfg, relay.DoctorOptions{Timeout: 100 * time.Millisecond}))
	found.want(t, diagnosis.Problem, "bus", "time", "onewrite doctor --timeout 600ms")
	found.want(t, diagnosis.Problem, "source a", "file", "onewrite migrate")
	w, err := os.OpenFile(pipe, os.O_WRONLY, 0) // lets the reader go
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
}

package file_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/onewrite/onewrite/adapter/file"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestDiskFull runs itself in a mount namespace of its own, where it can have a
// small disk.
func TestDiskFull(t *testing.T) {
	servers.WithDisk(t, func(mount func(dir, size string)) {
		dir := t.TempDir()
		mount(dir, "256k")
		diskFull(t, dir)
	})
}

// diskFull: a full disk leaves no part of a Write behind, says so with the cure,
// and when there is room again the same sink goes on.
func diskFull(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	s := open(t, file.Config{Path: path})
	write(t, s, numbered(1, 10))
	must(t, os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 200<<10), 0o600))
	for range 3 {
		n, err := s.Write(context.Background(), numbered(11, 1000))
		if n != 0 || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "df -h") {
			t.Fatalf("Write to a full disk = %d, %v", n, err)
		}
		wantNumbered(t, 1, 10, path)
	}
	write(t, s, numbered(11, 12)) // there is room for little
	must(t, os.Remove(filepath.Join(dir, "ballast")))
	write(t, s, numbered(5, 1000))
	wantNumbered(t, 1, 1000, path)
}

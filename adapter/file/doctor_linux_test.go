package file

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestExamineDisk has a disk of its own, which is small, then read-only.
func TestExamineDisk(t *testing.T) {
	servers.WithDisk(t, func(mount func(dir, size string)) {
		dir := t.TempDir()
		mount(dir, "16m")
		path := filepath.Join(dir, "events.jsonl")
		s, err := Open(Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		wants(t, examined(t, path), diagnosis.Warning, "disk", "df -h "+dir)
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Skip("no mount:", err)
		}
		found := examined(t, path)
		wants(t, found, diagnosis.Problem, "file", "mount -o remount,rw")
		wants(t, found, diagnosis.Problem, "folder", "mount -o remount,rw")
		wants(t, examined(t, filepath.Join(dir, "a", "events.jsonl")), diagnosis.Problem, "folder", "mount -o remount,rw")
	})
}

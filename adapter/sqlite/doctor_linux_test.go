package sqlite

import (
	"os"
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
		path := filepath.Join(dir, "app.db")
		if _, err := Migrate(t.Context(), path, MigrateOptions{}); err != nil {
			t.Fatal(err)
		}
		wants(t, examined(t, path, MigrateOptions{}), diagnosis.Warning, "disk", "df -h "+dir)
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Skip("no mount:", err)
		}
		found := examined(t, path, MigrateOptions{})
		wants(t, found, diagnosis.Problem, "file", "mount -o remount,rw")
		wants(t, found, diagnosis.Problem, "folder", "mount -o remount,rw")
	})
}

// TestExamineRights is about a file of somebody else.
func TestExamineRights(t *testing.T) {
	dir, err := os.MkdirTemp("", "sqlite")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "app.db")
	if _, err := Migrate(t.Context(), path, MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o000); err != nil {
		t.Fatal(err)
	}
	servers.AsNobody(t, func() {
		wants(t, examined(t, path, MigrateOptions{}), diagnosis.Problem, "file", "setfacl -m u:")
	})
}

package disk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// TestSmallDisk has a disk of its own, which is small, then read-only.
func TestSmallDisk(t *testing.T) {
	servers.WithDisk(t, func(mount func(dir, size string)) {
		dir := t.TempDir()
		mount(dir, "16m")
		free, total, known := Room(dir)
		if !known || total != 16<<20 || free == 0 || free > total {
			t.Errorf("room: %d of %d, %v", free, total, known)
		}
		if got := Scarce(filepath.Join(dir, "to be", "made")); got != "16.8 MB of 16.8 MB free" {
			t.Errorf("scarce: %q", got)
		}
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{dir, file} {
			if why, _ := Unwritable(path); why != "" {
				t.Error(why)
			}
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Skip("no mount:", err)
		}
		for _, path := range []string{dir, file} {
			if why, cure := Unwritable(path); !strings.Contains(why, "read-only") || !strings.Contains(cure, "remount,rw") {
				t.Errorf("%s on a disk that is read-only: %q, %q", path, why, cure)
			}
			if why, _ := Unreadable(path); why != "" {
				t.Error(why)
			}
		}
		// 5 % of a large disk are scarce too.
		big := t.TempDir()
		mount(big, "64g")
		if got := Scarce(big); got != "" {
			t.Errorf("an empty disk of 64 GiB is scarce: %q", got)
		}
	})
}

func TestRights(t *testing.T) {
	dir, err := os.MkdirTemp("", "disk")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(file, nil, 0o000), os.Chmod(dir, 0o555)); err != nil {
		t.Fatal(err)
	}
	servers.AsNobody(t, func() {
		for path, ask := range map[string]func(string) (string, string){file: Unreadable, dir + "/./file": Unwritable, dir: Unwritable} {
			if why, cure := ask(path); !strings.Contains(why, "may not") || !strings.HasPrefix(cure, "setfacl -m u:") {
				t.Errorf("%s without rights: %q, %q", path, why, cure)
			}
		}
	})
	if why, cure := Unreadable(filepath.Join(dir, "gone")); why == "" || !strings.HasPrefix(cure, "ls -ld") {
		t.Errorf("what is not there: %q, %q", why, cure)
	}
}

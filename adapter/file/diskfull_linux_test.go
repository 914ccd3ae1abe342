package file_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/onewrite/onewrite/adapter/file"
)

const diskVariable = "ONEWRITE_FILE_TEST_DISK"

// TestDiskFull runs itself in a mount namespace of its own, where it can have a
// small disk.
func TestDiskFull(t *testing.T) {
	if dir := os.Getenv(diskVariable); dir != "" {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
			fmt.Println("no mount:", err)
			t.Skip(err)
		}
		diskFull(t, dir)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiskFull$", "-test.v")
	cmd.Env = append(os.Environ(), diskVariable+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || strings.Contains(string(out), "no mount:") {
		t.Skipf("no namespaces here: %v %s", err, out)
	}
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
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

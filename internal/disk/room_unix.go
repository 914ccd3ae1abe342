//go:build linux || darwin

package disk

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Room returns what a process without privileges may still write on the disk of
// path, and the size of the disk; known is false where that cannot be asked.
func Room(path string) (free, total uint64, known bool) {
	var s syscall.Statfs_t
	if syscall.Statfs(path, &s) != nil {
		return 0, 0, false
	}
	return uint64(s.Bavail) * uint64(s.Bsize), uint64(s.Blocks) * uint64(s.Bsize), true
}

// Writable returns why the user of this process may not write a file, or make
// files in a folder; nil if it may. Nothing is opened.
func Writable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	want := uint32(0x2) // W_OK
	if info.IsDir() {
		want |= 0x1 // X_OK
	}
	err = syscall.Access(path, want)
	switch {
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s is on a disk that is mounted read-only", path)
	case err != nil:
		return fmt.Errorf("user %d may not write %s (mode %s)", os.Getuid(), path, info.Mode().Perm())
	}
	return nil
}

// Readable returns why the user of this process may not read a file; nil if it may.
func Readable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if syscall.Access(path, 0x4) != nil { // R_OK
		return fmt.Errorf("user %d may not read %s (mode %s)", os.Getuid(), path, info.Mode().Perm())
	}
	return nil
}

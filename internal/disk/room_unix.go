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

// Unwritable says why the user of this process may not write a file, or make files
// in a folder, and the command that lets it; nothing if it may. Nothing is opened.
func Unwritable(path string) (why, cure string) {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error(), "ls -ld " + Quote(path)
	}
	want, rights := uint32(0x2), "rw" // W_OK
	if info.IsDir() {
		want, rights = 0x3, "rwx" // and X_OK
	}
	err = syscall.Access(path, want)
	switch {
	case errors.Is(err, syscall.EROFS):
		return path + " is on a disk that is mounted read-only", `mount -o remount,rw "$(findmnt -nro TARGET -T ` + Quote(path) + `)"`
	case err != nil:
		return fmt.Sprintf("user %d may not write %s (mode %s)", os.Getuid(), path, info.Mode().Perm()), fmt.Sprintf("setfacl -m u:%d:%s %s", os.Getuid(), rights, Quote(path))
	}
	return "", ""
}

// Unreadable says why the user of this process may not read a file, and the command
// that lets it; nothing if it may.
func Unreadable(path string) (why, cure string) {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error(), "ls -ld " + Quote(path)
	}
	if syscall.Access(path, 0x4) != nil { // R_OK
		return fmt.Sprintf("user %d may not read %s (mode %s)", os.Getuid(), path, info.Mode().Perm()), fmt.Sprintf("setfacl -m u:%d:r %s", os.Getuid(), Quote(path))
	}
	return "", ""
}

//go:build linux || darwin

package nats

import "syscall"

// freeBytes returns what a process without privileges may still write on the disk
// of dir; known is false where that cannot be asked.
func freeBytes(dir string) (free uint64, known bool) {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil {
		return 0, false
	}
	return uint64(s.Bavail) * uint64(s.Bsize), true
}

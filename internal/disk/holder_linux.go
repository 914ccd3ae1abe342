package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Holder returns the process that holds the lock of a lock file. It takes no lock
// itself, so that nobody who wants it at this moment is refused. Processes of other
// containers are not seen.
func Holder(path string) (pid int, held bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, false
	}
	// 3: FLOCK  ADVISORY  WRITE 22652 fe:00:10117365 0 EOF
	inode := ":" + strconv.FormatUint(st.Ino, 10)
	device := fmt.Sprintf("%02x:%02x", major(uint64(st.Dev)), minor(uint64(st.Dev)))
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], inode) {
			continue
		}
		pid, err := strconv.Atoi(f[4])
		if err == nil && (f[5] == device+inode || opened(pid, info)) {
			return pid, true
		}
	}
	return 0, false
}

func major(dev uint64) uint64 { return dev>>8&0xfff | dev>>32&^uint64(0xfff) }
func minor(dev uint64) uint64 { return dev&0xff | dev>>12&^uint64(0xff) }

// opened reports whether a process has a file open. Some file systems have other
// device numbers in the list of locks.
func opened(pid int, info os.FileInfo) bool {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if its, err := os.Stat(fd); err == nil && os.SameFile(its, info) {
			return true
		}
	}
	return false
}

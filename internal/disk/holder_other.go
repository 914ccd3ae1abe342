//go:build !linux

package disk

import (
	"os"

	"github.com/gofrs/flock"
)

// Holder reports whether the lock of a lock file is held; by whom is not known here.
// To find out it takes the lock, shared, for a moment.
func Holder(path string) (pid int, held bool) {
	if _, err := os.Stat(path); err != nil {
		return 0, false
	}
	l := flock.New(path, flock.SetFlag(os.O_RDONLY))
	ok, err := l.TryRLock()
	_ = l.Close()
	return 0, err == nil && !ok
}

//go:build !linux && !darwin

package disk

import (
	"fmt"
	"os"
)

// Room knows nothing here; a file that is written tells.
func Room(string) (free, total uint64, known bool) { return 0, 0, false }

// Writable returns why a file cannot be written; nil if it may be. Of a folder
// only its mode is known here.
func Writable(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o200 == 0 {
		err = fmt.Errorf("%s is read-only", path)
	}
	return err
}

// Readable returns why a file cannot be read; nil if it may be.
func Readable(path string) error {
	_, err := os.Stat(path)
	return err
}

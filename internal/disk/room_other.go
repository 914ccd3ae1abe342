//go:build !linux && !darwin

package disk

import "os"

// Room knows nothing here; a file that is written tells.
func Room(string) (free, total uint64, known bool) { return 0, 0, false }

// Unwritable says why a file cannot be written, and what lets it be; nothing if it
// may be. Of a folder only its mode is known here.
func Unwritable(path string) (why, cure string) {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error(), "dir " + Quote(path)
	}
	if info.Mode().Perm()&0o200 == 0 {
		return path + " is read-only", "attrib -r " + Quote(path)
	}
	return "", ""
}

// Unreadable says why a file cannot be read, and what lets it be; nothing if it may be.
func Unreadable(path string) (why, cure string) {
	if _, err := os.Stat(path); err != nil {
		return err.Error(), "dir " + Quote(path)
	}
	return "", ""
}

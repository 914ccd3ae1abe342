// Package disk tells of files and disks what can be told without changing them:
// the room that is left, whether a place may be written, who holds a lock.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Existing returns path, or the nearest folder above it that is there.
func Existing(path string) string {
	for {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path
		}
		up := filepath.Dir(path)
		if up == path {
			return path
		}
		path = up
	}
}

// Scarce says how little room is left where path is, or will be made: below 1 GB
// or 5 % of the disk. It returns nothing where there is enough or nothing is known.
func Scarce(path string) string {
	free, total, known := Room(Existing(path))
	if !known || !scarce(free, total) {
		return ""
	}
	return fmt.Sprintf("%s of %s free", Bytes(free), Bytes(total))
}

func scarce(free, total uint64) bool { return free < 1e9 || free < total/20 }

// Quote writes a path for a shell, as it is where nothing in it could be mistaken.
func Quote(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:,@%", r)
	}
	if path != "" && strings.IndexFunc(path, func(r rune) bool { return !plain(r) }) < 0 {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// Bytes writes a number of bytes for people.
func Bytes[N ~int64 | ~uint64](n N) string {
	v, units := float64(n), []string{"B", "kB", "MB", "GB", "TB"}
	for v >= 1000 && len(units) > 1 {
		v, units = v/1000, units[1:]
	}
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") + " " + units[0]
}

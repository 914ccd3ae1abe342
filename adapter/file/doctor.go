package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/disk"
)

// Examine looks at where a file destination writes, and says what it finds; the
// caller adds the Subject. It makes nothing and takes no lock.
func Examine(c Config) []diagnosis.Finding {
	e := &examiner{}
	if c.Path == "-" {
		e.Add(diagnosis.OK, "file", "", "standard output")
		return e.Found
	}
	path, err := filepath.Abs(c.Path)
	if err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		} else if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			path = filepath.Join(dir, filepath.Base(path))
		}
	}
	e.folder(filepath.Dir(path))
	e.file(path)
	return e.Found
}

type examiner struct{ diagnosis.List }

// folder looks at the folder, or at the one in which it will be made.
func (e *examiner) folder(dir string) {
	there := disk.Existing(dir)
	info, err := os.Stat(there)
	why, cure := disk.Unwritable(there)
	switch {
	case err == nil && !info.IsDir(), err != nil:
		e.Add(diagnosis.Problem, "folder", "set path to a file whose folders are folders", "%s is no folder", there)
		return
	case why != "":
		e.Add(diagnosis.Problem, "folder", cure, "%s", why)
	case there != dir:
		e.Add(diagnosis.OK, "folder", "", "%s is made when the first event comes", dir)
	default:
		e.Add(diagnosis.OK, "folder", "", "%s can be written", dir)
	}
	if short := disk.Scarce(there); short != "" {
		e.Add(diagnosis.Warning, "disk", "df -h "+disk.Quote(there), "%s: on a full disk events wait", short)
	} else if free, _, known := disk.Room(there); known {
		e.Add(diagnosis.OK, "disk", "", "%s free", disk.Bytes(free))
	}
}

// file looks at the file, if it is there.
func (e *examiner) file(path string) {
	pid, held := disk.Holder(path + ".lock")
	switch {
	case held && pid > 0:
		e.Add(diagnosis.OK, "writer", "", "onewrite runs: process %d writes this file", pid)
	case held:
		e.Add(diagnosis.OK, "writer", "", "onewrite runs and writes this file")
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Add(diagnosis.OK, "file", "", "%s is made when the first event comes", path)
		return
	case err != nil:
		return // the folder tells
	case !info.Mode().IsRegular():
		e.Add(diagnosis.Problem, "file", "set path to a file, or to - for standard output", "%s is no regular file", path)
		return
	}
	for _, look := range []func(string) (string, string){disk.Unwritable, disk.Unreadable} {
		if why, cure := look(path); why != "" {
			e.Add(diagnosis.Problem, "file", cure, "%s", why)
			return
		}
	}
	if !held && !e.ends(path, info.Size()) {
		return
	}
	e.Add(diagnosis.OK, "file", "", "%s, %s", path, disk.Bytes(info.Size()))
}

// ends looks at the end of a file that nobody writes: what is not a line of ours is
// not cut off.
func (e *examiner) ends(path string, size int64) bool {
	ours := true
	f, err := os.Open(path)
	if err == nil {
		defer f.Close() //nolint:errcheck // opened for reading
		var good int64
		if good, err = lineBefore(f, size); err == nil && good < size {
			ours, err = startsLine(f, good)
		}
	}
	if err != nil { // of the disk: it was there and readable a moment ago
		e.Add(diagnosis.Problem, "file", "dmesg | tail", "%s cannot be read: %v", path, err)
		return false
	}
	if !ours {
		e.Add(diagnosis.Problem, "file", "echo >> "+disk.Quote(path), "%s ends within a line that onewrite did not write, and nothing is added to that", path)
	}
	return ours
}

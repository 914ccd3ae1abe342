package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/parquet"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// acquire makes the path absolute, free of links, and ours. Two spellings of one
// file have to meet at the same lock.
func (s *Sink) acquire() error {
	path, err := filepath.Abs(s.path)
	if err != nil {
		return fmt.Errorf("file: %w; set path to an absolute path", err)
	}
	s.path = path
	if err := s.makeFolder(); err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		s.path = real
	} else if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		s.path = filepath.Join(dir, filepath.Base(path))
	}
	if st, err := os.Stat(s.path); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("file: %s is no regular file; set path to one, or to - for standard output", s.path)
	}
	s.lock = flock.New(s.path + ".lock")
	ok, err := s.lock.TryLock()
	if err != nil {
		return s.explain(err)
	}
	if !ok {
		return fmt.Errorf("file: %s is being written by another process: %w; stop it, or give each destination its own path", s.path, onewrite.ErrStandby)
	}
	return nil
}

// ready makes sure that file is what the path names, and ends where we left it.
func (s *Sink) ready() error {
	if s.file == nil {
		return s.reopen()
	}
	if s.doubt {
		if err := s.cut(); err != nil {
			return s.explain(err)
		}
	}
	st, err := os.Stat(s.path)
	switch {
	case err == nil && os.SameFile(st, s.info) && st.Size() == s.size:
		return nil
	case err == nil && os.SameFile(st, s.info):
		s.log.Warn("the file was changed by another program; going on at its end", "path", s.path, "left at", s.size, "found", st.Size())
	case err == nil || errors.Is(err, fs.ErrNotExist):
		s.log.Info("the file was moved or removed; going on in a new one", "path", s.path)
	default:
		return s.explain(err)
	}
	if err := s.drop(); err != nil {
		s.log.Warn("close the file", "path", s.path, "error", err)
	}
	return s.reopen()
}

// reopen opens the file, cuts off a torn line and reads the window.
func (s *Sink) reopen() error {
	if err := s.open(); err != nil {
		return err
	}
	if err := s.recover(); err != nil {
		return errors.Join(err, s.drop())
	}
	return nil
}

// open opens or creates the file. Its name is on stable storage afterwards.
func (s *Sink) open() error {
	if err := s.makeFolder(); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return s.explain(err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", s.path)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(s.path))
	}
	if err != nil {
		return errors.Join(s.explain(err), f.Close())
	}
	s.file, s.info, s.size, s.doubt = f, st, st.Size(), false
	return nil
}

// recover cuts off the line that a crash tore and fills the window from the end
// of the file, and of the one before if this one is short.
func (s *Sink) recover() error {
	if err := sabotage.At("file.recover"); err != nil {
		return err
	}
	found := s.size
	good, ids, err := tail(s.file, found)
	if err != nil {
		return s.explain(err)
	}
	if good < found {
		if ours, err := startsLine(s.file, good); err != nil {
			return s.explain(err)
		} else if !ours {
			return fmt.Errorf("file: %s ends within a line that onewrite did not write; move the file away, or end the line: echo >> %s", s.path, s.path)
		}
		s.log.Warn("cut off a torn line; its event was not confirmed and comes again", "path", s.path, "bytes", found-good)
	}
	s.size = good
	// What the window takes for written has to be on stable storage.
	if err := s.cut(); err != nil {
		return s.explain(err)
	}
	s.seen = window{}
	if s.rotate > 0 && good < windowBytes && len(ids) < windowLines {
		for _, id := range s.before(windowLines - len(ids)) {
			s.seen.add(id)
		}
	}
	for _, id := range ids {
		s.seen.add(id)
	}
	s.seen.trim()
	return nil
}

// cut takes the file back to its good bytes.
func (s *Sink) cut() error {
	if err := s.file.Truncate(s.size); err != nil {
		return err
	}
	if err := s.file.Sync(); err != nil {
		return err
	}
	s.doubt = false
	return nil
}

// retreat takes back what a failed Write left in the file. If that fails too,
// the next Write tries it again first.
func (s *Sink) retreat(cause error) error {
	if s.file == nil || !s.doubt {
		return cause
	}
	if err := s.cut(); err != nil {
		return fmt.Errorf("%w (and taking it back failed: %v)", cause, err)
	}
	return cause
}

// drop closes the file; what a failed Write left in it goes first.
func (s *Sink) drop() error {
	var err error
	if s.doubt {
		err = s.cut()
	}
	err = errors.Join(err, s.file.Close())
	s.file, s.info, s.doubt = nil, nil, false
	return err
}

const stamp = "20060102T150405Z"

// turnOver gives the file its final name and starts a new one. Whatever is in it
// is on stable storage already. A crash between the two steps is healed by open.
func (s *Sink) turnOver() error {
	if err := s.drop(); err != nil {
		return s.explain(err)
	}
	base := s.path + "." + time.Now().UTC().Format(stamp)
	name := ""
	for i := 1; ; i++ {
		name = fmt.Sprintf("%s-%04d", base, i)
		free, err := s.free(name)
		if err != nil {
			return s.explain(err)
		}
		if free {
			break
		}
	}
	if err := os.Rename(s.path, name); err != nil {
		return s.explain(err)
	}
	if err := sabotage.At("file.rotate"); err != nil {
		return err
	}
	s.log.Info("started a new file", "path", s.path, "old", name)
	s.archive()
	if err := s.open(); err != nil {
		return err
	}
	if s.size > 0 { // somebody else made it
		return s.recover()
	}
	return nil
}

// free reports whether a name is not taken, nor was before its file was replaced.
func (s *Sink) free(name string) (bool, error) {
	for _, ending := range []string{"", endings["gzip"], endings["zstd"], parquet.Ending} {
		if _, err := os.Lstat(name + ending); !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return true, nil
}

// before returns the last identities, at most n, of the files that were rotated last, in
// order. It is a help only: without it some events may be written twice.
func (s *Sink) before(n int) (ids []string) {
	whole, tables, _, err := s.rotated()
	if err != nil {
		return nil
	}
	names := append(whole, tables...)
	slices.Sort(names)
	names = slices.Compact(names) // one that a crash left twice, as lines and as Parquet
	size := int64(0)
	for i := len(names) - 1; i >= 0 && len(ids) < n && size < windowBytes; i-- {
		more, bytes := endOf(names[i])
		ids, size = append(more, ids...), size+bytes
	}
	return ids[max(0, len(ids)-n):]
}

// endOf returns the identities at the end of a file, and its size; none if it cannot be
// read. A file that is Parquet by now goes by the name that it had.
func endOf(name string) (ids []string, size int64) {
	f, err := os.Open(name)
	table := errors.Is(err, fs.ErrNotExist)
	if table {
		f, err = os.Open(name + parquet.Ending)
	}
	if err != nil {
		return nil, 0
	}
	defer f.Close() //nolint:errcheck // opened for reading
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, 0
	}
	if !table {
		if _, ids, err = tail(f, st.Size()); err != nil {
			return nil, 0
		}
		return ids, st.Size()
	}
	events, err := parquet.Names(f, st.Size(), windowLines)
	if err != nil {
		return nil, 0
	}
	for i := range events {
		ids = append(ids, identity("/"+events[i].Source, events[i].ID))
	}
	return ids, st.Size()
}

// makeFolder makes the folder of the file. The names of new folders are on
// stable storage afterwards, else a power failure could take the file with them.
func (s *Sink) makeFolder() error {
	var made []string
	dir := filepath.Dir(s.path)
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append(made, at)
	}
	if len(made) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return s.explain(err)
	}
	for _, at := range made {
		if err := syncFolder(filepath.Dir(at)); err != nil {
			return s.explain(err)
		}
	}
	return nil
}

// syncFolder makes names within a folder durable. Windows cannot, and does it by
// its journal.
func syncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// windowsDiskFull is ERROR_DISK_FULL, which no portable name stands for.
const windowsDiskFull = syscall.Errno(112)

// explain adds the cure to an error of the system, which names the path.
func (s *Sink) explain(err error) error {
	cure := "check the disk of " + filepath.Dir(s.path)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT),
		runtime.GOOS == "windows" && errors.Is(err, windowsDiskFull):
		cure = "free space there: df -h " + filepath.Dir(s.path)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		cure = "let the user that runs onewrite write in " + filepath.Dir(s.path) + ", or set another path"
	case errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR):
		cure = "set path to a file whose folders are folders"
	}
	return fmt.Errorf("file: %w; %s", err, cure)
}

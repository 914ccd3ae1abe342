package file

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Files that were rotated are compressed in the background, each in one step: into a
// file of another name, which is renamed when it is whole and on stable storage; then
// the original goes. What a crash leaves behind is done again. The newest of them stay as
// they are: the window of repeats reaches into them.

// partly is behind the name of a file that is being made.
const partly = ".part"

// endings of compressed files.
var endings = map[string]string{"gzip": ".gz", "zstd": ".zst"}

// archive starts to compress what was rotated; it does nothing while that is under way.
func (s *Sink) archive() {
	if s.ending == "" || !s.archiving.CompareAndSwap(false, true) {
		return
	}
	s.work.Go(func() {
		defer s.archiving.Store(false)
		if err := s.compressOld(); err != nil {
			s.log.Warn("a file that was rotated is not compressed; it is tried again at the next rotation", "path", s.path, "error", err)
		}
	})
}

// rotated returns the files that were rotated and are not compressed, oldest first, and
// those that a crash left half made.
func (s *Sink) rotated() (whole, half []string, err error) {
	entries, err := os.ReadDir(filepath.Dir(s.path))
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(s.path)+".")
		when, number, two := strings.Cut(rest, "-")
		if _, err := time.Parse(stamp, when); !ok || !two || err != nil {
			continue
		}
		name := filepath.Join(filepath.Dir(s.path), e.Name())
		switch {
		case strings.HasSuffix(number, partly):
			half = append(half, name)
		case number != "" && strings.Trim(number, "0123456789") == "":
			whole = append(whole, name)
		}
	}
	slices.Sort(whole)
	return whole, half, nil
}

func (s *Sink) compressOld() error {
	whole, half, err := s.rotated()
	if err != nil {
		return err
	}
	for _, name := range half {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	kept, size := len(whole), int64(0)
	for ; kept > 0 && (size < windowBytes || kept == len(whole)); kept-- {
		if st, err := os.Stat(whole[kept-1]); err == nil {
			size += st.Size()
		}
	}
	for _, name := range whole[:kept] {
		if s.stopping.Load() {
			return nil
		}
		if err := s.compress(name); err != nil {
			return s.explain(err)
		}
	}
	return nil
}

// compress replaces one file.
func (s *Sink) compress(name string) (err error) {
	in, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) { // somebody moved it away
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // opened for reading
	out, err := os.OpenFile(name+s.ending+partly, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.Close(), os.Remove(out.Name()))
		}
	}()
	var w io.WriteCloser = gzip.NewWriter(out)
	if s.ending == endings["zstd"] {
		if w, err = zstd.NewWriter(out, zstd.WithEncoderConcurrency(1)); err != nil {
			return err
		}
	}
	_, err = io.Copy(w, &untilStop{in, s})
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	if err = out.Sync(); err != nil {
		return err
	}
	if err = out.Close(); err != nil {
		return fmt.Errorf("close %s: %w", out.Name(), err)
	}
	if err := os.Rename(out.Name(), name+s.ending); err != nil {
		return err
	}
	if err := syncFolder(filepath.Dir(name)); err != nil {
		return err
	}
	return os.Remove(name)
}

// untilStop is a reader that ends with the sink.
type untilStop struct {
	io.Reader
	s *Sink
}

func (u *untilStop) Read(p []byte) (int, error) {
	if u.s.stopping.Load() {
		return 0, os.ErrClosed
	}
	return u.Reader.Read(p)
}

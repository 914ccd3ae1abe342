package file

import (
	"bufio"
	"bytes"
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

	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/parquet"
)

// Files that were rotated are compressed, or made into Parquet, in the background, each in
// one step: into a file of another name, which is renamed when it is whole and on stable
// storage; then the original goes. What a crash leaves behind is done again. The newest of
// those to be compressed stay as they are: the window of repeats reaches into them, as it
// does into Parquet.

// partly is behind the name of a file that is being made.
const partly = ".part"

// endings of compressed files of lines.
var endings = map[string]string{"gzip": ".gz", "zstd": ".zst"}

// archive starts to replace what was rotated, or has it looked at again if that is under
// way.
func (s *Sink) archive() {
	if s.ending == "" {
		return
	}
	s.asked.Store(true)
	if !s.archiving.CompareAndSwap(false, true) {
		return
	}
	s.work.Go(func() {
		for s.asked.Swap(false) {
			if err := s.archiveOld(); err != nil {
				s.log.Warn("a file that was rotated stays a file of lines; it is tried again at the next rotation", "path", s.path, "error", err)
			}
		}
		s.archiving.Store(false)
		if s.asked.Load() { // between the two lines above
			s.archive()
		}
	})
}

// rotated returns the files that were rotated and are lines still, oldest first; those that
// are Parquet, by the names that they had before; and those that a crash left half made.
func (s *Sink) rotated() (whole, tables, half []string, err error) {
	entries, err := os.ReadDir(filepath.Dir(s.path))
	if err != nil {
		return nil, nil, nil, err
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
		case isNumber(number):
			whole = append(whole, name)
		case isNumber(strings.TrimSuffix(number, parquet.Ending)):
			tables = append(tables, strings.TrimSuffix(name, parquet.Ending))
		}
	}
	slices.Sort(whole)
	return whole, tables, half, nil
}

func isNumber(text string) bool { return text != "" && strings.Trim(text, "0123456789") == "" }

func (s *Sink) archiveOld() error {
	whole, _, half, err := s.rotated()
	if err != nil {
		return err
	}
	for _, name := range half {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	kept, size := len(whole), int64(0)
	for ; s.ending != parquet.Ending && kept > 0 && (size < windowBytes || kept == len(whole)); kept-- {
		if st, err := os.Stat(whole[kept-1]); err == nil {
			size += st.Size()
		}
	}
	var foreign error
	for _, name := range whole[:kept] {
		if s.stopping.Load() {
			return nil
		}
		err := s.replace(name)
		if errors.Is(err, errForeign) { // the others are as good as they were
			foreign = errors.Join(foreign, err)
		} else if err != nil {
			return s.explain(err)
		}
	}
	return foreign
}

// replace puts what is made of one file in its place.
func (s *Sink) replace(name string) (err error) {
	in, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) { // somebody moved it away
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // opened for reading
	out, err := os.OpenFile(name+s.ending+partly, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.Close(), os.Remove(out.Name()))
		}
	}()
	if s.ending == parquet.Ending {
		err = s.tabulate(out, &untilStop{in, s}, name)
	} else {
		err = s.compress(out, &untilStop{in, s})
	}
	if err != nil {
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
	if err := in.Close(); err != nil { // some systems remove no file that is open
		return err
	}
	return os.Remove(name)
}

func (s *Sink) compress(out io.Writer, in io.Reader) (err error) {
	var w io.WriteCloser = gzip.NewWriter(out)
	if s.ending == endings["zstd"] {
		if w, err = zstd.NewWriter(out, zstd.WithEncoderConcurrency(1)); err != nil {
			return err
		}
	}
	_, err = io.Copy(w, in)
	return errors.Join(err, w.Close())
}

// errForeign: a file has lines that are no events.
var errForeign = errors.New("has a line that is no event")

// tabulate makes Parquet of lines. The original is removed afterwards, so all of it has to
// be there: one line that is no event, which somebody else has written, keeps it.
func (s *Sink) tabulate(out *os.File, in io.Reader, name string) error {
	w := parquet.NewWriter(out, s.compression)
	lines := bufio.NewReaderSize(in, 1<<20)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			break
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return errors.Join(err, w.Close())
		}
		e, err := cloudevents.ParseJSON(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			return errors.Join(fmt.Errorf("file: %s %w, number %d: %w; it stays as it is: take the line out, or move the file away", name, errForeign, n, err), w.Close())
		}
		if err := w.Write(&e, cloudevents.Textual(&e)); err != nil {
			return errors.Join(err, w.Close())
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	st, err := out.Stat()
	if err != nil {
		return err
	}
	if n, err := parquet.Rows(out, st.Size()); err != nil || n != w.Rows() {
		return fmt.Errorf("%s was made with %d events and has %d: %w", out.Name(), w.Rows(), n, err)
	}
	return nil
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

// Package file appends events to a file, one CloudEvents JSON object a line.
//
// # What is promised
//
// The lines are in the order of the writes, and on stable storage when Write
// returns. A Write that fails leaves no line behind: the file is cut back to
// where it was. A line that a crash tore is cut off when the file is opened.
//
// An event that is among the last 10,000 lines, or the last 16 MiB, of the file
// is not written a second time. So what is repeated after a crash appears once,
// as long as no more than that had been written without being confirmed. With
// rotation the window reaches back into the files before, which are not compressed as
// long as it does.
//
// # Parquet
//
// A Parquet file can be read only when its directory has been written, at its end. So
// events are lines first, which are durable one by one; a file that was rotated becomes
// Parquet, under another name until it is whole. Until the original is removed both are
// there.
//
// The file may be renamed, removed or truncated by others, as log rotation does:
// the next Write notices and goes on in a new file, or at the new end.
//
// One process writes a file. It holds a lock on a file of the same name with
// ".lock" behind it; the lock ends with the process, its file stays.
//
// # Standard output
//
// The path "-" writes to standard output, without lock, window or fsync. A
// reader that does not read holds Write up.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/gofrs/flock"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/parquet"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// chunk bounds the memory of a Write: so much is encoded before it is handed to
// the system.
const chunk = 4 << 20

// Config says where to write.
type Config struct {
	// Path is the file; missing folders are made (0755), the file gets mode 0600.
	// "-" is standard output.
	Path string
	// Rotate is the size in bytes beyond which a new file is started; 0 is never.
	// The old one is renamed to PATH.<UTC time>-<number>. A file is larger than
	// Rotate only if a single Write is.
	Rotate int64
	// Compression is how rotated files are compressed: "gzip", "zstd", or "none", which
	// is the default. PATH.<UTC time>-<number>.gz or .zst takes the place of each, but for
	// the newest, some 16 MiB. With Format "parquet" it is that of the columns: "zstd",
	// which is the default then, "gzip", "snappy", "lz4" or "none".
	Compression string
	// Format is "jsonl", which is the default, or "parquet": then
	// PATH.<UTC time>-<number>.parquet takes the place of each file that was rotated.
	Format string
	// Stdout is what "-" stands for; default os.Stdout. It is not closed.
	Stdout io.Writer
	// Logger is told of torn lines, rotation and files that went away; nil is
	// silent.
	Logger *slog.Logger
}

// Sink writes events to one file. Its methods may be called by several
// goroutines at once; they take turns.
type Sink struct {
	path   string
	rotate int64
	log    *slog.Logger
	stdout io.Writer
	lock   *flock.Flock

	turn    chan struct{} // holds one token; who has it owns all below
	file    *os.File      // nil after a rotation that failed half-way
	info    os.FileInfo   // what file is, to tell it from another of its name
	size    int64         // good bytes in file: whole lines, on stable storage
	doubt   bool          // there may be more in the file than size
	seen    window
	buf     []byte
	tornOut bool // standard output ends within a line

	closing sync.Once
	closed  bool // owned by turn

	ending      string // of what takes the place of rotated files; empty: they stay
	compression string // of Parquet
	work        sync.WaitGroup
	asked       atomic.Bool // there is something to replace
	archiving   atomic.Bool // some are being replaced
	stopping    atomic.Bool
}

// Open opens the file for appending, and reads its end.
//   - onewrite.ErrStandby: another process, or another Sink, writes this file
//   - any other error says why the file cannot be written, and the cure.
func Open(c Config) (*Sink, error) {
	s := &Sink{path: c.Path, rotate: c.Rotate, log: c.Logger, compression: c.Compression, turn: make(chan struct{}, 1)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.turn <- struct{}{}
	switch {
	case c.Path == "":
		return nil, errors.New("file: no path; set path, or - for standard output")
	case c.Rotate < 0:
		return nil, errors.New("file: rotate is negative; set 0 to turn rotation off")
	case c.Format != "" && c.Format != "jsonl" && c.Format != "parquet":
		return nil, fmt.Errorf("file: format %q is none of jsonl, parquet; set one of them", c.Format)
	case c.Format == "parquet" && (c.Path == "-" || c.Rotate == 0):
		return nil, errors.New("file: format parquet is made of files that are rotated; set rotate: 100MB, and a path that is a file")
	case c.Format == "parquet" && !parquet.Compression(c.Compression):
		return nil, fmt.Errorf("file: compression %q is none of none, gzip, zstd, snappy, lz4; set one of them", c.Compression)
	case c.Format != "parquet" && c.Compression != "" && c.Compression != "none" && endings[c.Compression] == "":
		return nil, fmt.Errorf("file: compression %q is none of none, gzip, zstd; set one of them", c.Compression)
	case c.Path == "-":
		if s.stdout = c.Stdout; s.stdout == nil {
			s.stdout = os.Stdout
		}
		return s, nil
	}
	if err := s.acquire(); err != nil {
		return nil, err
	}
	if err := s.reopen(); err != nil {
		return nil, errors.Join(err, s.lock.Close())
	}
	if s.ending = endings[c.Compression]; c.Format == "parquet" {
		s.ending = parquet.Ending
	}
	s.archive()
	return s, nil
}

// Write appends the events and waits until they are on stable storage. It is all
// or nothing: n is len(events) or 0, but for standard output, where n counts the
// whole lines that went out. An event that is already at the end of the file
// counts as written. Errors are about the file, never about an event.
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (n int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("file: %w", err)
	}
	select {
	case <-s.turn:
	case <-ctx.Done():
		return 0, fmt.Errorf("file: %w", ctx.Err())
	}
	defer func() { s.turn <- struct{}{} }()
	if s.closed {
		return 0, fmt.Errorf("file: %w", os.ErrClosed)
	}
	if len(events) == 0 {
		return 0, nil
	}
	if s.stdout != nil {
		return s.print(events)
	}
	if err := s.ready(); err != nil {
		return 0, err
	}
	if err := s.append(events); err != nil {
		return 0, err
	}
	if err := sabotage.At("file.written"); err != nil {
		return 0, err
	}
	return len(events), nil
}

// append writes and syncs the lines of the events that are not there yet.
func (s *Sink) append(events []onewrite.Event) (err error) {
	end, added := s.size, 0
	defer func() {
		if err != nil {
			s.seen.undo(added)
			err = s.retreat(err)
		}
	}()
	s.buf = s.buf[:0]
	for i := range events {
		e := &events[i]
		if !s.seen.add(identity("/"+e.Source, e.ID)) && sabotage.Bug != "no-window" {
			continue
		}
		added++
		s.buf = append(cloudevents.AppendJSON(s.buf, e), '\n')
		if len(s.buf) < chunk && i < len(events)-1 {
			continue
		}
		if end, err = s.flush(end); err != nil {
			return err
		}
	}
	if end, err = s.flush(end); err != nil {
		return err
	}
	if end > s.size {
		if err := s.file.Sync(); err != nil {
			return s.explain(err)
		}
	}
	s.size, s.doubt = end, false
	s.seen.trim()
	return nil
}

// flush hands the buffer to the system at the offset end and returns the next.
func (s *Sink) flush(end int64) (int64, error) {
	if len(s.buf) == 0 {
		return end, nil
	}
	if s.rotate > 0 && end == s.size && end > 0 && end+int64(len(s.buf)) > s.rotate {
		if err := s.turnOver(); err != nil {
			return end, err
		}
		end = 0
	}
	s.doubt = true
	n, err := s.file.WriteAt(s.buf, end)
	if err == nil {
		err = sabotage.At("file.write")
	}
	if err != nil {
		return end, s.explain(err)
	}
	if cap(s.buf) > 2*chunk {
		s.buf = nil // one huge event must not hold its memory for ever
	}
	s.buf = s.buf[:0]
	return end + int64(n), nil
}

// print writes the lines to standard output.
func (s *Sink) print(events []onewrite.Event) (n int, err error) {
	s.buf = s.buf[:0]
	if s.tornOut {
		s.buf = append(s.buf, '\n')
	}
	for n < len(events) {
		ends := make([]int, 0, len(events)-n)
		for len(s.buf) < chunk && n+len(ends) < len(events) {
			s.buf = append(cloudevents.AppendJSON(s.buf, &events[n+len(ends)]), '\n')
			ends = append(ends, len(s.buf))
		}
		wrote, err := s.stdout.Write(s.buf)
		whole := 0
		for whole < len(ends) && ends[whole] <= wrote {
			whole++
		}
		n += whole
		if whole < len(ends) {
			if err == nil {
				err = io.ErrShortWrite
			}
			s.tornOut = wrote > 0 && s.buf[wrote-1] != '\n' || wrote == 0 && s.tornOut
			return n, fmt.Errorf("file: standard output: %w; check the program that reads it", err)
		}
		s.tornOut = false
		s.buf = s.buf[:0]
	}
	return n, nil
}

// Close closes the file and gives up the lock; it waits for a Write under way.
// It may be called again.
func (s *Sink) Close() (err error) {
	s.closing.Do(func() {
		<-s.turn
		defer func() { s.turn <- struct{}{} }()
		s.closed = true
		s.stopping.Store(true)
		s.work.Wait()
		if s.file != nil {
			err = s.drop()
		}
		if s.lock != nil {
			err = errors.Join(err, s.lock.Close())
		}
		s.seen, s.buf = window{}, nil
	})
	return err
}

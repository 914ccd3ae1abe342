package storm

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/onewrite/onewrite/torture/history"
)

// archive is the file destination. It is read as it grows, so that seen tells
// the truth, and recorded at the end.
type archive struct {
	book
	s    *storm
	file string
	mu   sync.Mutex // guards the place below
	at   int64
}

func newArchive(s *storm) *archive {
	file, _ := filepath.Abs(s.path("events.jsonl"))
	return &archive{s: s, file: file}
}

func (a *archive) name() string { return "archive" }

// kind: the numbers of SQLite are given in the order of commits, PostgreSQL's are
// not.
func (a *archive) kind() history.Kind { return history.Kind{Ordered: !a.s.db.postgres()} }
func (a *archive) yaml() string       { return "{type: file, path: " + strconv.Quote(a.file) + "}" }
func (a *archive) close() error       { return nil }

// line is an event in the file.
type line struct {
	ID       string          `json:"id"`
	Sequence string          `json:"sequence"`
	Data     json.RawMessage `json:"data"`
}

// lines calls do for each whole line from an offset on and returns the offset
// after the last.
func (a *archive) lines(from int64, do func(*line) error) (int64, error) {
	f, err := os.Open(a.file)
	if errors.Is(err, os.ErrNotExist) {
		return from, nil
	}
	if err != nil {
		return from, err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return from, err
	}
	r := bufio.NewReaderSize(f, 1<<20)
	for {
		text, err := r.ReadBytes('\n')
		if err == io.EOF { // a torn line is cut when onewrite comes back
			return from, nil
		}
		if err != nil {
			return from, err
		}
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			return from, err
		}
		from += int64(len(text))
		if err := do(&l); err != nil {
			return from, err
		}
	}
}

// catchUp reads what was added.
func (a *archive) catchUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at, _ = a.lines(a.at, func(l *line) error { a.note(l.ID); return nil })
}

func (a *archive) seen() uint64 {
	a.catchUp()
	return a.book.seen()
}

func (a *archive) has(id string) bool {
	if a.book.has(id) {
		return true
	}
	a.catchUp()
	return a.book.has(id)
}

func (a *archive) settle(dir string) error {
	out, err := history.Create(dir, history.ArrivedFile, a.name())
	if err != nil {
		return err
	}
	_, err = a.lines(0, func(l *line) error {
		e, err := arrival(a.s, l.ID, l.Data)
		if err != nil {
			return err
		}
		if e.Pos, err = strconv.ParseUint(l.Sequence, 10, 64); err != nil {
			return err
		}
		out.Add(&e)
		return nil
	})
	return errors.Join(err, out.Close())
}

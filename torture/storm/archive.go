package storm

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
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
	at   line
	also func(*entry) // sees each entry as it is read
}

// line is a place in the files, which are numbered in the order of their rotation.
type line struct {
	file   int
	offset int64
}

func newArchive(s *storm) *archive {
	file, _ := filepath.Abs(s.path("events.jsonl"))
	return &archive{s: s, file: file}
}

func (a *archive) name() string { return "archive" }

// kind: the numbers of SQLite are given in the order of commits, PostgreSQL's are
// not. A write that fails is tried again while other keys go on.
func (a *archive) kind() history.Kind {
	return history.Kind{Ordered: !a.s.db.postgres() && a.s.Point == "", Distinct: true}
}

func (a *archive) yaml() string {
	rotate := ""
	if a.s.Point != "" {
		rotate = ", rotate: 100KiB"
	}
	return "{type: file, path: " + strconv.Quote(a.file) + rotate + ", retry: {first: 20ms, max: 1s}}"
}

func (a *archive) close() error { return nil }

// entry is an event in a file.
type entry struct {
	ID           string          `json:"id"`
	Sequence     string          `json:"sequence"`
	Data         json.RawMessage `json:"data"`
	Topic        string          `json:"topic"`
	Partitionkey string          `json:"partitionkey"`
}

// lines calls do for each whole line from a place on and returns the place after
// the last.
func (a *archive) lines(from line, do func(*entry) error) (line, error) {
	for {
		old, err := filepath.Glob(a.file + ".2*")
		if err != nil {
			return from, err
		}
		slices.Sort(old)
		if from.file < len(old) {
			if from.offset, err = linesOf(old[from.file], from.offset, do); err != nil {
				return from, err
			}
			from = line{from.file + 1, 0}
			continue
		}
		to, err := linesOf(a.file, from.offset, do)
		now, _ := filepath.Glob(a.file + ".2*")
		if from.offset = to; len(now) == len(old) || err != nil { // else what was read may have been renamed just before
			return from, err
		}
	}
}

func linesOf(file string, from int64, do func(*entry) error) (int64, error) {
	f, err := os.Open(file)
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
		var e entry
		if err := json.Unmarshal(text, &e); err != nil {
			return from, err
		}
		from += int64(len(text))
		if err := do(&e); err != nil {
			return from, err
		}
	}
}

// catchUp reads what was added.
func (a *archive) catchUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at, _ = a.lines(a.at, func(e *entry) error {
		if a.note(e.ID); a.also != nil {
			a.also(e)
		}
		return nil
	})
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
	_, err = a.lines(line{}, func(e *entry) error {
		got, err := a.s.arrival(0, e.ID, e.Data)
		if err != nil {
			return err
		}
		if got.Pos, err = strconv.ParseUint(e.Sequence, 10, 64); err != nil {
			return err
		}
		out.Add(&got)
		return nil
	})
	return errors.Join(err, out.Close())
}

package storm

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/onewrite/onewrite/torture/history"
)

// rowFile is the file destination that gets the row changes.
type rowFile struct {
	*archive
	mu    sync.Mutex
	marks map[int64]bool // of rows.mark, that have come
}

func newRowFile(s *storm) *rowFile {
	a := newArchive(s)
	a.file = s.path("rows.jsonl")
	f := &rowFile{archive: a, marks: map[int64]bool{}}
	a.also = f.look
	return f
}

func (f *rowFile) name() string { return "rows" }

// kind: the file refuses repeats.
func (f *rowFile) kind() history.Kind { return history.Kind{Rows: true, Distinct: true} }

func (f *rowFile) yaml() string {
	return "{type: file, path: " + strconv.Quote(f.file) + ", retry: {first: 20ms, max: 1s}}"
}

// image is what an event says of a change.
type image struct {
	Before, After json.RawMessage
	Op            string
	Source        struct {
		TxID      *uint64 `json:"txId"`
		Unchanged []string
		Reread    bool
	}
}

func (f *rowFile) look(e *entry) {
	if e.Topic != "rows.mark" {
		return
	}
	var d image
	if json.Unmarshal(e.Data, &d) == nil {
		f.mu.Lock()
		f.marks[version(d.After)] = true
		f.mu.Unlock()
	}
}

// came reports whether a row of rows.mark has.
func (f *rowFile) came(v int64) bool {
	f.catchUp()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.marks[v]
}

// has: of the sentinels one is for this sink.
func (f *rowFile) has(string) bool { return f.came(f.s.endMark.Load()) }

func version(row json.RawMessage) int64 {
	var r struct{ V int64 }
	_ = json.Unmarshal(row, &r)
	return r.V
}

func (f *rowFile) settle(dir string) error {
	out, err := history.Create(dir, history.ChangeFile, f.name())
	if err != nil {
		return err
	}
	_, err = f.lines(line{}, func(e *entry) error {
		list, err := f.changes(e)
		for i := range list {
			out.Add(&list[i])
		}
		return err
	})
	return errors.Join(err, out.Close())
}

// changes reads an event. In a table without a key the number of a row is its key, and
// a change of it is another row.
func (f *rowFile) changes(e *entry) ([]history.Change, error) {
	var d image
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return nil, fmt.Errorf("event %s: %w", e.ID, err)
	}
	c := history.Change{Table: e.Topic, Key: e.Partitionkey, Op: d.Op, V: uint64(version(d.After)), ID: e.ID, Hash: digest(append([]byte(e.Topic+e.Partitionkey), e.Data...)), Row: d.After, Unchanged: d.Source.Unchanged}
	if d.Source.TxID != nil {
		c.Tx = *d.Source.TxID
	}
	for label, is := range map[string]bool{"unchanged_toast": len(c.Unchanged) > 0, "reread": d.Source.Reread, "snapshot": c.Op == "r"} {
		if is {
			f.s.labels.hit(label)
		}
	}
	if c.Op == "d" || c.Op == "t" {
		c.V, c.Row = 0, nil
	}
	if c.Key != c.Table || c.Op == "t" {
		return []history.Change{c}, nil
	}
	key := func(row json.RawMessage) string { return fmt.Sprintf(`{"v":%d}`, version(row)) }
	list := []history.Change{c}
	switch list[0].Key = key(d.After); c.Op {
	case "d":
		list[0].Key = key(d.Before)
	case "u":
		list[0].Op = "c"
		gone := history.Change{Table: c.Table, Key: key(d.Before), Op: "d", Tx: c.Tx, ID: c.ID, Part: 1, Hash: c.Hash}
		list = append([]history.Change{gone}, list...)
	}
	return list, nil
}

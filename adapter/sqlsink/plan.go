package sqlsink

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// stepKind is what a statement does.
type stepKind byte

const (
	stepUpsert   stepKind = iota // INSERT, or UPDATE of the row with this key
	stepMerge                    // one row: UPDATE by key, and INSERT if there was none
	stepAppend                   // INSERT into a table without key
	stepReplace                  // one row: UPDATE of a row that looks like before, else INSERT
	stepDelete                   // by key
	stepErase                    // one row that looks like before
	stepTruncate                 // one table, or several
)

// step is a run of events that one statement applies.
type step struct {
	kind   stepKind
	table  *table
	cols   []*column // of rows; the key's in a delete
	key    []*column
	where  []*column // of before
	rows   [][]any   // bound values
	before []any     // of stepReplace and stepErase
	also   []*table  // further tables to truncate
	events []int     // the event of each row, or of each table
	bytes  int
}

// Bounds of one statement.
const (
	mostRows  = 1000
	mostBytes = 4 << 20
)

// planner turns changes into steps.
type planner struct {
	s      *Sink
	single bool // one event a step
	steps  []*step
	keys   map[string]struct{} // of the last step, if it is an upsert
}

// plan makes the steps; bad is the event that an error is about.
func (s *Sink) plan(changes []change, single bool) (steps []*step, bad int, err error) {
	p := &planner{s: s, single: single, keys: map[string]struct{}{}}
	for i := range changes {
		if err := p.add(i, &changes[i]); err != nil {
			return nil, i, err
		}
	}
	return p.steps, 0, nil
}

func (p *planner) add(i int, c *change) error {
	t := p.s.known[c.table]
	if t == nil {
		return nil // there is none, and nothing to delete in it
	}
	switch c.op {
	case opGone:
		return nil
	case 't':
		if !p.s.cfg.IgnoreTruncate {
			p.truncate(i, t)
		}
		return nil
	case 'd':
		return p.delete(i, c, t)
	case 'm':
		return p.message(i, c, t)
	}
	row := withKey(c.row, c.key)
	if len(c.key) == 0 {
		if c.op != 'u' {
			return p.put(i, stepAppend, t, row, nil, nil)
		}
		return p.put(i, stepReplace, t, row, nil, c.before)
	}
	key, err := p.columns(t, c.key)
	if err != nil {
		return err
	}
	kind := stepUpsert
	if !t.arbiter(key) || c.part || t.guarded && c.op == 'u' {
		// An INSERT would be refused for what the event does not carry, though the
		// row is there; or, in MySQL, change the row that another unique index names.
		kind = stepMerge
	}
	return p.put(i, kind, t, row, key, nil)
}

// withKey adds the columns of the key that a row lacks.
func withKey(row, key []field) []field {
	for _, k := range key {
		has := false
		for _, f := range row {
			if has = f.name == k.name; has {
				break
			}
		}
		if !has {
			row = append(row[:len(row):len(row)], k)
		}
	}
	return row
}

func (p *planner) columns(t *table, fields []field) ([]*column, error) {
	cols := make([]*column, len(fields))
	for i, f := range fields {
		if cols[i] = t.find(f.name, p.s.db.folds()); cols[i] == nil {
			return nil, refuse(fmt.Sprintf("the table %s has no column %q", t.name, f.name), "add it, or write columns: follow in the destination")
		}
	}
	return cols, nil
}

// put adds a row to the last step if it is of the same kind, else to a new one.
func (p *planner) put(i int, kind stepKind, t *table, row []field, key []*column, before []field) error {
	cols := make([]*column, 0, len(row))
	values := make([]any, 0, len(row))
	size := 0
	for _, f := range row {
		c := t.find(f.name, p.s.db.folds())
		if c == nil {
			return refuse(fmt.Sprintf("the table %s has no column %q", t.name, f.name), "add it, or write columns: follow in the destination")
		}
		if c.generated {
			continue
		}
		v, err := p.s.db.bind(c, f.cell)
		if err != nil {
			return refuse(fmt.Sprintf("column %s of %s: %v", f.name, t.name, err), "ALTER TABLE "+t.quoted+" so that "+c.quoted+" takes what the source's column takes")
		}
		cols, values, size = append(cols, c), append(values, v), size+len(f.cell.text)+8
	}
	st := p.open(i, kind, t, cols, key, size)
	if kind == stepUpsert && !p.fresh(key, cols, values) {
		st = p.fork(st, i)
		p.fresh(key, cols, values)
	}
	if kind == stepReplace {
		if err := p.like(st, t, before); err != nil {
			return err
		}
	}
	st.rows, st.events, st.bytes = append(st.rows, values), append(st.events, i), st.bytes+size
	return nil
}

// like adds the values by which a row of a table without key is found.
func (p *planner) like(st *step, t *table, before []field) error {
	for _, f := range before {
		c := t.find(f.name, p.s.db.folds())
		if c == nil || c.generated {
			continue
		}
		v, err := p.s.db.bind(c, f.cell)
		if err != nil {
			return refuse(fmt.Sprintf("column %s of %s: %v", f.name, t.name, err), "change the column's type")
		}
		st.where, st.before = append(st.where, c), append(st.before, v)
	}
	if len(st.where) == 0 {
		return refuse("the table "+t.name.String()+" has none of the columns of the old row", "give the table in the source a primary key")
	}
	return nil
}

// fresh notes a key of an upsert; false: a row of the step has it already, and one
// statement cannot write a row twice.
func (p *planner) fresh(key, cols []*column, values []any) bool {
	var b strings.Builder
	for _, k := range key {
		for i, c := range cols {
			if c == k {
				fmt.Fprintf(&b, "%v\x00", plain(values[i]))
			}
		}
	}
	if _, there := p.keys[b.String()]; there {
		return false
	}
	p.keys[b.String()] = struct{}{}
	return true
}

// plain is a bound value as text that tells it from others.
func plain(v any) any {
	switch v := v.(type) {
	case *string:
		if v == nil {
			return "\x01"
		}
		return *v
	case []byte:
		return string(v)
	}
	return v
}

// many reports which kinds take several rows a statement.
func many(kind stepKind) bool { return kind == stepUpsert || kind == stepAppend || kind == stepDelete }

// open returns the step that a row goes to.
func (p *planner) open(i int, kind stepKind, t *table, cols, key []*column, size int) *step {
	if n := len(p.steps); n > 0 && !p.single && many(kind) {
		last := p.steps[n-1]
		if last.kind == kind && last.table == t && len(last.rows) < mostRows && last.bytes+size < mostBytes && same(last.cols, cols) && same(last.key, key) {
			return last
		}
	}
	st := &step{kind: kind, table: t, cols: cols, key: key}
	p.steps = append(p.steps, st)
	clear(p.keys)
	return st
}

// fork begins a new step of the same kind.
func (p *planner) fork(of *step, i int) *step {
	st := &step{kind: of.kind, table: of.table, cols: of.cols, key: of.key}
	p.steps = append(p.steps, st)
	clear(p.keys)
	return st
}

func same(a, b []*column) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func (p *planner) delete(i int, c *change, t *table) error {
	if len(c.key) > 0 {
		key, err := p.columns(t, c.key)
		if err != nil {
			return err
		}
		return p.put(i, stepDelete, t, c.key, key, nil)
	}
	st := &step{kind: stepErase, table: t, events: []int{i}}
	if err := p.like(st, t, c.before); err != nil {
		return err
	}
	p.steps = append(p.steps, st)
	return nil
}

// truncate adds a table to the TRUNCATE just before, since tables that refer to each
// other can only be emptied together.
func (p *planner) truncate(i int, t *table) {
	if n := len(p.steps); n > 0 && !p.single && p.steps[n-1].kind == stepTruncate {
		last := p.steps[n-1]
		last.also, last.events = append(last.also, t), append(last.events, i)
		return
	}
	p.steps = append(p.steps, &step{kind: stepTruncate, table: t, events: []int{i}})
}

// message adds a message: the columns that the table of messages has.
func (p *planner) message(i int, c *change, t *table) error {
	var key []*column
	var row []field
	for _, f := range c.key {
		if col := t.find(f.name, p.s.db.folds()); col != nil {
			key = append(key, col)
		}
	}
	if len(key) == 0 || key[0].name != "id" {
		return refuse("the table of messages "+t.name.String()+" has no column id", "add it, or name another table in messages:")
	}
	if !t.arbiter(key) {
		key = key[:1]
	}
	bytesToo := t.find("data_bytes", false) != nil
	for _, f := range c.row {
		if col := t.find(f.name, false); col == nil {
			continue
		} else if f.name == "data" && !bytesToo {
			f.cell = c.whole(col)
		}
		row = append(row, f)
	}
	kind := stepUpsert
	if !t.arbiter(key) {
		kind = stepMerge
	}
	return p.put(i, kind, t, row, key, nil)
}

// whole is the data of a message for a table with one column for it, which may be of
// bytes.
func (c *change) whole(col *column) cell {
	var data, raw cell
	for _, f := range c.row {
		switch f.name {
		case "data":
			data = f.cell
		case "data_bytes":
			raw = f.cell
		}
	}
	switch {
	case col.kind != kindBinary && raw.kind == cellText: // a server that takes it may have it
		b, _ := base64.StdEncoding.DecodeString(raw.text)
		return text(string(b))
	case col.kind == kindBinary && data.kind == cellText:
		return cell{cellText, base64Of([]byte(data.text))}
	case col.kind == kindBinary:
		return raw
	}
	return data
}

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

package sqlsink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// columnKind is what a value must be made into for a column.
type columnKind byte

const (
	kindText    columnKind = iota // the value's text
	kindInteger                   // MySQL and SQLite: bound as a number
	kindDecimal                   // exact, with digits behind the point
	kindFloat
	kindBinary // the bytes that base64 stands for
	kindJSON   // JSON text
	kindArray  // PostgreSQL's literal
	kindTime   // MySQL: a date with a time
	kindAny    // SQLite: whatever comes
)

// column is a column of a table that exists.
type column struct {
	name      string
	quoted    string
	typ       string // as the server may be told to cast to it
	kind      columnKind
	elem      columnKind // of an array
	delim     byte       // between an array's elements
	generated bool       // the server makes its values

	insertOnly   bool // PostgreSQL: GENERATED ALWAYS AS IDENTITY, which no UPDATE may set
	incomparable bool // PostgreSQL: values are compared as text
}

// table is a table that exists.
type table struct {
	name    name
	quoted  string
	columns []*column
	primary []string   // the columns of the primary key
	unique  [][]string // columns of the unique indexes that an upsert can name, sorted
	read    time.Time  // when it was looked at
	guarded bool       // more than one unique index, so that MySQL's upsert could hit another row
}

// find returns a column; where case does not matter to the server, in any case.
func (t *table) find(name string, fold bool) *column {
	for _, c := range t.columns {
		if c.name == name {
			return c
		}
	}
	if fold {
		for _, c := range t.columns {
			if strings.EqualFold(c.name, name) {
				return c
			}
		}
	}
	return nil
}

// arbiter reports whether exactly these columns are unique.
func (t *table) arbiter(key []*column) bool {
	names := make([]string, len(key))
	for i, c := range key {
		names[i] = c.name
	}
	slices.Sort(names)
	return slices.ContainsFunc(t.unique, func(u []string) bool { return slices.Equal(u, names) })
}

// shape is what the JSON of all values of a column in one write is; a new column
// gets its type from it.
type shape struct {
	field              string
	integer, real      bool
	wide, huge         bool // integers that no float holds, that no 64 bits hold
	boolean, text, doc bool
	key                bool
	first              int // the first event that has it
}

func (s *shape) add(c cell) {
	switch c.kind {
	case cellNumber:
		if !isInteger(c.text) {
			s.real = true
			return
		}
		s.integer = true
		n, err := strconv.ParseInt(c.text, 10, 64)
		s.huge = s.huge || err != nil
		s.wide = s.wide || err != nil || !exact(n)
	case cellBool:
		s.boolean = true
	case cellText:
		s.text = true
	case cellJSON:
		s.doc = true
	}
}

// exact reports whether a float holds an integer.
func exact(n int64) bool { return n >= -1<<53 && n <= 1<<53 }

// form is what the shape comes to: nothing but one kind of JSON, or text.
func (s *shape) form() columnForm {
	number := s.integer || s.real
	switch {
	case number && !s.boolean && !s.text && !s.doc:
		switch {
		case s.real && s.wide:
			return formNumber
		case s.real:
			return formReal
		case s.huge:
			return formHuge
		}
		return formInteger
	case s.boolean && !number && !s.text && !s.doc:
		return formBoolean
	case s.doc && !number && !s.text && !s.boolean:
		return formDocument
	}
	return formText
}

// columnForm is the form of a new column.
type columnForm byte

const (
	formText columnForm = iota
	formInteger
	formHuge // integers of more than 64 bits
	formReal
	formNumber // reals and integers that no float holds
	formBoolean
	formDocument
)

// want is what a write asks of a table.
type want struct {
	name   name
	first  int // the first event that needs it
	rows   bool
	key    []string
	shapes []*shape
	byName map[string]*shape
}

func (w *want) see(i int, fields []field, key bool) {
	for _, f := range fields {
		s := w.byName[f.name]
		if s == nil {
			s = &shape{field: f.name, first: i}
			w.byName[f.name] = s
			w.shapes = append(w.shapes, s)
		}
		s.key = s.key || key
		s.add(f.cell)
	}
}

// wants gathers what changes ask of their tables, in the order of their first use.
func wants(changes []change) []*want {
	var list []*want
	byName := map[name]*want{}
	for i := range changes {
		c := &changes[i]
		w := byName[c.table]
		if w == nil {
			w = &want{name: c.table, first: i, byName: map[string]*shape{}}
			byName[c.table] = w
			list = append(list, w)
		}
		if c.op == 't' || c.op == 'd' || c.op == 'm' {
			w.rows = w.rows || c.op == 'm'
			continue
		}
		if !w.rows {
			w.rows, w.first = true, i
			for _, f := range c.key {
				w.key = append(w.key, f.name)
			}
		}
		w.see(i, c.key, true)
		w.see(i, c.row, false)
	}
	return list
}

// ensure makes sure that each table of the changes is known, exists and has the
// columns. bad is the event that an error is about.
func (s *Sink) ensure(ctx context.Context, changes []change, p *placed) (bad int, err error) {
	checked := p == nil
	alter := func(sql string) error {
		if !checked { // a sink that was replaced must change nothing
			if err := s.db.owns(ctx, p.destination, p.owner); err != nil {
				return err
			}
			checked = true
		}
		return s.db.alter(ctx, sql)
	}
	for _, w := range wants(changes) {
		if bad, err := s.ensureOne(ctx, w, alter); err != nil {
			return bad, err
		}
	}
	return 0, nil
}

func (s *Sink) ensureOne(ctx context.Context, w *want, alter func(sql string) error) (bad int, err error) {
	t, err := s.lookup(ctx, w.name)
	if err != nil {
		return w.first, err
	}
	message := w.name == s.messages
	if t == nil && !w.rows {
		if s.cfg.NoCreate {
			err = refuse("there is no table "+w.name.String(), "make it, or write create: true in the destination")
		}
		return w.first, err // there is nothing to delete
	}
	if t == nil {
		sql := s.db.createMessages(w.name)
		if !message {
			if sql, bad, err = s.db.create(w); err != nil {
				return bad, err
			}
		}
		if s.cfg.NoCreate {
			if w.name.schema != "" {
				sql = s.db.home(w.name.schema) + " " + sql
			}
			return w.first, refuse("there is no table "+w.name.String(), sql)
		}
		if err := alter(sql); err != nil {
			return w.first, s.refusedAlter(err, w.name, sql)
		}
		s.log.Info("made a table", "table", w.name.String())
		if t, err = s.lookup(ctx, w.name); err != nil || t == nil {
			return w.first, fmt.Errorf("sqlsink: the table %s that was made cannot be found: %w", w.name, errors.Join(err, errVanished))
		}
	}
	if message {
		return 0, nil
	}
	return s.follow(ctx, w, t, alter)
}

// follow adds the columns that a table lacks.
func (s *Sink) follow(ctx context.Context, w *want, t *table, alter func(sql string) error) (bad int, err error) {
	added := false
	for _, sh := range w.shapes {
		if t.find(sh.field, s.db.folds()) != nil {
			continue
		}
		sql, err := s.db.addColumn(t, sh)
		if err != nil {
			return sh.first, err
		}
		if s.cfg.Fixed {
			return sh.first, refuse(fmt.Sprintf("the table %s has no column %q", w.name, sh.field), sql)
		}
		if err := alter(sql); err != nil {
			return sh.first, s.refusedAlter(err, w.name, sql)
		}
		s.log.Info("added a column", "table", w.name.String(), "column", sh.field)
		added = true
	}
	if !added {
		return 0, nil
	}
	delete(s.known, w.name)
	_, err = s.lookup(ctx, w.name)
	return w.first, err
}

var errVanished = errors.New("it is not there")

func (s *Sink) refusedAlter(err error, n name, sql string) error {
	if isRefused(err) {
		return err
	}
	if cure := s.db.around(err, n); cure != "" {
		sql = cure
	}
	return judged(s.db.judge(err), err, sql)
}

// named is the name of a table; of none, nothing.
func (t *table) named() name {
	if t == nil {
		return name{}
	}
	return t.name
}

// believed is how long a table is taken to be as it was read. A missing column shows by
// itself, the new type of one may not.
const believed = 10 * time.Second

// lookup returns a table from memory or the server; nil: there is none.
func (s *Sink) lookup(ctx context.Context, n name) (*table, error) {
	if t := s.known[n]; t != nil && time.Since(t.read) < believed {
		return t, nil
	}
	delete(s.known, n)
	t, err := s.db.describe(ctx, n)
	if err != nil {
		return nil, judged(s.db.judge(err), fmt.Errorf("sqlsink: look at the table %s: %w", n, err), s.db.cure(err, &table{name: n, quoted: n.String()}))
	}
	if t != nil {
		t.read, s.known[n] = time.Now(), t
	}
	return t, nil
}

package history

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
)

// Change is a change of one row: as a trigger of the table noted it in the
// transaction that made it, or as it arrived.
type Change struct {
	Table string `json:"t"`
	Key   string `json:"k,omitempty"`  // of the row; of a TRUNCATE none
	Op    string `json:"op"`           // c, u, d or t; r: of a snapshot
	V     uint64 `json:"v,omitempty"`  // which no other change of this row has; a d or t has none
	Tx    uint64 `json:"tx,omitempty"` // none: of a snapshot

	At   int64 `json:"at,omitempty"`   // of one that was noted: when, on the clock of the run
	Lost bool  `json:"lost,omitempty"` // the database went back to before it

	ID        string          `json:"id,omitempty"`   // and the rest: of one that arrived
	Part      int             `json:"part,omitempty"` // above 0: of an event that is there already, as more than one change
	Hash      uint64          `json:"h,omitempty"`    // of all that came
	Row       json.RawMessage `json:"row,omitempty"`
	Unchanged []string        `json:"same,omitempty"` // columns that the log did not carry
}

// Row is a row as the database has it at the end.
type Row struct {
	Table string          `json:"t"`
	Key   string          `json:"k"`
	Row   json.RawMessage `json:"row"`
}

// margin is how much longer than the statement that changes a row its transaction
// may be open.
const margin = int64(3e9)

// version is a change that was noted.
type version struct {
	op byte
	v  uint64
	tx uint64
	at int64
}

// rowOf is what is known of one row.
type rowOf struct {
	list []version
	next int             // of list: what comes next
	copy json.RawMessage // what a consumer has who applies what arrives
	off  bool            // the last that arrived is of a history that was lost
	lost map[uint64]bool
	gone map[uint64]bool // transactions of lost deletes
	is   json.RawMessage
}

// replay applies what arrived to a copy.
type replay struct {
	*checker
	sink   string
	tables map[string]map[string]*rowOf
	seen   map[uint64]uint64 // hash of what came by id
	broken map[string]bool   // rows of which something was said
}

// rows judges a sink that gets row changes: in order for each row, nothing missing
// but what a gap covers, nothing that was rolled back, and a copy to which all of it
// was applied is the table, cell by cell.
func (c *checker) rows(dir, sink string) error {
	r := &replay{checker: c, sink: sink, tables: map[string]map[string]*rowOf{}, seen: map[uint64]uint64{}, broken: map[string]bool{}}
	err := each(dir, ShadowFile, "", r.noted)
	if err == nil {
		err = each(dir, ChangeFile, sink, r.arrived)
	}
	if err == nil {
		err = each(dir, RowFile, "", func(row *Row) { r.row(row.Table, row.Key).is = row.Row })
	}
	if err != nil {
		return err
	}
	for _, table := range sorted(r.tables) {
		for _, key := range sorted(r.tables[table]) {
			r.end(table, key, r.tables[table][key])
		}
	}
	if again, most := c.Repeats[sink], int(c.slack(1<<62)); again > most {
		c.fail("I7", "%s got %d changes again, the faults allow %d", sink, again, most)
	}
	return nil
}

func (r *replay) row(table, key string) *rowOf {
	if r.tables[table] == nil {
		r.tables[table] = map[string]*rowOf{}
	}
	if r.tables[table][key] == nil {
		r.tables[table][key] = &rowOf{}
	}
	return r.tables[table][key]
}

// noted takes a change as it was committed; a TRUNCATE is one of every row.
func (r *replay) noted(n *Change) {
	v := version{op: n.Op[0], v: n.V, tx: n.Tx, at: n.At}
	switch {
	case n.Lost:
		row := r.row(n.Table, n.Key)
		if row.lost == nil {
			row.lost, row.gone = map[uint64]bool{}, map[uint64]bool{}
		}
		if n.Op == "d" {
			row.gone[n.Tx] = true
		} else {
			row.lost[n.V] = true
		}
	case n.Op == "t":
		for _, row := range r.tables[n.Table] {
			row.list = append(row.list, v)
		}
	default:
		row := r.row(n.Table, n.Key)
		row.list = append(row.list, v)
	}
}

// breaks says once of a row what is wrong with it.
func (r *replay) breaks(law, table, key, format string, args ...any) {
	if name := law + table + key; !r.broken[name] {
		r.broken[name] = true
		r.fail(law, "%s, %s %s: %s", r.sink, table, key, fmt.Sprintf(format, args...))
	}
}

// covered reports whether a change was made before the capturing began, or where a gap
// was told.
func (r *replay) covered(v *version) bool {
	if v.at < r.run.Captured {
		return true
	}
	for _, h := range r.holes {
		if v.at > h.At-margin && v.at < h.Healed {
			return true
		}
	}
	return false
}

// arrived applies what came.
func (r *replay) arrived(e *Change) {
	r.Arrived[r.sink]++
	id := digest(e.ID) + uint64(e.Part)
	if was, again := r.seen[id]; again {
		r.Repeats[r.sink]++
		if was != e.Hash {
			r.breaks("I7", e.Table, e.Key, "%s came with other bytes", e.ID)
		}
		return
	}
	r.seen[id] = e.Hash
	if e.Part == 0 {
		r.Changes++
	}
	if e.Op == "t" {
		for key, row := range r.tables[e.Table] {
			if e.Tx == 0 { // a snapshot empties the copy of a table without a key, and tells all rows
				row.copy = nil
			} else if i := row.find(e); i >= 0 {
				r.moveTo(e, key, row, i)
				row.copy = nil
			}
		}
		return
	}
	row := r.row(e.Table, e.Key)
	i := row.find(e)
	switch {
	case e.Op != "d" && row.lost[e.V]:
		row.off = true
	case e.Op == "d" && row.gone[e.Tx]:
		row.off = true
		delete(row.gone, e.Tx)
	case i >= 0:
		r.moveTo(e, e.Key, row, i)
	case e.Op == "d":
		r.breaks("I2", e.Table, e.Key, "was deleted (%s), which nobody did by then", e.ID)
		return
	default:
		r.breaks("I2", e.Table, e.Key, "version %d (%s) was never committed", e.V, e.ID)
		return
	}
	if e.Op == "d" {
		row.copy = nil
		return
	}
	row.copy = merge(row.copy, e)
}

// find returns which of the noted changes arrived, -1 for none.
func (row *rowOf) find(e *Change) int {
	match := func(v *version) bool {
		if e.Op == "d" || e.Op == "t" {
			return v.op == e.Op[0] && v.tx == e.Tx
		}
		return v.v == e.V && v.op != 't' && v.op != 'd' && (e.Op == "r" || v.op == e.Op[0] && v.tx == e.Tx)
	}
	for i := row.next; i < len(row.list); i++ {
		if match(&row.list[i]) {
			return i
		}
	}
	for i := row.next - 1; i >= 0; i-- { // it comes too late
		if match(&row.list[i]) {
			return i
		}
	}
	return -1
}

// moveTo takes change i of a row as arrived.
func (r *replay) moveTo(e *Change, key string, row *rowOf, i int) {
	row.off = false
	if i < row.next && !(e.Op == "r" && i == row.next-1) {
		r.breaks("I3", e.Table, key, "%s of version %d in transaction %d came after what is newer", e.Op, e.V, e.Tx)
		return
	}
	for ; row.next < i; row.next++ {
		if v := &row.list[row.next]; !r.covered(v) {
			r.breaks("I1", e.Table, key, "%c of version %d in transaction %d did not come before what is newer", v.op, v.v, v.tx)
		}
	}
	row.next = i + 1
}

// merge returns the row that came, with what the log did not carry from the copy.
func merge(old json.RawMessage, e *Change) json.RawMessage {
	if len(e.Unchanged) == 0 || e.Op == "r" {
		return e.Row
	}
	was, now := cells(old), cells(e.Row)
	for _, name := range e.Unchanged {
		if v, ok := was[name]; ok {
			now[name] = v
		}
	}
	out, _ := json.Marshal(now) // it was JSON before
	return out
}

func cells(row json.RawMessage) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	_ = json.Unmarshal(row, &out)
	return out
}

// end compares a row with what the database has.
func (r *replay) end(table, key string, row *rowOf) {
	excused := row.off
	for i := row.next; i < len(row.list); i++ {
		v := &row.list[i]
		if !r.covered(v) {
			r.breaks("I1", table, key, "%c of version %d in transaction %d never came", v.op, v.v, v.tx)
		}
		excused = excused || v.op == 'd' || v.op == 't'
	}
	switch {
	case row.is == nil && row.copy != nil && !excused: // deleted in a gap it may stay
		r.breaks("I8", table, key, "the copy has it, the table has not")
	case row.is != nil && row.copy == nil:
		r.breaks("I1", table, key, "the table has it, the copy has not")
	case row.is != nil && row.copy != nil:
		r.compare(table, key, cells(row.copy), cells(row.is))
	}
	if row.is != nil {
		r.Rows++
	}
}

func (r *replay) compare(table, key string, have, want map[string]json.RawMessage) {
	for _, name := range sorted(want) {
		got, ok := have[name]
		switch {
		case !ok:
			r.breaks("I8", table, key, "the copy has no column %s", name)
		case !same(got, want[name]):
			r.breaks("I8", table, key, "%s is %.200s in the copy, %.200s in the table", name, got, want[name])
		}
	}
	for _, name := range sorted(have) {
		if _, ok := want[name]; !ok {
			r.breaks("I8", table, key, "the copy has a column %s, the table has none", name)
		}
	}
}

// same compares two values of JSON; numbers by their digits.
func same(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	for text, to := range map[*json.RawMessage]*any{&a: &x, &b: &y} {
		d := json.NewDecoder(bytes.NewReader(*text))
		d.UseNumber()
		if d.Decode(to) != nil {
			return false
		}
	}
	return reflect.DeepEqual(x, y)
}

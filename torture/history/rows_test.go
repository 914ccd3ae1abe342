package history

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// diary is a run of row changes in memory, to be spoiled and then written.
type diary struct {
	run     Run
	shadow  []Change
	arrived []Change
	rows    []Row
	faults  []Fault
	samples []Sample
}

func (d *diary) note(op, key string, v, tx uint64, at int64) {
	d.shadow = append(d.shadow, Change{Table: "rows.a", Key: key, Op: op, V: v, Tx: tx, At: at * second})
}

func (d *diary) come(op, key string, v, tx uint64, row string, same ...string) {
	c := Change{Table: "rows.a", Key: key, Op: op, V: v, Tx: tx, ID: fmt.Sprint("id-", len(d.arrived)), Hash: tx<<8 + v, Unchanged: same}
	if row != "" {
		c.Row = json.RawMessage(row)
	}
	d.arrived = append(d.arrived, c)
}

func (d *diary) is(key, row string) {
	d.rows = append(d.rows, Row{Table: "rows.a", Key: key, Row: json.RawMessage(row)})
}

// keepDiary makes a good run: a row that was there before, one that comes and changes,
// one that goes, a TRUNCATE, a gap with a snapshot after it, and a history that was lost.
func keepDiary() *diary {
	d := &diary{run: Run{Captured: 10 * second, Quiet: 1, Sinks: map[string]Kind{"rows": {Rows: true, Distinct: true}}}}
	d.note("c", "1", 1, 1, 1) // before the capturing
	d.note("u", "1", 11, 2, 2)
	d.come("r", "1", 11, 0, `{"id":1,"v":11,"big":"large"}`)
	d.note("u", "1", 2, 20, 20)
	d.come("u", "1", 2, 20, `{"id":1,"v":2}`, "big")
	d.note("c", "2", 3, 21, 21)
	d.come("c", "2", 3, 21, `{"id":2,"v":3,"big":null}`)
	d.note("d", "2", 0, 22, 22)
	d.come("d", "2", 0, 22, "")
	d.note("c", "2", 4, 22, 22)
	d.come("c", "2", 4, 22, `{"id":2,"v":4,"big":"b"}`)
	d.note("c", "3", 5, 23, 23)
	d.come("c", "3", 5, 23, `{"id":3,"v":5,"big":"b"}`)
	d.shadow = append(d.shadow, Change{Table: "rows.b", Key: "1", Op: "c", V: 1, Tx: 24, At: 24 * second}, Change{Table: "rows.b", Op: "t", Tx: 25, At: 25 * second})
	d.arrived = append(d.arrived, Change{Table: "rows.b", Key: "1", Op: "c", V: 1, Tx: 24, ID: "b1", Row: json.RawMessage(`{"v":1}`)}, Change{Table: "rows.b", Op: "t", Tx: 25, ID: "b2"})
	d.faults = []Fault{{Kind: "slot", Proof: "gone", At: 40 * second, Until: 41 * second, Healed: 60 * second, Most: -1}}
	d.note("u", "1", 6, 50, 50) // in the gap
	d.note("d", "3", 0, 51, 51)
	d.come("r", "1", 6, 0, `{"id":1,"v":6,"big":"large"}`)
	d.shadow = append(d.shadow, Change{Table: "rows.a", Key: "4", Op: "c", V: 7, Tx: 70, Lost: true}, Change{Table: "rows.a", Key: "2", Op: "u", V: 9, Tx: 71, Lost: true})
	d.come("c", "4", 7, 70, `{"id":4,"v":7}`)
	d.come("u", "2", 9, 71, `{"id":2,"v":9}`, "big")
	d.come("r", "2", 4, 0, `{"id":2,"v":4,"big":"b"}`)
	d.note("u", "1", 8, 80, 80)
	d.come("u", "1", 8, 80, `{"id":1,"v":8,"n":1.50}`, "big")
	d.shadow = append(d.shadow, Change{Table: "rows.c", Key: "1", Op: "c", V: 1, Tx: 81, At: 81 * second})
	d.arrived = append(d.arrived, Change{Table: "rows.c", Key: "1", Op: "c", V: 1, Tx: 81, ID: "c1", Row: json.RawMessage(`{"v":1}`)}, Change{Table: "rows.c", Op: "t", ID: "c2"},
		Change{Table: "rows.c", Key: "1", Op: "r", V: 1, ID: "c3", Row: json.RawMessage(`{"v":1}`)}) // it has no key
	d.is("1", `{"v":8,"id":1,"big":"large","n":1.50}`)
	d.is("2", `{"id":2,"v":4,"big":"b"}`)
	d.rows = append(d.rows, Row{Table: "rows.c", Key: "1", Row: json.RawMessage(`{"v":1}`)})
	n := uint64(len(d.arrived))
	d.samples = []Sample{{Up: true, State: "ok", Events: n, Sinks: map[string]SinkState{"rows": {State: "ok", Delivered: n, Position: n, Seen: n}}}}
	return d
}

func (d *diary) judge(t *testing.T) *Report {
	t.Helper()
	dir := t.TempDir()
	write := func(file, sink string, records func(*Log)) {
		l, err := Create(dir, file, sink)
		if err != nil {
			t.Fatal(err)
		}
		records(l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(ShadowFile, "", func(l *Log) { all(l, d.shadow) })
	write(ChangeFile, "rows", func(l *Log) { all(l, d.arrived) })
	write(RowFile, "", func(l *Log) { all(l, d.rows) })
	write(FaultFile, "", func(l *Log) { all(l, d.faults) })
	write(SampleFile, "", func(l *Log) { all(l, d.samples) })
	if err := d.run.Save(dir); err != nil {
		t.Fatal(err)
	}
	r, err := Check(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// drop takes away what came of a transaction.
func (d *diary) drop(tx uint64) {
	d.arrived = slices.DeleteFunc(d.arrived, func(c Change) bool { return c.Tx == tx })
}

func (d *diary) of(tx uint64) *Change {
	return &d.arrived[slices.IndexFunc(d.arrived, func(c Change) bool { return c.Tx == tx })]
}

// A good run passes, and every single mutation of it is named by its law.
func TestRowLaws(t *testing.T) {
	if r := keepDiary().judge(t); !r.OK() || r.Changes != 16 || r.Rows != 3 || !strings.Contains(r.String(), "16 changes of rows") {
		t.Fatalf("a good run: %v", r)
	}
	for _, c := range []struct {
		law, what string
		do        func(*diary)
	}{
		{"I1", "an insert never came", func(d *diary) { d.drop(21) }},
		{"I1", "a delete never came", func(d *diary) { d.shadow[4].Tx = 99 }},
		{"I1", "the last update never came", func(d *diary) { d.drop(80) }},
		{"I1", "a row was never told", func(d *diary) { d.is("9", `{"v":1}`) }},
		{"I1", "a row without a key was not told again", func(d *diary) { d.arrived = d.arrived[:len(d.arrived)-1] }},
		{"I1", "what the gap does not cover", func(d *diary) { d.faults[0].Healed = 0 }},
		{"I1", "what was before the capturing", func(d *diary) { d.run.Captured = 0 }},
		{"I1", "the TRUNCATE passed a row", func(d *diary) { d.arrived[6], d.arrived[7] = d.arrived[7], d.arrived[6] }},
		{"I2", "a version of nobody", func(d *diary) { d.come("u", "1", 1000, 1000, `{"v":1000}`) }},
		{"I2", "a row of nobody", func(d *diary) { d.come("c", "77", 2, 20, `{"v":2}`) }},
		{"I2", "a delete of nobody", func(d *diary) { d.come("d", "1", 0, 1000, "") }},
		{"I2", "an insert that was an update", func(d *diary) { d.of(20).Op = "c" }},
		{"I3", "an older version came later", func(d *diary) { d.come("r", "1", 6, 0, `{"id":1,"v":6}`) }},
		{"I3", "two changed places", func(d *diary) { d.arrived[3], d.arrived[4] = d.arrived[4], d.arrived[3] }},
		{"I7", "it came again", func(d *diary) { d.arrived = append(d.arrived, d.arrived[1]) }},
		{"I7", "it came again with other bytes", func(d *diary) {
			c := d.arrived[1]
			c.Hash++
			d.faults[0].Again = 5
			d.arrived = append(d.arrived, c)
		}},
		{"I8", "another cell", func(d *diary) { d.of(80).Row = json.RawMessage(`{"id":1,"v":8,"n":1.5}`) }},
		{"I8", "a large value became null", func(d *diary) {
			c := d.of(80)
			c.Unchanged, c.Row = nil, json.RawMessage(`{"id":1,"v":8,"n":1.50,"big":null}`)
		}},
		{"I8", "a column is missing", func(d *diary) { d.of(80).Unchanged = nil }},
		{"I8", "a column too many", func(d *diary) { d.rows[1].Row = json.RawMessage(`{"id":2,"v":4}`) }},
		{"I8", "a row that nobody deleted", func(d *diary) { d.rows = d.rows[:1] }},
		{"I9", "too much of the log is kept", func(d *diary) { d.run.Budget.Retained, d.samples[0].Retained = 5, 6 }},
		{"I13", "more than arrived", func(d *diary) { d.samples[0].Events++ }},
	} {
		t.Run(c.law+" "+c.what, func(t *testing.T) {
			d := keepDiary()
			c.do(d)
			if r := d.judge(t); r.Laws[c.law] == 0 {
				t.Errorf("not named: %v", r)
			}
		})
	}
}

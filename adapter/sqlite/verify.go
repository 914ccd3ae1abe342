package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/onewrite/onewrite"
)

// verify compares the captured tables with their triggers; it runs at the start
// and when the schema has changed. Rebuilding a table drops its triggers
// without a word, and what is changed then is in no outbox.
func (s *Source) verify(ctx context.Context) error {
	objects, err := readObjects(ctx, s.reader)
	if err != nil {
		return fmt.Errorf("sqlite: %s: %w", s.path, err)
	}
	captured, err := s.captured(ctx)
	if err != nil {
		return err
	}
	var drifted, told []string
	for _, old := range captured {
		t, found, err := describe(ctx, s.reader, old.Table)
		if err != nil && !found {
			return err
		}
		same := err == nil
		if !same || !found {
			t = &table{layout: old} // its names are enough to look for its triggers
		}
		renamed, gap := t.misplaced(objects, found)
		if gap != nil {
			return gap
		}
		if renamed != "" {
			told = append(told, fmt.Sprintf("the table %s was renamed to %s, and its changes go on arriving as those of %s", old.Table, renamed, old.Table))
			continue
		}
		for _, tr := range t.triggers() {
			same = same && objects[tr.name].sql == tr.sql
		}
		if !same {
			drifted = append(drifted, old.Table)
		}
	}
	if len(drifted) > 0 {
		told = append(told, "the columns or keys of "+strings.Join(drifted, ", ")+" were changed, and the triggers still capture what was there before")
	}
	if len(told) > 0 && s.gap == nil {
		s.gap = &onewrite.Gap{
			Reason: strings.Join(told, "; "), From: "the change of the table", To: "the next onewrite migrate",
			Cure: "correct tables: if a name has changed, and run: onewrite migrate",
		}
	}
	return nil
}

// misplaced looks at where the triggers of a table are, and returns a gap if its
// changes are lost or told in a wrong order; or the name it has got, if that is
// all.
func (t *table) misplaced(objects map[string]object, found bool) (renamed string, gap *onewrite.Gap) {
	lost, late := false, false
	for _, suffix := range triggerSuffixes {
		ob := objects[triggerName(t.Table, suffix)]
		if ob.sql != "" && !strings.EqualFold(ob.table, t.Table) {
			renamed = ob.table
		}
		lost = lost || ob.sql == ""
		late = late || ob.rowid < t.newest
	}
	const again = "onewrite migrate, which captures it again and writes a snapshot of its rows"
	gap = &onewrite.Gap{From: "the change of the table", To: "now", Cure: again}
	switch {
	case !found && renamed != "" && !lost:
		return renamed, nil
	case !found:
		gap.Reason = fmt.Sprintf("the table %s was dropped, and no event says that its rows are gone", t.Table)
		gap.Cure = "make the table again or take it out of tables:, and run: onewrite migrate"
	case renamed != "":
		gap.Reason = fmt.Sprintf("the table %s was renamed to %s and its triggers with it; another %s was made, and its changes are not captured", t.Table, renamed, t.Table)
	case lost:
		gap.Reason = fmt.Sprintf("the table %s has lost the triggers that capture its row changes, as happens when a table is dropped and made anew", t.Table)
	case late:
		gap.Reason = fmt.Sprintf("the table %s has a trigger that writes it again and is newer than those that capture its row changes; SQLite fires it first, so changes that it makes are captured before their cause", t.Table)
	default:
		return "", nil
	}
	return "", gap
}

// captured returns the layouts that triggers write with.
func (s *Source) captured(ctx context.Context) ([]layout, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT spec FROM onewrite_layout WHERE "current" ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("sqlite: %s: %w", s.path, err)
	}
	defer rows.Close()
	var out []layout
	for rows.Next() {
		var spec string
		var l layout
		if err := rows.Scan(&spec); err != nil {
			return nil, fmt.Errorf("sqlite: %s: %w", s.path, err)
		}
		if err := json.Unmarshal([]byte(spec), &l); err != nil {
			return nil, fmt.Errorf("sqlite: %s: onewrite_layout: %w; restore the file from a backup", s.path, err)
		}
		out = append(out, l)
	}
	return out, rows.Err()
}

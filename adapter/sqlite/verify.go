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
	var drifted []string
	for _, old := range captured {
		t, found, err := describe(ctx, s.reader, old.Table)
		if err != nil && !found {
			return err
		}
		if !found {
			continue // dropped: it has no more rows to change; or renamed: its triggers went with it
		}
		same := err == nil
		if err != nil {
			t = &table{layout: old} // its names are enough to look for its triggers
		}
		for _, suffix := range triggerSuffixes {
			if objects[triggerName(old.Table, suffix)].sql == "" {
				return &onewrite.Gap{
					Reason: fmt.Sprintf("the table %s has lost the triggers that capture its row changes, as happens when a table is dropped and made anew", old.Table),
					From:   "the change of the table", To: "now", Cure: "onewrite migrate, which captures it again and writes a snapshot of its rows",
				}
			}
		}
		if same {
			for _, tr := range t.triggers() {
				same = same && objects[tr.name].sql == tr.sql
			}
		}
		if !same {
			drifted = append(drifted, old.Table)
		}
	}
	if len(drifted) > 0 && s.gap == nil {
		s.gap = &onewrite.Gap{
			Reason: "the columns or keys of " + strings.Join(drifted, ", ") + " were changed, and the triggers still capture what was there before",
			From:   "the change of the table", To: "the next onewrite migrate", Cure: "onewrite migrate",
		}
	}
	return nil
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

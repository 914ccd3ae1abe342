package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// columns looks at the rules of columns:, which are to hide something.
func (e *examiner) columns(ctx context.Context, tx pgx.Tx) error {
	c := e.o.Capture
	if len(c.Tables) == 0 || len(c.Masks) == 0 {
		return nil
	}
	want, err := findTables(ctx, tx, c.Tables)
	if err != nil {
		return nil //nolint:nilerr // the check of the tables says it
	}
	found := len(e.found)
	faults, err := c.faults(ctx, tx.Conn(), want)
	if err != nil {
		return err
	}
	for _, f := range faults {
		if f.idle {
			e.warn("columns", f.cure, "%s", f.text)
		} else {
			e.problem("columns", f.cure, "%s", f.text)
		}
	}
	if e.objects["captured"] {
		list, err := registry(ctx, e.conn, c.Source)
		if err != nil {
			return err
		}
		for _, t := range list {
			if t.columns != t.own(c.Masks) {
				e.problem("columns", "onewrite migrate", "columns: has other rules for %s than onewrite migrate was run with last; restart onewrite run after it", t.name)
			}
		}
	}
	if len(e.found) == found {
		e.ok("columns", "%d rules, and each finds its columns", len(c.Masks))
	}
	return nil
}

package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
)

// policies looks at captured tables whose rows are hidden from a role that makes snapshots.
// A policy that shows them all would not do: a snapshot asks for all rows, or none.
func (e *examiner) policies(ctx context.Context, tx pgx.Tx) error {
	want, err := findTables(ctx, tx, e.o.Capture.Tables)
	if err != nil {
		return nil //nolint:nilerr // the check of the tables says it
	}
	idle, err := e.o.Capture.leftOut(ctx, tx)
	if err != nil {
		return err
	}
	for _, f := range idle {
		e.warn("tables", f.cure, "%s", f.text)
	}
	roles := []string{e.role}
	if e.o.RelayRole != "" && e.o.RelayRole != e.role {
		roles = append(roles, e.o.RelayRole)
	}
	for _, role := range roles {
		var names []string
		for _, f := range want {
			var hidden bool
			if err := tx.QueryRow(ctx, `SELECT c.relrowsecurity AND NOT (r.rolsuper OR r.rolbypassrls) AND (c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE'))
				FROM pg_class c, pg_roles r WHERE c.oid = $1 AND r.rolname = $2`, f.rel, role).Scan(&hidden); err != nil {
				return err
			}
			if hidden {
				names = append(names, f.full())
			}
		}
		if len(names) > 0 {
			e.problem("tables", "ALTER ROLE "+quoted(role)+" BYPASSRLS; -- as superuser", "row-level security hides rows of %s from role %s: there can be no snapshot of it", strings.Join(names, ", "), role)
		}
	}
	return nil
}

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

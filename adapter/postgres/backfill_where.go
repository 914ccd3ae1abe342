package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// within is what rows are selected from, of a table and what follows its name in FROM:
// those that meet the condition of the snapshot, which may name the table and its
// columns.
func (c captured) within(from string) string {
	if c.where == "" {
		return from
	}
	_, name, _ := strings.Cut(c.name, ".")
	return fmt.Sprintf("(SELECT * FROM %s) AS %s WHERE (%s\n)", from, pgx.Identifier{name}.Sanitize(), c.where)
}

// refused is explain for a statement that has the condition in it.
func (c captured) refused(err error) error {
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "42501" && pe.Routine == "check_enable_rls" { // the session asks for all rows or none
		return &serverError{says: "row-level security would hide rows of " + c.name + " from this role", cure: asSuperuser + "ALTER ROLE " + markRole + " BYPASSRLS"}
	}
	if errors.As(err, &pe) && notUTF8(pe.Code) {
		return &serverError{says: fmt.Sprintf("a row of %s has text that is not UTF-8: %s (SQLSTATE %s)", c.name, pe.Message, pe.Code), cure: "mend its rows, or take it out of tables: and run onewrite migrate"}
	}
	if c.where == "" || !errors.As(err, &pe) || strings.HasPrefix(pe.Code, "57") || strings.HasPrefix(pe.Code, "08") {
		return explain(err)
	}
	return fmt.Errorf("%s (SQLSTATE %s); its condition is: %s; correct it in snapshot_where: and run onewrite migrate, or ask with another: onewrite migrate --snapshot %s --where 'true'", pe.Message, pe.Code, c.where, c.name)
}

// conditions looks up the conditions of the snapshots of tables, and has the server
// understand them.
func (c Capture) conditions(ctx context.Context, tx pgx.Tx, want []found) error {
	where := map[string]string{}
	for pattern, condition := range c.Where {
		if !strings.Contains(pattern, ".") {
			pattern = "public." + pattern
		}
		where[pattern] = condition
	}
	for i := range want {
		f := &want[i]
		own, ok := where[f.full()]
		if f.where = own; !ok {
			f.where = where[f.schema+".*"]
		}
		if err := checkCondition(ctx, tx, *f, f.where); err != nil {
			return fmt.Errorf("snapshot_where: %w", err)
		}
	}
	return nil
}

// checkCondition has the server plan the reading of a table's rows by a condition, with
// the settings that the reading has; nothing is run. The second time it stands between
// brackets: one that closes the parenthesis around it would be more than a condition.
func checkCondition(ctx context.Context, tx pgx.Tx, f found, where string) error {
	if where == "" {
		return nil
	}
	inner, err := tx.Begin(ctx)
	if err != nil {
		return explain(err)
	}
	defer func() { _ = inner.Rollback(context.WithoutCancel(ctx)) }() // of the settings too
	if _, err := inner.Exec(ctx, `SET LOCAL search_path = pg_catalog; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres'`, pgx.QueryExecModeSimpleProtocol); err != nil {
		return explain(err)
	}
	for _, form := range []string{where, "(ARRAY[" + where + "\n])[1]"} {
		c := captured{name: f.full(), where: form}
		_, err := inner.Exec(ctx, "EXPLAIN SELECT FROM "+c.within(f.source()), pgx.QueryExecModeExec)
		var pe *pgconn.PgError
		if errors.As(err, &pe) {
			return fmt.Errorf("the condition of %s is refused: %s (SQLSTATE %s): %s; correct it: names of other tables, and of your own functions and types, need their schema", f.full(), pe.Message, pe.Code, where)
		}
		if err != nil {
			return explain(err)
		}
	}
	return nil
}

// source is the table in FROM.
func (f found) source() string {
	if f.partitioned {
		return f.quoted()
	}
	return "ONLY " + f.quoted()
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// importCounted bounds the count of the rows that wait; it is made while there is
	// a backlog, not more often than countEvery.
	importCounted = 10_000
	countEvery    = 2 * time.Second
)

// count tells how many rows wait, up to importCounted. What takes too long is not
// known.
func (i *importer) count(ctx context.Context, conn *pgx.Conn, now bool) {
	if !now && time.Since(i.counted) < countEvery {
		return
	}
	i.counted = time.Now()
	n := -1
	_ = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = '1s'`); err != nil {
			return err
		}
		sql := fmt.Sprintf(`SELECT count(*) FROM (SELECT FROM %s%s LIMIT %d) AS waiting`, i.Table, i.where(), importCounted)
		if err := tx.QueryRow(ctx, sql).Scan(&n); err != nil {
			n = -1
			return err
		}
		return nil
	})
	i.waits(n)
}

// noEvent is the error of a row whose values the outbox refuses.
func (i *importer) noEvent(err error, row string) error {
	if row == "" {
		return fmt.Errorf("a row of %s can be no event: %w; correct it, delete it, or leave it out by where: in the import", i.Table, explain(err))
	}
	return fmt.Errorf("the row of %[1]s with %[2]s can be no event: %[3]w; look at it: SELECT * FROM %[1]s WHERE %[2]s; then correct it, delete it, or leave it out by where: in the import", i.Table, row, explain(err))
}

// first names the row that the next batch begins with.
func (i *importer) first(ctx context.Context, conn *pgx.Conn) string {
	return i.nameOf(ctx, conn, i.where()+" ORDER BY "+strings.Join(i.Order, ", ")+" LIMIT 1")
}

// nameOf is the condition that finds a row, by its id if the import has one, else by
// its order; "" if the row is gone. which finds it now.
func (i *importer) nameOf(ctx context.Context, on interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, which string) string {
	by := i.Order
	if i.ID != "" {
		by = []string{i.ID}
	}
	var parts []string
	var args []any
	for n, e := range by {
		args = append(args, e)
		parts = append(parts, fmt.Sprintf(`CASE WHEN (%[1]s) IS NULL THEN $%[2]d::text || ' IS NULL' ELSE format('%%s = %%L', $%[2]d::text, (%[1]s)::text) END`, e, n+1))
	}
	var row string
	if on.QueryRow(ctx, fmt.Sprintf(`SELECT concat_ws(' AND ', %s) FROM %s %s`, strings.Join(parts, ", "), i.Table, which), args...).Scan(&row) != nil {
		return ""
	}
	return row
}

// aWord is what somebody may have meant as a constant.
var aWord = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

// wrongKey names the key of the configuration that a statement failed for, by trying
// each by itself.
func (i *importer) wrongKey(ctx context.Context, conn *pgx.Conn, cause error) error {
	type part struct{ key, sql, expression string }
	of := func(key, expression string) part {
		return part{key, "SELECT (" + expression + ") FROM " + i.Table + " LIMIT 0", expression}
	}
	parts := []part{{"table", "SELECT FROM " + i.Table + " LIMIT 0", ""}}
	for _, c := range []struct{ name, expression string }{
		{"id", i.ID}, {"topic", i.Topic}, {"key", i.Key}, {"payload", i.Payload}, {"type", i.Type}, {"content_type", i.ContentType}, {"headers", i.Headers},
	} {
		if c.expression != "" {
			parts = append(parts, of("columns."+c.name, c.expression))
		}
	}
	if i.Where != "" {
		parts = append(parts, part{"where", "SELECT FROM " + i.Table + i.where() + " LIMIT 0", ""})
	}
	for _, e := range i.Order {
		parts = append(parts, of("order", e))
	}
	for _, p := range parts {
		_, err := conn.Exec(ctx, p.sql)
		var pe *pgconn.PgError
		if !errors.As(err, &pe) || !strings.HasPrefix(pe.Code, "42") || pe.Code == "42501" {
			continue
		}
		if p.key == "table" {
			return fmt.Errorf("import.%s.table: %s (SQLSTATE %s); name a table that is there, with its schema", i.Name, pe.Message, pe.Code)
		}
		cure := "correct it"
		if aWord.MatchString(p.expression) {
			cure = fmt.Sprintf(`name a column of %s, or quote a constant for SQL and YAML: "'%s'"`, i.Table, p.expression)
		}
		return fmt.Errorf("import.%s.%s: %s (SQLSTATE %s); %s", i.Name, p.key, pe.Message, pe.Code, cure)
	}
	return cause
}

// cure says what to do about an error of the statement.
func (i *importer) cure(err error) error {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		grant := func(rights, on string) error {
			return fmt.Errorf("postgres: %s (SQLSTATE %s); run as its owner: GRANT %s ON %s TO %s", pe.Message, pe.Code, rights, on, quoted(i.role))
		}
		schema, isSchema := strings.CutPrefix(pe.Message, "permission denied for schema ")
		switch {
		case pe.Code == "42501" && isSchema:
			return grant("USAGE", "SCHEMA "+quoted(schema))
		case pe.Code == "42501" && i.Keep:
			return grant("SELECT", i.Table)
		case pe.Code == "42501":
			return grant("SELECT, UPDATE, DELETE", i.Table)
		case pe.Code == "42P01" && strings.Contains(pe.Message, "onewrite."):
			return explain(err)
		case strings.HasPrefix(pe.Code, "42"):
			return fmt.Errorf("postgres: %s (SQLSTATE %s); correct table:, columns:, where: or order: of the import", pe.Message, pe.Code)
		}
	}
	return explain(err)
}

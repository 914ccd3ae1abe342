package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/masking"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// The log may have changes of a table long after it was taken out, or dropped, and then the
// catalogs do not say what the key of its rows was. So the registry keeps that, for as long
// as the slot needs log of that time.
const (
	// releaseTables takes the tables of the source %[1]s that meet a condition, %[2]s, out
	// of those that are captured.
	releaseTables = `WITH gone AS (DELETE FROM onewrite.captured WHERE source = %[1]s AND %[2]s RETURNING source, rel, name, key, shape, columns)
INSERT INTO onewrite.released (source, rel, name, key, shape, columns, until) SELECT source, rel, name, key, shape, columns, pg_current_wal_insert_lsn() FROM gone
ON CONFLICT (source, rel) DO UPDATE SET name = excluded.name, key = excluded.key, shape = excluded.shape, columns = excluded.columns, until = excluded.until`
	// forgetTables forgets them. A slot on a standby is not seen here; one that is made anew
	// there needs nothing of before either.
	forgetTables = `DELETE FROM onewrite.released r USING onewrite.log l LEFT JOIN pg_replication_slots s ON s.slot_name = l.slot
WHERE r.source = %[1]s AND l.source = r.source AND r.until < coalesce(s.restart_lsn, l.began)`
	// shapeOfTable are the columns of the table c, as JSON: what an attribute is read from.
	shapeOfTable = `coalesce((SELECT json_agg(json_build_array(a.attnum, a.attname, a.atttypid::bigint, a.attisdropped, a.attgenerated <> '') ORDER BY a.attnum)
	FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0)::text, '[]')`
)

func (a *attribute) UnmarshalJSON(b []byte) error {
	return json.Unmarshal(b, &[]any{&a.num, &a.name, &a.oid, &a.gone, &a.hidden})
}

// remembered returns the key of a table, and its columns, as migrate saw them last; "": it
// never was captured.
func (c *catalog) remembered(ctx context.Context, rel uint32) (key string, columns []attribute, err error) {
	var text string
	err = c.conn.QueryRow(ctx, `SELECT key, shape FROM (
			SELECT 1 AS n, coalesce(to_jsonb(c) ->> 'key', '`+unknownKey+`') AS key, coalesce(to_jsonb(c) ->> 'shape', '[]') AS shape FROM onewrite.captured c WHERE source = $1 AND rel = $2
			UNION ALL SELECT 2, key, shape FROM onewrite.released WHERE source = $1 AND rel = $2) r ORDER BY n LIMIT 1`, c.source, rel).Scan(&key, &text)
	if errors.Is(err, pgx.ErrNoRows) || isCode(err, "42P01") { // the registry is of before that was kept
		return "", nil, nil
	}
	if err != nil {
		return "", nil, explain(err)
	}
	return key, columns, json.Unmarshal([]byte(text), &columns)
}

// rulesFor are the rules for the columns of a table: of one that is captured no more those
// with which it was, as nothing comes unmasked. Where the key of the hashes is gone too,
// nothing of such a column is shown; and only the key, if the column has another name.
func (c *catalog) rulesFor(ctx context.Context, t *table, now captured) (masking.Rules, error) {
	if now.name != "" {
		return c.rules, nil
	}
	var name, text string
	err := c.conn.QueryRow(ctx, `SELECT name, columns FROM onewrite.released WHERE source = $1 AND rel = $2`, c.source, t.rel).Scan(&name, &text)
	if errors.Is(err, pgx.ErrNoRows) || isCode(err, "42P01") || err == nil && text == "" {
		return c.rules, nil
	}
	if err != nil {
		return nil, explain(err)
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		for _, end := range []string{".", " "} { // it may have another name since
			if rest, own := strings.CutPrefix(line, name+end); own {
				line = t.topic + end + rest
			}
		}
		lines[i] = line
		if what, hashed := strings.CutSuffix(line, " hash"); hashed && !c.hashes {
			lines[i] = what + " truncate 0"
		}
	}
	rules, err := masking.Parse(lines)
	if err != nil {
		return nil, fmt.Errorf("postgres: onewrite.released: %w", err)
	}
	for _, target := range rules.Targets() {
		for _, column := range target.Columns {
			if target.Table != "" && !slices.ContainsFunc(t.columns, func(c tableColumn) bool { return c.name == column }) {
				only := []string{"ctid"} // which no column is called
				for _, i := range t.key {
					only = append(only, t.columns[i].name)
				}
				return masking.Parse([]string{t.topic + " only " + strings.Join(only, ", ")})
			}
		}
	}
	return rules, nil
}

// wasCaptured reports whether a source captured tables before that it released.
func (c *catalog) wasCaptured(ctx context.Context) (was bool, err error) {
	err = c.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM onewrite.released WHERE source = $1)`, c.source).Scan(&was)
	if isCode(err, "42P01") {
		return false, nil
	}
	return was, explain(err)
}

// alignGone is align for a table that is gone, by the columns that it had at some time:
// each may have been dropped since, and others added.
func alignGone(columns []pgoutput.RelationColumn, was []attribute) []int {
	was = slices.Clone(was)
	for i := range was {
		was[i].unsure = true
	}
	for range columns {
		was = append(was, attribute{gone: true})
	}
	nums, _ := align(columns, was)
	return nums
}

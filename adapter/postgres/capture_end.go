package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// release ends the capturing of a source: a slot that nobody reads keeps the log for
// ever.
func release(ctx context.Context, tx pgx.Tx, source string) (applied []string, err error) {
	var active bool
	var slot string
	err = tx.QueryRow(ctx, `SELECT l.slot, coalesce(s.active, false) FROM onewrite.log l LEFT JOIN pg_replication_slots s ON s.slot_name = l.slot WHERE l.source = $1`, source).Scan(&slot, &active)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return nil, explain(err)
	case active:
		return nil, fmt.Errorf("onewrite run reads the slot %s; stop it, and run onewrite migrate again", slot)
	default:
		tag, err := tx.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
		if err != nil {
			return nil, explain(err)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM onewrite.log WHERE source = $1`, source); err != nil {
			return nil, explain(err)
		}
		switch {
		case tag.RowsAffected() > 0:
			applied = append(applied, "dropped the slot "+slot)
		case strings.HasSuffix(slot, standbySlot):
			applied = append(applied, "the slot "+slot+" is on the standby of log_url; run there: "+dropped(slot))
		}
	}
	tag, err := tx.Exec(ctx, `DELETE FROM onewrite.captured WHERE source = $1`, source)
	if err != nil {
		return nil, explain(err)
	}
	if tag.RowsAffected() > 0 {
		applied = append(applied, "row changes are captured no more")
	}
	_, err = tx.Exec(ctx, "DROP PUBLICATION IF EXISTS "+pgx.Identifier{publicationOf(source)}.Sanitize())
	return applied, explain(err)
}

// releaseAll ends the capturing of every source of the database.
func releaseAll(ctx context.Context, tx pgx.Tx) error {
	var there bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('onewrite.captured') IS NOT NULL`).Scan(&there); err != nil || !there {
		return explain(err)
	}
	// A source without tables that never ran has its publication alone.
	rows, err := tx.Query(ctx, `SELECT source FROM onewrite.captured UNION SELECT source FROM onewrite.log
		UNION SELECT substr(p.pubname, 10) FROM pg_publication p JOIN pg_namespace n ON n.nspname = 'onewrite' AND n.nspowner = p.pubowner WHERE p.pubname LIKE 'onewrite\_%'`)
	if err != nil {
		return explain(err)
	}
	sources, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return explain(err)
	}
	for _, source := range sources {
		if _, err := release(ctx, tx, source); err != nil {
			return err
		}
	}
	return nil
}

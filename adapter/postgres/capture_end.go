package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// leftSlotError says that the role may not drop a slot. All else was done.
type leftSlotError struct {
	slot  string
	cause error
}

func (e *leftSlotError) Error() string {
	return fmt.Sprintf("%v: the slot %s is left, and keeps the server's log; all else was done; run in this database as superuser, or as a role with REPLICATION, which that of onewrite run has: %s", e.cause, e.slot, dropped(e.slot))
}

func (e *leftSlotError) Unwrap() error { return e.cause }

// dropOwn drops a slot that nobody reads, and reports whether it was there. Where the role
// may not, the transaction goes on.
func dropOwn(ctx context.Context, tx pgx.Tx, slot string) (was bool, err error) {
	point, err := tx.Begin(ctx)
	if err != nil {
		return false, explain(err)
	}
	tag, err := point.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
	if isCode(err, "42501") {
		var pe *pgconn.PgError
		_ = errors.As(err, &pe)
		left := &leftSlotError{slot, fmt.Errorf("postgres: %s (SQLSTATE %s)", pe.Message, pe.Code)}
		if err := point.Rollback(ctx); err != nil {
			return false, explain(err)
		}
		return true, left
	}
	if err != nil {
		return false, explain(err)
	}
	return tag.RowsAffected() > 0, explain(point.Commit(ctx))
}

// release ends the capturing of a source: a slot that nobody reads keeps the log for
// ever. An error that is a leftSlotError: it did, but for the slot, whose record stays for
// the doctor and for the next time.
func release(ctx context.Context, tx pgx.Tx, source string) (applied []string, err error) {
	var active bool
	var slot string
	var left *leftSlotError
	if err := layRegistry(ctx, tx); err != nil {
		return nil, err
	}
	err = tx.QueryRow(ctx, `SELECT l.slot, coalesce(s.active, false) FROM onewrite.log l LEFT JOIN pg_replication_slots s ON s.slot_name = l.slot WHERE l.source = $1`, source).Scan(&slot, &active)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return nil, explain(err)
	case active:
		return nil, fmt.Errorf("onewrite run reads the slot %s; stop it, and run onewrite migrate again", slot)
	default:
		was, err := dropOwn(ctx, tx, slot)
		if errors.As(err, &left) {
			break
		}
		if err != nil {
			return nil, err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM onewrite.log WHERE source = $1`, source); err != nil {
			return nil, explain(err)
		}
		switch {
		case was:
			applied = append(applied, "dropped the slot "+slot)
		case strings.HasSuffix(slot, standbySlot):
			applied = append(applied, "the slot "+slot+" is on the standby of log_url; run there: "+dropped(slot))
		}
	}
	tag, err := tx.Exec(ctx, fmt.Sprintf(releaseTables, "$1", "true"), source)
	if err != nil {
		return nil, explain(err)
	}
	if tag.RowsAffected() > 0 {
		applied = append(applied, "row changes are captured no more")
	}
	if _, err = tx.Exec(ctx, "DROP PUBLICATION IF EXISTS "+pgx.Identifier{publicationOf(source)}.Sanitize()); err != nil {
		return nil, explain(err)
	}
	if left != nil {
		return applied, left
	}
	return applied, nil
}

// releaseScript does what release does, where there is something to end.
func releaseScript(source string) string {
	return fmt.Sprintf(`
-- Nothing is read from the log, and a slot that nobody reads keeps it for ever: who runs this is a superuser, or has REPLICATION.
DO $release$ DECLARE own text; BEGIN
IF to_regclass('onewrite.captured') IS NOT NULL AND to_regclass('onewrite.log') IS NOT NULL THEN
    SELECT slot INTO own FROM onewrite.log WHERE source = %[1]s;
    IF EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = own AND active) THEN
        RAISE EXCEPTION 'onewrite run reads the slot %%; stop it, and run this again', own;
    ELSIF right(own, %[3]d) = %[4]s AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = own) THEN
        RAISE NOTICE 'the slot %% is on the standby of log_url; run there: SELECT pg_drop_replication_slot(%%)', own, quote_literal(own);
    END IF;
    PERFORM pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = own;
    DELETE FROM onewrite.log WHERE source = %[1]s;
    EXECUTE $layout$
%[6]s$layout$;
    %[7]s;
    IF EXISTS (SELECT FROM pg_publication WHERE pubname = %[2]s) THEN
        DROP PUBLICATION %[5]s;
    END IF;
END IF;
END $release$;
`, quoteText(source), quoteText(publicationOf(source)), len(standbySlot), quoteText(standbySlot), pgx.Identifier{publicationOf(source)}.Sanitize(),
		captureSQL, fmt.Sprintf(releaseTables, quoteText(source), "true"))
}

// releaseAll ends the capturing of every source of the database. An error that is a
// leftSlotError: it did, but for slots.
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
	var left []error
	for _, source := range sources {
		_, err := release(ctx, tx, source)
		if slot := (*leftSlotError)(nil); errors.As(err, &slot) {
			left = append(left, err)
		} else if err != nil {
			return err
		}
	}
	return errors.Join(left...)
}

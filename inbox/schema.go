package inbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// In both, before is a scratch of the statement that moves the watermark: what
// place was just before it. n is the order in which ids came.
const (
	postgresSchema = `-- The inbox of onewrite, layout version 1. Needs PostgreSQL 13 or newer.
CREATE SCHEMA IF NOT EXISTS onewrite_inbox;
-- Where each lane of an ordered input is: updated in place, one row a lane.
CREATE TABLE IF NOT EXISTS onewrite_inbox.watermark (
    consumer text COLLATE "C" NOT NULL,
    source   text COLLATE "C" NOT NULL,
    lane     text COLLATE "C" NOT NULL,
    place    text COLLATE "C" NOT NULL,
    before   text COLLATE "C" NOT NULL DEFAULT '',
    PRIMARY KEY (consumer, source, lane)
) WITH (fillfactor = 70);
-- The last ids of an input without order.
CREATE TABLE IF NOT EXISTS onewrite_inbox.seen (
    consumer text COLLATE "C" NOT NULL,
    source   text COLLATE "C" NOT NULL,
    id       text COLLATE "C" NOT NULL,
    n        bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (consumer, source, id)
);
CREATE INDEX IF NOT EXISTS seen_n ON onewrite_inbox.seen (consumer, n);
`
	sqliteSchema = `-- The inbox of onewrite, layout version 1. Needs SQLite 3.35 or newer.
-- Where each lane of an ordered input is: updated in place, one row a lane.
CREATE TABLE IF NOT EXISTS onewrite_inbox_watermark (
    consumer TEXT NOT NULL,
    source   TEXT NOT NULL,
    lane     TEXT NOT NULL,
    place    TEXT NOT NULL,
    before   TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (consumer, source, lane)
) WITHOUT ROWID;
-- The last ids of an input without order.
CREATE TABLE IF NOT EXISTS onewrite_inbox_seen (
    n        INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer TEXT NOT NULL,
    source   TEXT NOT NULL,
    id       TEXT NOT NULL,
    UNIQUE (consumer, source, id)
);
CREATE INDEX IF NOT EXISTS onewrite_inbox_seen_n ON onewrite_inbox_seen (consumer, n);
`
)

// Schema returns the SQL that makes the tables where they are missing. It may be
// run again and again. role, if set, is granted what a consumer needs (Postgres).
// A d that is none of the dialects has no schema.
func Schema(d Dialect, role string) string {
	s := layouts[d].schema
	if d == Postgres && role != "" {
		quoted := `"` + strings.ReplaceAll(role, `"`, `""`) + `"`
		s += fmt.Sprintf("GRANT USAGE ON SCHEMA onewrite_inbox TO %[1]s;\nGRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA onewrite_inbox TO %[1]s;\n", quoted)
	}
	return s
}

// Migrate makes the tables in db where they are missing, as `onewrite migrate
// --inbox` does. It may be repeated, and run twice at once. The error is the
// database's.
func (in *Inbox) Migrate(ctx context.Context, db *sql.DB) error {
	if in.layout.schema == "" {
		return errors.New("inbox: unknown dialect; use inbox.New(inbox.Postgres, …) or SQLite")
	}
	if in.there(ctx, db) {
		return nil // so that a role without CREATE may ask too
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("inbox: begin: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
	if in.layout.dollar {
		// IF NOT EXISTS does not keep two that run at once apart.
		if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtext('onewrite_inbox'))`); err != nil {
			return fmt.Errorf("inbox: %w", err)
		}
	}
	for statement := range strings.SplitSeq(in.layout.schema, ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("inbox: make the tables: %w (the role needs CREATE on the database; or let an administrator run: onewrite migrate --inbox --print --database URL --app-role ROLE | psql URL)", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("inbox: commit: %w", err)
	}
	return nil
}

// there reports whether both tables can be read.
func (in *Inbox) there(ctx context.Context, db *sql.DB) bool {
	var n int
	err := db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM `+in.layout.seen+` WHERE consumer = '') + (SELECT count(*) FROM `+in.layout.watermark+` WHERE consumer = '')`).Scan(&n)
	return err == nil
}

// Forget drops what the consumer remembers of a source, so that its events are
// handled anew: after the source's database was put back from a backup, whose
// places begin again where the backup ends. lane, if not empty, limits it to the
// watermark of one lane. The error is the database's.
func (in *Inbox) Forget(ctx context.Context, db *sql.DB, source, lane string) error {
	one, two, three := "?1", "?2", "?3"
	if in.layout.dollar {
		one, two, three = "$1", "$2", "$3"
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("inbox: begin: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
	where := " WHERE consumer = " + one + " AND source = " + two
	if lane != "" {
		_, err = tx.ExecContext(ctx, "DELETE FROM "+in.layout.watermark+where+" AND lane = "+three, in.consumer, source, lane)
	} else if _, err = tx.ExecContext(ctx, "DELETE FROM "+in.layout.watermark+where, in.consumer, source); err == nil {
		_, err = tx.ExecContext(ctx, "DELETE FROM "+in.layout.seen+where, in.consumer, source)
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		return fmt.Errorf("inbox: forget %s: %w", source, err)
	}
	return nil
}

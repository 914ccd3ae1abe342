// Package sqlite reads the outbox of an SQLite database, makes its tables, and
// captures row changes by triggers.
//
// SQLite has one writer at a time, so the AUTOINCREMENT number of a row is its
// place in commit order and a plain cursor on it is exact. The application
// writes the table onewrite_outbox with the SQLite library of any language,
// version 3.38 or newer; [Migrate] makes it, [Open] reads it.
//
// # Row changes
//
// Migrate gives each captured table triggers that write before and after images
// into onewrite_outbox in the transaction of the change. They write what was
// committed, also for INSERT OR REPLACE, UPDATE OR REPLACE, upserts and changed
// primary keys, whatever recursive_triggers is, and they let no statement of the
// application fail. Generated columns are left out, as they follow from the
// others. What cannot be captured exactly is refused by Migrate.
//
// SQLite tells triggers nothing about transactions: Event.Tx is zero. The
// first snapshot is one write transaction that lasts about a second for
// 200,000 rows.
//
// Run Migrate again after ALTER TABLE, CREATE UNIQUE INDEX and CREATE TRIGGER. A
// table that was made anew (dropped, copied, renamed) has lost its triggers, and
// a trigger that is newer than those of Migrate fires before them: the source
// notices and returns ErrGap until Migrate has run. SQLite itself refuses to drop a captured
// column: take the table out of the list, migrate, alter, migrate again.
//
// # One SQLite library in a process
//
// A program that uses another SQLite library beside modernc.org/sqlite (one in
// C, for instance) must not open the same file with both: POSIX locks of one
// process do not exclude each other. Run onewrite as a process of its own then.
package sqlite

// Package postgres reads the outbox of a PostgreSQL database (13 or newer), and row
// changes of its tables (15 or newer), and makes what that needs.
//
// The outbox is an INSERT-only ring of leaf tables. It is read by the difference
// of two snapshots: the rows visible now that were not visible before, in the
// order of seq. That misses nothing, waits for no foreign transaction and keeps
// commit order per key for writers that serialise on the key, as all do that
// lock its row first. Leaves are emptied by TRUNCATE, so that neither a long
// transaction nor a held snapshot makes them bloat.
//
// A [Source] is one session; it must be a direct one, not through a transaction
// pooler. It holds an advisory lock, so that of several copies one reads and the
// others stand by. Applications may go through a pooler.
//
// Row changes are read from the log. [Both] reads ring and log as one source, whose
// position is a place in each. Rows that were there before come in chunks between
// watermarks in the log. What the server is silent about, a slot that was made again or
// a publication that was changed, is looked for at the start and every few seconds, and
// is a gap.
package postgres

// Package sqlsink keeps tables of another database as they are in the source: it
// applies row changes to PostgreSQL, MySQL or MariaDB, and SQLite. Events that are
// no row changes become rows of a table of messages.
//
// All events of one WriteAt and the record of the destination's place are one
// transaction of the target, so that no event is applied twice and none is left
// out. Events are applied in the order in which they come. Runs of rows of one
// table travel in one statement; when such a statement is refused, all is rolled
// back and done again event by event, so that the very event is known.
//
// A value is written as the text it has in the event and converted by the server to
// the type of the column, which the catalog tells. Only bytes, arrays and, where
// the server would convert with a loss, numbers and times are looked at here.
//
// The package makes the tables onewrite_places and, where it is allowed to, the
// tables and columns that the events ask for. It has no retry: a connection that
// was lost is opened again by the next call, once.
package sqlsink

// Package outbox writes events into the outbox table of the database that the
// application writes anyway, in the application's own transaction: the event is
// committed together with the data, or not at all. onewrite carries it on from
// there. The package imports the standard library only.
//
//	events := outbox.New(outbox.Postgres)
//	err := outbox.InTx(ctx, db, func(tx *sql.Tx) error {
//		if _, err := tx.ExecContext(ctx, `UPDATE orders SET …`); err != nil {
//			return err
//		}
//		return events.Publish(ctx, tx, outbox.Event{
//			Topic: "order.placed", Key: "42", Payload: body,
//		})
//	})
//
// The table is made by the command `onewrite migrate`, never by this package.
//
// # Order
//
// Events of one key arrive in commit order if their transactions exclude each
// other before they publish: by a row lock (UPDATE orders … before Publish), by
// a version check, or because the database has one writer, as SQLite has. Where
// nothing serialises two transactions there is no order to keep.
//
// # What arrives
//
// The payload arrives byte for byte. It is stored as text if it is UTF-8
// without NUL and ContentType is empty or promises text, and as binary
// otherwise; see [Event]. [DefaultContentType] tells what an event without
// ContentType arrives as.
//
// # Traces
//
// Publish adds the trace context of ctx to the headers, see [WithTraceparent]
// and [TraceFrom].
//
// # Wake-up
//
// [Ring] after the commit wakes a relay of the same process at once; [InTx] and
// [Group] ring by themselves.
package outbox

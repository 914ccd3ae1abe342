// Package inbox is the consumer's side: the effect of an event and the mark that it
// was handled are committed in one transaction, so a repeat has no effect. It
// imports the standard library only.
//
//	box := inbox.New(inbox.Postgres, "billing")
//	handler, err := inbox.HTTP(box.Receiver(db, func(ctx context.Context, tx *sql.Tx, e onewrite.Event) error {
//		_, err := tx.ExecContext(ctx, `UPDATE account SET …`)
//		return err
//	}), inbox.Secret(os.Getenv("WEBHOOK_SECRET")), inbox.From("shop"))
//
// The tables are made by `onewrite migrate --inbox`, or by [Inbox.Migrate]. Several
// consumers may share a database, each under a name of its own, and several
// processes a consumer.
//
// # What is remembered
//
// By default the ids of the last events, [Keep] says how many: right for any input,
// as long as no repeat comes later than that many other events. With [Ordered] one
// mark for each key, the place of its last event: right for ever and in constant
// space, where the events of a key come in the order of their numbers. What comes
// with a smaller number than the last one is taken for a repeat and has no effect.
// onewrite delivers in that order where the transactions that publish events of one
// key exclude each other before they insert, by a lock on the row that the key names
// for instance; where they do not, events would be lost here, so leave Ordered out.
// Neither does it with `on_reject: skip`, nor after a source's database was put back
// from a backup, see [Inbox.Forget]. Of events without a key, and of those that were
// scheduled, ids are remembered also then.
//
// # Outcomes
//
// [Applied]: the effect and the mark are committed. [Duplicate]: it was handled
// before; nothing was done. [Gap]: an event of the lane is missing before this one,
// which only a [Message] with After can tell; nothing was done, and the error says
// so. Any other error: nothing was done; let the event come again.
//
// # Events out of events
//
// Events that the effect publishes in its transaction, through package outbox with
// the ctx that it is given, carry the trace of the handled event, its id as
// causationid, and as correlationid the id of the first event of the chain. The bell
// is rung after the commit.
//
// # Effects elsewhere
//
// What an effect does outside of the transaction, a payment for instance, is not
// undone when the transaction fails: give the other side the event's id as an
// idempotency key.
package inbox

// Package sabotage breaks onewrite on purpose, so that the storms in torture and
// the simulation can be seen to notice. The real code asks it for two things: at a
// fail point [At] may kill the process, fail or stall; and where a bug is planted,
// Bug says whether it is the one of this run.
//
// All of it needs the build tag owbug. Without it Bug is an empty constant and At
// an empty function, which the compiler removes with all that asks for them. With
// it the environment decides:
//
//	OW_BUG=ack-early            the bug of this run
//	OW_POINT=bus.take:kill@2    what happens at a point (kill, late-kill, error, stall), and at which visit first
//	OW_POINT=count              nothing happens, visits are counted
//	OW_PROOF=/path              the file that gets a line for each thing that happened
package sabotage

// Points are the names of all fail points, in the order in which an event meets
// them. A test compares them with the code.
var Points = []string{
	"ingest.open", "postgres.lead", "postgres.record", "sqlite.adopt", "postgres.look", "postgres.settle", "postgres.page", "postgres.rest", "postgres.promote",
	"sqlite.fetch", "ingest.read", "ingest.append", "bus.create", "bus.few", "bus.batch", "bus.pack", "ingest.appended",
	"ingest.ack", "postgres.rotate", "postgres.truncate", "postgres.truncated", "sqlite.delete", "sqlite.deleted", "sqlite.checkpoint", "sqlite.promote",
	"bus.identify", "bus.locate", "bus.take", "bus.read", "bus.save", "bus.purge",
	"delivery.subscribe", "delivery.open", "delivery.write", "delivery.written", "delivery.commit", "delivery.committed", "delivery.drain",
	"delivery.park", "delivery.parked", "delivery.forget", "delivery.forgotten",
	"placed.read", "placed.pair", "placed.paired", "placed.settle", "placed.settled", "placed.rewind", "placed.rewound",
	"webhook.send", "webhook.answered", "stream.publish", "stream.stored", "file.recover", "file.write", "file.written", "file.rotate",
	"kafka.produce", "kafka.produced", "kafka.committed", "kafka.send", "kafka.sent", "redis.write", "redis.written",
	"rabbitmq.publish", "rabbitmq.confirmed", "sql.write", "sql.commit", "sql.committed",
}

// Bugs are the names of all planted bugs.
var Bugs = []string{
	"ack-early", "any-answer", "change-place", "confirm-fastest", "count-outage", "cursor-early", "delete-on-read", "followers-flow", "followers-lost", "id-cursor",
	"ignore-fence", "max-floor", "max-place", "new-id", "no-confirm", "no-gap", "no-last-commit", "no-msg-id", "no-puback", "no-rewind", "no-window", "parallel-key", "place-apart", "place-later",
	"placed-floor", "placed-unread", "pos-early",
	"probe-failed-only", "reversed", "says-ok", "short-write", "skip-batch", "toast-null", "truncate-unread",
}

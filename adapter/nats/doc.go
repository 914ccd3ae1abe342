// Package nats is the bus on NATS JetStream, embedded in the program or in an
// external cluster, and a sink that publishes to another NATS.
//
// # What is stored where
//
// The log of a source is one stream, <name>-<source>, and an event's subject is
// <name>.<source>.<topic>. A message is a CloudEvent in binary mode: attributes
// are headers ce-<attribute>, the body is the payload; any NATS client reads it.
// Where none can, in an embedded bus that does not listen, an append is one
// message with all its events, a pack. Offsets count events, not messages.
// The header Onewrite-Pos carries the source's position just after the event,
// so that events and position are one atomic step and the bus resumes from the
// newest message of the stream. Inside an atomic batch only the last message
// has it. Two more streams hold the cursors of the destinations
// (<name>-state) and the parked events (<name>-parked).
//
// # How it stays right
//
//   - Appends move the stream by its expected last sequence; the cursor of a
//     destination moves by the expected sequence of its subject. Whoever is late
//     gets ErrFenced and has changed nothing.
//   - A reader goes up to the tail: the last message that carries a position and
//     is known to be durable. Messages of a batch under way are beyond it.
//   - Streams refuse what does not fit (discard new), never drop by age, and are
//     purged by Retain only, which always leaves the newest message.
//   - The embedded server syncs every append to the disk before it answers.
//
// Nothing here retries or reconnects in the background: a call dials again when
// the connection is gone, once, and returns the error if that fails.
package nats

// Package schemas writes payloads in the forms of a schema registry with Confluent's
// API: a zero byte, the id of a schema in four more, and the payload by that schema; with
// Protobuf the place of the message in its file stands before that.
//
// Row changes have a schema that follows from the events themselves. Nothing but the
// registry remembers it: what a table's columns were so far is read from the newest
// version of the subject, and a new version is registered where an event has more,
// less, or another type. Other events are written by the schema that somebody has
// registered.
//
// An event that no schema takes is refused, with the field that does not fit. A
// registry that does not answer is an outage.
package schemas

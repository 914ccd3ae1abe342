// Package search writes events to Elasticsearch and OpenSearch: documents by the
// bulk API, with versions that say which of two is newer.
//
// # Documents
//
// A row that was inserted, updated or read by a snapshot is indexed as it is after
// the change, under its key; a row that was deleted is deleted; TRUNCATE deletes
// the documents of the index that are older. Any other event is indexed with its
// JSON payload as the document; one without data deletes the document of its key.
// With [Event] every event is indexed as a whole, in the JSON format of CloudEvents,
// and nothing is deleted.
//
// # Versions
//
// Each write carries the event's place in its source as an external version, so that
// the server drops what is older than what it has: a repeat, a request that was
// given up and comes late, a copy that does not know that it has been replaced. See
// place for how a version is made, and eras for what happens when a database that
// was restored counts again from below.
//
// # The answers
//
//	200 201                  durable
//	404 of a delete          durable: there is nothing
//	409                      the document is newer: durable, if an event of this
//	                         source can have given it its version
//	400 413                  ErrRejected: the server refuses this document
//	403 404 of one index     Answered: the user may not write it, or it is not there
//	block of an index        an outage: it is read-only, mostly for want of disk
//	401 403                  an outage: the user or the key is not the server's
//	429 503 circuit breaker  an outage, with the pause that the server asks for
//	other 5xx of one item    Answered
//	no or no whole answer    an outage: unknown
//
// An answer is about one item. Two events of one key, or of one document, are never
// in one request: what stands behind a refused event must not arrive. Events behind
// it of other keys may have arrived, and come again; their versions make that
// harmless.
package search

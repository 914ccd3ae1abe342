// Package s3 writes events as objects of S3, or of a store that speaks its language:
// one CloudEvents JSON object a line, as in the file destination, or Parquet.
//
// # Objects
//
// Each write makes an object for each prefix and log that its events have. An object
// is put whole, and only if there is none of its name. The name is the prefix, the
// log, the first and the last offset on the bus, and a digest of the content: the same
// events again are the same object, and are there once. Events stand in an object in
// their order. The digest is that of the lines, also where the object is Parquet.
//
// # The place
//
// Under the begin of the prefix that is the same for all events, .onewrite/NAME.json is
// the record of the destination NAME: the number of the last commit, the epoch of its
// writer, and what the delivery keeps. A write of a delivery is a commit, in this order:
//
//	.onewrite/NAME/HISTORY/COMMIT-EPOCH.json   names the objects that will be there
//	the objects                                each if it is not there
//	.onewrite/NAME.json                        if it is what this writer wrote last
//
// The last step is the one that counts, and is all or nothing: who reads exactly once
// reads the record, and of each commit up to the one in it the objects that the list
// with the highest epoch names. After a crash in between there are objects that no such
// list names; who reads all objects has their events twice, with the same ids.
//
// A new writer raises the epoch in the record, by the same condition, and from then on
// the writer before is fenced (412). A store that takes no notice of conditions is
// recognised at that moment, and refused.
//
// # The errors
//
//	412 on the record                  ErrFenced
//	a name longer than S3 takes, and   ErrRejected
//	EntityTooLarge of one event alone
//	SlowDown, 503, 429                 outage; Retry-After is kept, else 1 s
//	NoSuchBucket, AccessDenied, wrong  outage, with the cure
//	keys, region or clock, 5xx, none
//
// There is no retry in here, and none of the client library's.
package s3

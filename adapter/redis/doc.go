// Package redis delivers to Redis and Valkey: events into streams, with the place
// of the destination beside them, or commands that keep a cache.
//
// [Open] chooses by the configuration. A [Sink] appends events to streams. One
// script, and so one step for the server, checks that the destination is still this
// sink's, appends all events and stores the record of the place: a crash leaves all
// of it or nothing. A [Cache] runs commands for each event, in one MULTI of its own;
// a repeat runs them again.
//
// What is acknowledged is as safe as the server keeps it: with appendonly yes and
// appendfsync always it is on its disk; with everysec, the default of an append only
// file, a server that dies may forget the last second or two, and then the record of
// the place goes back with the events, since they are one step. A failover to a
// replica may forget what that had not received. Servers that evict keys by
// themselves are refused: they would drop events without a word.
//
// Not in here: consumers and groups, trimming beyond what max_len asks for, pub/sub
// as a destination of its own, and servers before Redis 7.0.
package redis

// Package retention has the words in which a bus is told how much to keep, and tells how
// much it holds.
package retention

import "time"

// Keep says how much that is confirmed stays on the bus for replay; whichever is met
// first ends it. Zero is no bound.
type Keep struct {
	// Size is in bytes.
	Size int64
	// Age counts from when the bus stored the event.
	Age time.Duration
}

// Usage is what the log of a source holds.
type Usage struct {
	// First and Last are the offsets of the oldest and the newest event.
	First, Last uint64
	// Bytes is the room taken in the store.
	Bytes int64
	// Oldest is when the oldest event was stored; zero if there is none.
	Oldest time.Time
	// Messages counts the events.
	Messages uint64
}

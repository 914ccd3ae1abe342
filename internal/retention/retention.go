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
	// Oldest is when the oldest event was stored, and with it all up to Through; zero if
	// there is none.
	Oldest  time.Time
	Through uint64
	// Messages counts the events.
	Messages uint64
}

// Outlived reports whether the first event behind floor, which is there, has waited for
// longer than age. The bus keeps what is confirmed as long as Keep says; when it let go
// of what came after that event, it has.
func (u Usage) Outlived(floor uint64, age time.Duration) bool {
	return floor+1 < u.First || floor < max(u.First, u.Through) && time.Since(u.Oldest) > age
}

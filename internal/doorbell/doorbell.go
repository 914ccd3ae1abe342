// Package doorbell wakes those of this process who read an outbox. Package outbox
// shows it to applications; package inbox rings it after a handler's commit.
package doorbell

import "sync/atomic"

// bell holds the channel that today's listeners wait on; nil when nobody does.
var bell atomic.Pointer[chan struct{}]

// Wait returns a channel that the next Ring closes.
func Wait() <-chan struct{} {
	for {
		if c := bell.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		if bell.CompareAndSwap(nil, &c) {
			return c
		}
	}
}

// Ring closes the channel that listeners hold. It never blocks, and costs one
// atomic read when nobody listens.
func Ring() {
	if bell.Load() == nil {
		return
	}
	if c := bell.Swap(nil); c != nil {
		close(*c)
	}
}

package outbox

import "github.com/onewrite/onewrite/internal/doorbell"

// Bell returns a channel that the next [Ring] closes. It is for those who read
// an outbox in this process. Take the channel first, then look into the
// table, then wait: a Ring after the look closes the channel that is already
// held, so no wake-up is lost. After a wake-up take a new channel. Any number
// of listeners may wait.
func Bell() <-chan struct{} { return doorbell.Wait() }

// Ring wakes every relay in this process at once. Call it after the commit, not
// before: a relay that wakes too early sees nothing and sleeps again. To forget
// it costs latency only, for relays also look by themselves. Ring never blocks,
// and costs one atomic read when nobody listens.
func Ring() { doorbell.Ring() }

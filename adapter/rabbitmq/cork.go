package rabbitmq

import (
	"net"
	"sync"
)

// piece is how much is sent at once while a connection is corked, in bytes.
const piece = 16 << 10

// cork is a connection that sends many small writes as few large ones. The client
// writes each message by itself, which costs it and the broker more than the message.
// Corked, what is written may wait for the next flush; else it is sent at once.
type cork struct {
	net.Conn

	mu     sync.Mutex
	corked bool
	buf    []byte
}

// Write implements net.Conn. An error of what waited shows at the next flush.
func (c *cork) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked {
		return c.Conn.Write(b)
	}
	c.buf = append(c.buf, b...)
	if len(c.buf) < piece {
		return len(b), nil
	}
	return len(b), c.send()
}

// send sends what waits. The caller holds mu.
func (c *cork) send() error {
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.buf)
	c.buf = c.buf[:0]
	if cap(c.buf) > 1<<20 { // of a large payload
		c.buf = nil
	}
	if err != nil {
		_ = c.Conn.Close() // so that whoever waits for an answer hears of it
	}
	return err
}

// hold lets small writes wait.
func (c *cork) hold() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

// flush sends what waits; hold goes on.
func (c *cork) flush() {
	c.mu.Lock()
	_ = c.send() // the connection is closed then
	c.mu.Unlock()
}

// free sends what waits, and from then on all at once.
func (c *cork) free() {
	c.mu.Lock()
	_ = c.send()
	c.corked = false
	c.mu.Unlock()
}

package outbox

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"sync/atomic"
	"time"
)

// lastTick is the greatest time that NewID has given out, in 1/4096 ms.
var lastTick atomic.Uint64

// NewID returns a new UUIDv7 (RFC 9562) in its 36 character form. Within the
// process every id sorts after those made before it, also when the clock is
// set back; its last 62 bits are from crypto/rand.
func NewID() string {
	now := time.Now()
	// Method 3 of RFC 9562, 6.2: the 12 bits after the milliseconds are a finer
	// clock. When it has not moved on, the next value is taken.
	tick := uint64(now.UnixMilli())<<12 | uint64(now.Nanosecond()%1_000_000)<<12/1_000_000
	for {
		last := lastTick.Load()
		if tick <= last {
			tick = last + 1
		}
		if lastTick.CompareAndSwap(last, tick) {
			break
		}
	}
	var u [16]byte
	_, _ = rand.Read(u[8:]) // never fails; the runtime ends the process instead
	binary.BigEndian.PutUint64(u[:8], tick>>12<<16|0x7000|tick&0xfff)
	u[8] = u[8]&0x3f | 0x80
	return format(u)
}

func format(u [16]byte) string {
	var b [36]byte
	hex.Encode(b[:8], u[:4])
	b[8] = '-'
	hex.Encode(b[9:13], u[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], u[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], u[8:10])
	b[23] = '-'
	hex.Encode(b[24:], u[10:])
	return string(b[:])
}

const nilID = "00000000-0000-0000-0000-000000000000"

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return false
			}
		}
	}
	return true
}

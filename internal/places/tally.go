package places

import (
	"math/bits"

	"github.com/onewrite/onewrite"
)

// Tally remembers of a log which events a destination wants, a bit each, so that what is
// pending can be counted without reading it again. It is not safe for several goroutines.
type Tally struct {
	floor uint64 // events up to here do not count
	base  uint64 // a multiple of 64: event base+1 is the first bit
	upto  uint64 // known up to here
	bits  []uint64
}

// NewTally returns one of the events behind floor.
func NewTally(floor uint64) Tally { return Tally{floor: floor, base: floor &^ 63, upto: floor} }

// Upto returns the offset up to which it is known what is wanted.
func (t *Tally) Upto() uint64 { return t.upto }

// Note takes an event into account and reports whether it was new. What lies between it
// and the last one is taken for not there.
func (t *Tally) Note(offset uint64, wanted bool) bool {
	if offset <= t.upto {
		return false
	}
	t.upto = offset
	if i := offset - 1 - t.base; wanted {
		for uint64(len(t.bits)) <= i/64 {
			t.bits = append(t.bits, 0)
		}
		t.bits[i/64] |= 1 << (i % 64)
	}
	return true
}

// Pass notes that up to an offset nothing more is there.
func (t *Tally) Pass(offset uint64) { t.upto = max(t.upto, offset) }

// Pending counts the wanted events up to tail that lie behind a place, and forgets what
// the place has confirmed. What is not known yet counts as wanted.
func (t *Tally) Pending(at onewrite.LogCursor, tail uint64) uint64 {
	t.trim(at.Floor)
	n := t.count(max(at.Floor, t.floor), tail)
	if from := max(at.Floor, t.upto); from < tail {
		n += tail - from
	}
	for _, d := range at.Done {
		n -= min(n, t.count(d.From-1, d.To))
	}
	return n
}

// count counts the wanted events behind from, up to and with to.
func (t *Tally) count(from, to uint64) (n uint64) {
	from, to = max(from, t.base), min(to, t.upto)
	if from >= to {
		return 0
	}
	below := func(x uint64) (n uint64) { // of the first x bits
		for i, w := range t.bits {
			if left := x - min(x, uint64(i)*64); left == 0 {
				break
			} else if left < 64 {
				w &= 1<<left - 1
			}
			n += uint64(bits.OnesCount64(w))
		}
		return n
	}
	return below(to-t.base) - below(from-t.base)
}

func (t *Tally) trim(floor uint64) {
	floor = min(floor, t.upto) // what comes next is behind the base
	words := (floor - min(floor, t.base)) / 64
	if words < 1024 {
		return
	}
	t.bits = append([]uint64(nil), t.bits[min(words, uint64(len(t.bits))):]...)
	t.base += 64 * words
}

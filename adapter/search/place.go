package search

import (
	"strconv"

	"github.com/onewrite/onewrite"
)

// Numberings of a source: two sequences that do not compare with each other.
const (
	counted = "counted" // decimal: rows of an outbox, changes of SQLite
	logged  = "logged"  // PostgreSQL's log: place of the commit, number of the change
)

const (
	// commitShift leaves out bits that tell nothing: a commit is a record of 40 bytes
	// or more, so no two of them begin or end in the same 32.
	commitShift = 5
	// changeBits are for the number of the change within its transaction. The last
	// number stands for all beyond, which are then as good as equal: the later write
	// wins.
	changeBits = 12
	maxPlace   = 1 << 61
)

// place is where an event is in its source as a number, in the numbering that its
// Seq shows; ok is false if it shows none.
func place(e *onewrite.Event) (numbering string, n int64, ok bool) {
	s := e.Seq
	if len(s) == 27 && s[16] == '.' {
		commit, err1 := strconv.ParseUint(s[:16], 16, 64)
		change, err2 := strconv.ParseUint(s[17:25], 16, 32)
		commit >>= commitShift
		if err1 != nil || err2 != nil || commit >= maxPlace>>changeBits {
			return "", 0, false
		}
		return logged, int64(commit<<changeBits | min(change, 1<<changeBits-1)), true
	}
	if s == "" || s[0] < '0' || s[0] > '9' {
		return "", 0, false
	}
	count, err := strconv.ParseInt(s, 10, 64)
	if err != nil || count >= maxPlace {
		return "", 0, false
	}
	return counted, count, true
}

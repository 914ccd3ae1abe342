// Package places has what every bus keeps for a destination, whatever the bus is made of:
// the record of its place, when another copy may take it, and what becomes of it when a log
// has lost its beginning or is replayed.
package places

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/onewrite/onewrite"
)

// Record is what is stored for a destination.
type Record struct {
	// Cursor is where it is.
	Cursor onewrite.Cursor `json:"cursor"`
	// Epoch grows with every owner and every rewind.
	Epoch uint64 `json:"epoch"`
	// Owner names the copy that delivers.
	Owner string `json:"owner"`
	// Released: the owner has given up, anyone may take over at once.
	Released bool `json:"released,omitempty"`
	// Forgotten: the place is given up. The record stays and says so.
	Forgotten bool `json:"forgotten,omitempty"`
	// Rewinds counts the replays.
	Rewinds uint64 `json:"rewinds,omitempty"`
	// Topics are the patterns that its owner wanted; none: all.
	Topics []string `json:"topics,omitempty"`
	// Known is the offset of the newest event of each log that its owner knew of. All up to
	// there is to be delivered, also by a destination that has got nothing yet.
	Known map[string]uint64 `json:"known,omitempty"`
}

// Seen returns the greatest offset of a log that the destination knows of.
func (r *Record) Seen(log string) uint64 { return max(Seen(r.Cursor.Logs[log]), r.Known[log]) }

// Know notes that a log goes up to an offset at least.
func (r *Record) Know(log string, offset uint64) {
	if offset <= r.Known[log] {
		return
	}
	known := maps.Clone(r.Known) // an earlier copy of the record keeps its own
	if known == nil {
		known = map[string]uint64{}
	}
	known[log], r.Known = offset, known
}

// Parse reads a record as it is stored. Its cursor has a map of logs, though maybe an
// empty one. An error says that data is none.
func Parse(data []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, err
	}
	if r.Cursor.Logs == nil {
		r.Cursor.Logs = map[string]onewrite.LogCursor{}
	}
	return r, nil
}

// Rewind moves the place back to where each log is in back, and never forward: what is
// pending would be lost. Whoever delivered until now is fenced, and anyone may take it.
func (r *Record) Rewind(owner string, back map[string]onewrite.LogCursor) {
	logs := make(map[string]onewrite.LogCursor, len(r.Cursor.Logs))
	for log, lc := range r.Cursor.Logs {
		logs[log] = rewound(lc, back[log].Floor)
	}
	r.Cursor.Logs = logs
	r.Cursor.Ahead = slices.DeleteFunc(slices.Clone(r.Cursor.Ahead), func(a onewrite.Ahead) bool { return a.Offset > back[a.Log].Floor })
	if p := r.Cursor.Placed; p != "" && !strings.HasPrefix(p, onewrite.PlacedVoid) {
		r.Cursor.Placed = onewrite.PlacedVoid + p
	}
	r.Epoch++
	r.Rewinds++
	r.Owner, r.Released = owner, true
}

// rewound is a place from which everything behind floor is handed out again.
func rewound(c onewrite.LogCursor, floor uint64) onewrite.LogCursor {
	out := onewrite.LogCursor{Floor: min(c.Floor, floor)}
	for _, d := range c.Done {
		if d.To = min(d.To, floor); d.From <= d.To {
			out.Done = append(out.Done, d)
		}
	}
	return out
}

// MoveUp moves a place up to a log's first event, and counts the events before it that
// were not done.
func MoveUp(lc onewrite.LogCursor, first uint64) (up onewrite.LogCursor, lost uint64, moved bool) {
	if lc.Floor+1 >= first {
		return lc, 0, false
	}
	up = onewrite.LogCursor{Floor: first - 1}
	lost = up.Floor - lc.Floor
	for _, d := range lc.Done {
		if d.From <= up.Floor {
			lost -= min(d.To, up.Floor) - d.From + 1
		}
		if d.To > up.Floor {
			up.Done = append(up.Done, onewrite.Span{From: max(d.From, first), To: d.To})
		}
	}
	return up, lost, true
}

// Seen returns the greatest offset that a place knows of.
func Seen(lc onewrite.LogCursor) uint64 {
	seen := lc.Floor
	for _, d := range lc.Done {
		seen = max(seen, d.To)
	}
	return seen
}

// Clone copies a cursor.
func Clone(c onewrite.Cursor) onewrite.Cursor {
	c.Logs = maps.Clone(c.Logs)
	if c.Logs == nil {
		c.Logs = map[string]onewrite.LogCursor{}
	}
	for log, lc := range c.Logs {
		lc.Done = slices.Clone(lc.Done)
		c.Logs[log] = lc
	}
	c.Ahead = slices.Clone(c.Ahead)
	return c
}

// Held is what a destination has on the bus.
type Held struct {
	// Cursor is its place, and Epoch that of its newest owner.
	Cursor onewrite.Cursor
	Epoch  uint64
	// Pending counts the events that match its topics and are neither confirmed nor
	// parked, Parked those that are parked.
	Pending, Parked uint64
}

// View looks at the place of a destination that nobody delivers to here, and changes
// nothing. Held is called by one goroutine at a time.
type View interface {
	// Held returns what is there now; of a destination without a place, nothing.
	Held(ctx context.Context) (Held, error)
	// Parked returns at most limit parked events with a ref greater than after.
	Parked(ctx context.Context, after uint64, limit int) ([]onewrite.Parked, error)
}

// Claims watches records that belong to other copies. The zero value watches none yet.
type Claims struct {
	mu   sync.Mutex
	seen map[string]claim
}

// claim is a record as it was when it moved last. Its lease ends when it has not moved for
// so long by our own clock.
type claim struct {
	rev   uint64
	since time.Time
}

// MayTake reports whether a copy may take a destination's place now: it has it, it was
// given up, or the record has stood at revision rev for the lease.
func (c *Claims) MayTake(dest, copy string, r Record, rev uint64, lease time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen, watched := c.seen[dest]
	switch {
	case r.Released || r.Forgotten || r.Owner == copy, watched && seen.rev == rev && time.Since(seen.since) >= lease:
		delete(c.seen, dest)
		return true
	case !watched || seen.rev != rev:
		if c.seen == nil {
			c.seen = map[string]claim{}
		}
		c.seen[dest] = claim{rev: rev, since: time.Now()}
	}
	return false
}

// MaxReason bounds a destination's answer that is kept with a parked event, in bytes; it
// may be a page.
const MaxReason = 1 << 10

// Shorten cuts text to n bytes, between characters.
func Shorten(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "…"
}

// ValidName reports whether s can be part of what a bus makes in an engine: at most so
// many letters, digits, _ and -.
func ValidName(s string, most int) bool {
	if s == "" || len(s) > most {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

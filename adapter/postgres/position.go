package postgres

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/onewrite/onewrite"
)

// snapshot is a pg_snapshot: which transactions had ended when it was taken.
type snapshot struct {
	text string
	xmin uint64 // all before it had ended
	xmax uint64
	xip  []uint64 // in progress, ascending
}

// empty is the snapshot that saw nothing.
var empty = snapshot{text: "1:1:", xmin: 1, xmax: 1}

// listed bounds the transactions in progress that a position lists a second time.
const listed = 16

// short returns a snapshot that saw nothing which s did not see, and lists at most
// listed transactions in progress: all from the next one on count as such.
func (s snapshot) short() snapshot {
	if len(s.xip) <= listed {
		return s
	}
	return of(s.xip[listed], s.xip[:listed])
}

// meet returns the snapshot that saw what both saw.
func (s snapshot) meet(t snapshot) snapshot {
	xmax := min(s.xmax, t.xmax)
	xip := slices.Concat(s.xip, t.xip)
	slices.Sort(xip)
	xip = slices.Compact(xip)
	n, _ := slices.BinarySearch(xip, xmax)
	return of(xmax, xip[:n])
}

// has reports whether s saw a transaction.
func (s snapshot) has(xid uint64) bool {
	if xid >= s.xmax {
		return false
	}
	_, running := slices.BinarySearch(s.xip, xid)
	return !running
}

// add returns the snapshot that saw one transaction more. Those between are in
// progress.
func (s snapshot) add(xid uint64) snapshot {
	if xid < s.xmax {
		i, running := slices.BinarySearch(s.xip, xid)
		if !running {
			return s
		}
		return of(s.xmax, slices.Delete(slices.Clone(s.xip), i, i+1))
	}
	xip := slices.Clone(s.xip)
	for x := s.xmax; x < xid; x++ {
		xip = append(xip, x)
	}
	return of(xid+1, xip)
}

// join returns the snapshot that saw what either saw.
func (s snapshot) join(t snapshot) snapshot {
	xmax := max(s.xmax, t.xmax)
	var xip []uint64
	for _, x := range s.xip {
		if !t.has(x) {
			xip = append(xip, x)
		}
	}
	if xmax == s.xmax && len(xip) == len(s.xip) {
		return s
	}
	for x := s.xmax; x < xmax; x++ {
		if !t.has(x) {
			xip = append(xip, x)
		}
	}
	return of(xmax, xip)
}

// without returns the snapshot that did not see some transactions that s saw.
func (s snapshot) without(xids []uint64) snapshot {
	if len(xids) == 0 {
		return s
	}
	xip := slices.Concat(s.xip, xids)
	slices.Sort(xip)
	return of(s.xmax, slices.Compact(xip))
}

// of is the snapshot with that end and those transactions in progress.
func of(xmax uint64, xip []uint64) snapshot {
	s := snapshot{xmin: xmax, xmax: xmax, xip: xip}
	if len(xip) > 0 {
		s.xmin = xip[0]
	}
	s.text = fmt.Sprintf("%d:%d:%s", s.xmin, s.xmax, strings.Trim(s.array(), "{}"))
	return s
}

func parseSnapshot(s string) (snapshot, error) {
	f := strings.Split(s, ":")
	if len(f) != 3 {
		return snapshot{}, fmt.Errorf("postgres: %q is not a snapshot", s)
	}
	out := snapshot{text: s}
	var err error
	if out.xmin, err = strconv.ParseUint(f[0], 10, 64); err != nil {
		return snapshot{}, fmt.Errorf("postgres: %q is not a snapshot", s)
	}
	if out.xmax, err = strconv.ParseUint(f[1], 10, 64); err != nil {
		return snapshot{}, fmt.Errorf("postgres: %q is not a snapshot", s)
	}
	if f[2] == "" {
		return out, nil
	}
	for _, x := range strings.Split(f[2], ",") {
		n, err := strconv.ParseUint(x, 10, 64)
		if err != nil {
			return snapshot{}, fmt.Errorf("postgres: %q is not a snapshot", s)
		}
		out.xip = append(out.xip, n)
	}
	slices.Sort(out.xip)
	return out, nil
}

// array writes the transactions in progress as an array literal.
func (s snapshot) array() string {
	b := []byte{'{'}
	for i, x := range s.xip {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, x, 10)
	}
	return string(append(b, '}'))
}

// place is a position: everything visible in from was read, and of what became
// visible up to to, everything with a seq up to seq. Without to, seq means
// nothing.
type place struct {
	system uint64   // the cluster's system identifier
	line   uint64   // a failover and a recovery, of a crash or from a backup, begin a new one
	epoch  int64    // what the register epoch said, on disk, when it was read
	base   snapshot // when the register was moved, or an earlier one
	bus    string   // the bus that stores it
	from   snapshot
	to     snapshot // zero: not inside a page
	seq    int64
	top    int64 // greatest seq ever read
	claim  claim
}

const placeVersion = "pg1"

func (p place) pos() onewrite.Pos {
	var b strings.Builder
	b.Grow(96 + len(p.from.text) + len(p.to.text))
	b.WriteString(placeVersion)
	b.WriteByte('/')
	b.WriteString(strconv.FormatUint(p.system, 10))
	b.WriteByte('/')
	b.WriteString(strconv.FormatUint(p.line, 10))
	b.WriteByte('/')
	b.WriteString(strconv.FormatInt(p.epoch, 10))
	b.WriteByte('/')
	b.WriteString(p.base.text)
	b.WriteByte('/')
	b.WriteString(p.bus)
	b.WriteByte('/')
	b.WriteString(strconv.FormatInt(p.top, 10))
	b.WriteByte('/')
	b.WriteString(p.from.text)
	if p.to.text != "" {
		b.WriteByte('/')
		b.WriteString(p.to.text)
		b.WriteByte('/')
		b.WriteString(strconv.FormatInt(p.seq, 10))
	}
	if !p.claim.none() {
		b.WriteByte('/')
		b.WriteString(p.claim.String())
	}
	return onewrite.Pos(b.String())
}

// parsePlace reads a position; what it does not understand it refuses.
func parsePlace(pos onewrite.Pos) (place, error) {
	bad := fmt.Errorf("postgres: %q is not a position of this source; was the source's type or name changed? Start with an empty bus folder, or put the configuration back", pos)
	f := strings.Split(string(pos), "/")
	last := f[len(f)-1]
	if strings.HasPrefix(last, claimMark) {
		f = f[:len(f)-1]
	}
	if (len(f) != 8 && len(f) != 10) || f[0] != placeVersion {
		return place{}, bad
	}
	var p place
	var err error
	if p.system, err = strconv.ParseUint(f[1], 10, 64); err != nil {
		return place{}, bad
	}
	if p.line, err = strconv.ParseUint(f[2], 10, 64); err != nil {
		return place{}, bad
	}
	if p.epoch, err = strconv.ParseInt(f[3], 10, 64); err != nil {
		return place{}, bad
	}
	if p.base, err = parseSnapshot(f[4]); err != nil {
		return place{}, bad
	}
	p.bus = f[5]
	if p.top, err = strconv.ParseInt(f[6], 10, 64); err != nil {
		return place{}, bad
	}
	if p.from, err = parseSnapshot(f[7]); err != nil {
		return place{}, bad
	}
	if len(f) == 10 {
		if p.to, err = parseSnapshot(f[8]); err != nil {
			return place{}, bad
		}
		if p.seq, err = strconv.ParseInt(f[9], 10, 64); err != nil {
			return place{}, bad
		}
	}
	if strings.HasPrefix(last, claimMark) {
		if p.claim, err = parseClaim(last); err != nil {
			return place{}, bad
		}
	}
	return p, nil
}

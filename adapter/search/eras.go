package search

import (
	"slices"
	"time"

	"github.com/onewrite/onewrite"
)

const (
	// step is how far ahead versions are reserved, so that they are seldom stored:
	// so many rows, or a gigabyte of log.
	countedStep = 1 << 20
	loggedStep  = 1 << (30 - commitShift + changeBits)
	// slack is how much later the time of a row may be than that of one with a greater
	// number: number and time are taken one after the other by sessions that run at
	// once. Commits in a log have no such slack.
	slack = int64(time.Second / time.Microsecond)
	// ahead is how far a time may be in the future before nothing is concluded from it.
	ahead = time.Minute
	// maxEras bounds what is stored. Databases are not restored that often.
	maxEras = 64
)

// era is a stretch of a source's history in which the numbers grow. A database that
// was restored from a backup, or moved, counts again from below while its time goes
// on: that begins a new era, the versions of which are above all of before. To which
// era an event belongs is told by its time, so that a repeat has the same version.
type era struct {
	From int64 `json:"from"` // microseconds since 1970
	Base int64 `json:"base"` // what is added to the place
}

// track is one numbering of one source.
type track struct {
	Eras []era `json:"eras"`
	// High and At are the greatest place and the latest time seen in the last era.
	High int64 `json:"high"`
	At   int64 `json:"at"`
	// Reserved is the greatest place in the last era that may have become a version.
	Reserved int64 `json:"reserved"`
}

// of returns the index of the era of a time; without one it is the last.
func (t *track) of(at time.Time) int {
	if at.IsZero() {
		return len(t.Eras) - 1
	}
	i := len(t.Eras) - 1
	for i > 0 && t.Eras[i].From > at.UnixMicro() {
		i--
	}
	return i
}

// see notes an event; fresh is true if it began a new era, and store if what is
// kept has to be stored before the event is written.
func (t *track) see(numbering string, n int64, at, now time.Time) (fresh, store bool) {
	if len(t.Eras) == 0 {
		t.Eras = []era{{}}
	}
	if t.of(at) != len(t.Eras)-1 {
		return false, false // a repeat from before
	}
	reach, allowed := int64(loggedStep), int64(0)
	if numbering == counted {
		reach, allowed = countedStep, slack
	}
	timed := !at.IsZero() && !at.After(now.Add(ahead))
	if timed && t.At > 0 && n <= t.High && at.UnixMicro() > t.At+allowed {
		last := t.Eras[len(t.Eras)-1]
		t.Eras = append(t.Eras, era{From: t.At + 1, Base: last.Base + t.Reserved + 1})
		t.High, t.Reserved, fresh = n, 0, true
	}
	if timed {
		t.At = max(t.At, at.UnixMicro())
	}
	t.High = max(t.High, n)
	if n > t.Reserved || fresh {
		t.Reserved, store = n+reach, true
	}
	return fresh, store
}

// version is that of a place; never 0, which stands for none.
func (t *track) version(n int64, at time.Time) int64 { return t.Eras[t.of(at)].Base + n + 1 }

// gave reports whether a version can be that of an event of this track.
func (t *track) gave(version int64) bool {
	return version <= t.Eras[len(t.Eras)-1].Base+t.Reserved+1
}

// merge takes over what another copy has stored meanwhile.
func (t *track) merge(other *track) {
	switch {
	case len(other.Eras) > len(t.Eras):
		*t = *other
		t.Eras = slices.Clone(other.Eras)
	case len(other.Eras) == len(t.Eras) && slices.Equal(other.Eras, t.Eras):
		t.High, t.At, t.Reserved = max(t.High, other.High), max(t.At, other.At), max(t.Reserved, other.Reserved)
	case len(other.Eras) == len(t.Eras): // both began one: the stored one counts
		*t = *other
		t.Eras = slices.Clone(other.Eras)
	}
}

// trackName is the name of an event's track.
func trackName(e *onewrite.Event, numbering string) string { return e.Source + "/" + numbering }

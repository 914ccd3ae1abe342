package history

import (
	"maps"
	"time"
)

// loud follows whether onewrite said aloud what was done to it.
type loud struct {
	*checker
	gaps     map[string]bool // that were said, by any copy
	warnings map[int]int     // of each copy
	open     []open
}

// open is a fault that has not shown yet.
type open struct {
	Fault
	warnings map[int]int // of each copy before it; nil: no sample is later
}

func (c *checker) loud() *loud {
	l := &loud{checker: c, gaps: map[string]bool{}, warnings: map[int]int{}}
	for _, f := range c.says {
		l.open = append(l.open, open{Fault: f})
	}
	return l
}

// sample holds one sample against the faults that have to show.
func (l *loud) sample(s *Sample) {
	rest := l.open[:0]
	for _, f := range l.open {
		if s.At > f.At && f.warnings == nil {
			f.warnings = maps.Clone(l.warnings)
		}
		switch {
		case s.At > f.Until+patience:
			l.silent(&f)
		case s.At <= f.At || !l.shows(&f, s):
			rest = append(rest, f)
		}
	}
	l.open = rest
	if s.Up {
		l.gaps[s.Gap], l.warnings[s.Copy] = true, s.Warnings
	}
}

// shows reports whether a sample says what the fault asks for.
func (l *loud) shows(f *open, s *Sample) bool {
	if f.Says == "gap" {
		return s.Up && s.Gap != "" && !l.gaps[s.Gap]
	}
	if !s.Up || s.Warnings > f.warnings[s.Copy] || !well(s.State) {
		return true
	}
	for _, d := range s.Sinks {
		if !well(d.State) {
			return true
		}
	}
	return false
}

func well(state string) bool { return state == "ok" || state == "catching-up" }

func (l *loud) silent(f *open) {
	law := "I11"
	if f.Says == "gap" {
		law = "I12"
	}
	l.fail(law, "%s of %s, and within %v onewrite did not say %s", f.Kind, f.On, time.Duration(patience), f.Says)
}

// end judges the faults that had not shown when the run ended.
func (l *loud) end() {
	for i := range l.open {
		l.silent(&l.open[i])
	}
}

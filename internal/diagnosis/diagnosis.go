// Package diagnosis is the form of what onewrite doctor finds. Adapters fill it,
// the program prints it.
package diagnosis

import (
	"fmt"
	"strings"
)

// Severity says how bad a finding is. It is written as its word.
type Severity int

// OK is what is as it should be, Warning what works and is unwise, Problem what
// keeps events from arriving or lets the application break their order.
const (
	OK Severity = iota
	Warning
	Problem
)

var words = [...]string{"ok", "warning", "problem"}

// String returns the word.
func (s Severity) String() string {
	if s < OK || s > Problem {
		return fmt.Sprintf("severity(%d)", int(s))
	}
	return words[s]
}

// MarshalText returns the word; a severity that is none is an error.
func (s Severity) MarshalText() ([]byte, error) {
	if s < OK || s > Problem {
		return nil, fmt.Errorf("diagnosis: %v is not one of ok, warning, problem", s)
	}
	return []byte(words[s]), nil
}

// UnmarshalText reads the word.
func (s *Severity) UnmarshalText(text []byte) error {
	for i, w := range words {
		if w == string(text) {
			*s = Severity(i)
			return nil
		}
	}
	return fmt.Errorf("diagnosis: %q is not one of ok, warning, problem", text)
}

// Finding is one thing that was looked at. It holds no secret.
type Finding struct {
	Severity Severity `json:"severity"`
	// Subject is what was looked at: "bus", "source shop", "destination archive".
	Subject string `json:"subject"`
	// Check names what was looked for; it is the same in every run.
	Check string `json:"check"`
	// Text says what was found, in one line.
	Text string `json:"text"`
	// Cure is the SQL, the command or the setting that mends it, ready to be
	// copied; empty where nothing is to be done.
	Cure string `json:"cure,omitempty"`
}

// List collects what an adapter finds. The zero value is empty.
type List struct {
	// Found are the findings, without their subjects.
	Found []Finding
	// Prefix stands before the errors of the adapter, and is left out of findings.
	Prefix string
	// Otherwise is the cure of an error that names none.
	Otherwise string
}

// Add adds a finding; its text is made of format and args.
func (l *List) Add(s Severity, check, cure, format string, args ...any) {
	l.Found = append(l.Found, Finding{Severity: s, Check: check, Text: fmt.Sprintf(format, args...), Cure: cure})
}

// OK adds what is as it should be.
func (l *List) OK(check, format string, args ...any) { l.Add(OK, check, "", format, args...) }

// Failed adds an error, whose last words, behind the last semicolon, are the cure.
func (l *List) Failed(check string, err error) {
	text, cure := strings.TrimPrefix(err.Error(), l.Prefix), l.Otherwise
	if i := strings.LastIndex(text, "; "); i > 0 {
		text, cure = text[:i], text[i+2:]
	}
	l.Add(Problem, check, cure, "%s", text)
}

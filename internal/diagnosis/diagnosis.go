// Package diagnosis is the form of what onewrite doctor finds. Adapters fill it,
// the program prints it.
package diagnosis

import "fmt"

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

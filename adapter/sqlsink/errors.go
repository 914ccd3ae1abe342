package sqlsink

import (
	"errors"
	"fmt"

	"github.com/onewrite/onewrite"
)

// refusal is a server's or our own No to one event.
type refusal struct {
	what, cure string
	err        error // the server's
}

func (r *refusal) Error() string {
	s := r.what
	if r.err != nil {
		if s != "" {
			s += ": "
		}
		s += r.err.Error()
	}
	return s + "; cure: " + r.cure
}

// Is makes every refusal an ErrRejected.
func (r *refusal) Is(target error) bool { return target == onewrite.ErrRejected }

func (r *refusal) Unwrap() error { return r.err }

func refuse(what, cure string) error { return &refusal{what: what, cure: cure} }

// answer is a failure that the server reported for this event without refusing it.
type answer struct {
	err  error
	cure string
}

func (a *answer) Error() string { return a.err.Error() + "; cure: " + a.cure }

func (a *answer) Unwrap() error { return a.err }

// Answered reports that the server was reached.
func (a *answer) Answered() bool { return true }

// verdict is what a server's error says.
type verdict int

const (
	outage   verdict = iota // it may pass by itself
	refused                 // this event will never do
	stale                   // as refused, if the tables are still as they were read
	denied                  // a right is missing
	oversize                // as refused: more than the server takes
)

func isRefused(err error) bool { return errors.Is(err, onewrite.ErrRejected) }

// judged turns a server's error about a table into one of the contract.
func judged(v verdict, err error, cure string) error {
	switch v {
	case refused, stale, oversize:
		return &refusal{err: err, cure: cure}
	case denied:
		return &answer{err: err, cure: cure}
	}
	if cure != "" {
		return fmt.Errorf("%w; cure: %s", err, cure)
	}
	return err
}

// errFenced is the end of an older sink.
func errFenced(destination string) error {
	return fmt.Errorf("sqlsink: destination %s: %w", destination, onewrite.ErrFenced)
}

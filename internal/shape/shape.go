// Package shape says what a destination gets of an event: nothing, the event as it is,
// or another form of it. A filter is an expression in CEL, a transformation a program
// in jq, and topic and key are templates. All of it is bounded: what an expression
// costs, how long a program runs, how large its result is.
package shape

import (
	"errors"
	"fmt"

	"github.com/onewrite/onewrite"
)

// Config is what a destination asks for. Empty fields change nothing.
type Config struct {
	// Filter is a CEL expression that is true for the events wanted.
	Filter string
	// Transform is a jq program that makes the payload of the destination from the
	// event's.
	Transform string
	// Topic and Key are templates of the topic and the key that the destination gets.
	Topic, Key string
	// MaxData bounds a transformed payload, in bytes; 0 is 1 MiB.
	MaxData int
}

// Shape applies a [Config]. It may be used by several goroutines at once.
type Shape struct {
	filter     *filter
	transform  *transform
	topic, key *Template
}

// New compiles c. A nil Shape: c changes nothing. The error names the field, and says
// what is wrong in it.
func New(c Config) (*Shape, error) {
	if c == (Config{MaxData: c.MaxData}) {
		return nil, nil
	}
	s := &Shape{}
	var errs []error
	compile := func(field, text string, f func() error) {
		if text == "" {
			return
		}
		if err := f(); err != nil {
			errs = append(errs, &FieldError{Field: field, Err: err})
		}
	}
	compile("filter", c.Filter, func() (err error) { s.filter, err = newFilter(c.Filter); return })
	compile("transform", c.Transform, func() (err error) { s.transform, err = newTransform(c.Transform, c.MaxData); return })
	compile("topic", c.Topic, func() (err error) { s.topic, err = ParseTemplate(c.Topic); return })
	compile("key", c.Key, func() (err error) { s.key, err = ParseTemplate(c.Key); return })
	return s, errors.Join(errs...)
}

// FieldError is what is wrong with a field of [Config], or why it cannot be applied to
// an event.
type FieldError struct {
	Field string
	Err   error
}

// Error begins with the name of the field.
func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *FieldError) Unwrap() error { return e.Err }

// Apply returns what the destination gets of e; keep is false if it does not want it. e
// is left as it is. The error is a [FieldError] that says what about this event is
// wrong.
func (s *Shape) Apply(e *onewrite.Event) (out onewrite.Event, keep bool, err error) {
	out = *e
	v := &view{e: e}
	if s.filter != nil {
		if keep, err = s.filter.wants(v); err != nil || !keep {
			return out, false, fail("filter", err)
		}
	}
	if s.topic != nil {
		if out.Topic, err = s.topic.expand(v); err == nil && out.Topic == "" {
			err = errors.New("the topic is empty")
		}
		if err != nil {
			return out, false, fail("topic", err)
		}
	}
	if s.key != nil {
		if out.Key, err = s.key.expand(v); err != nil {
			return out, false, fail("key", err)
		}
	}
	if s.transform != nil && e.Data != nil {
		data, keep, err := s.transform.run(v)
		if err != nil || !keep {
			return out, false, fail("transform", err)
		}
		out.Data, out.ContentType = data, "application/json"
	}
	return out, true, nil
}

func fail(field string, err error) error {
	if err == nil {
		return nil
	}
	return &FieldError{Field: field, Err: err}
}

// errNotJSON is what is said of a payload that is to be looked into.
func errNotJSON(e *onewrite.Event) error {
	return fmt.Errorf("the payload (%s) is not JSON", e.ContentType)
}

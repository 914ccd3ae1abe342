// Package causality carries in a context what the events published with it follow
// from: the W3C trace context, and the event whose handler publishes them. Package
// inbox puts it there, package outbox writes it into the headers.
//
// Sources: W3C Trace Context; the extensions causationid and correlationid as
// message buses have them: a causation id names the event that caused this one, a
// correlation id the first of the whole chain.
package causality

import (
	"context"
	"strings"
)

// The attributes that carry it.
const (
	Traceparent = "traceparent"
	Tracestate  = "tracestate"
	Causation   = "causationid"
	Correlation = "correlationid"
)

// Trace is a W3C trace context; the zero value is none.
type Trace struct{ Parent, State string }

// Cause is the event that is being handled; the zero value is none.
type Cause struct {
	// ID is its id, Correlation the id of the first event of its chain.
	ID, Correlation string
}

type (
	traceKey struct{}
	causeKey struct{}
)

// WithTrace returns a ctx that carries t.
func WithTrace(ctx context.Context, t Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// TraceOf returns the trace context that ctx carries.
func TraceOf(ctx context.Context) Trace {
	t, _ := ctx.Value(traceKey{}).(Trace)
	return t
}

// WithCause returns a ctx that carries c.
func WithCause(ctx context.Context, c Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, c)
}

// CauseOf returns the event that is being handled in ctx.
func CauseOf(ctx context.Context) Cause {
	c, _ := ctx.Value(causeKey{}).(Cause)
	return c
}

// CauseBy returns the cause that the event of this id is; correlation is what it
// carries itself, and empty if it is the first of its chain. What cannot be a header
// is left out.
func CauseBy(id, correlation string) Cause {
	if !speakable(id) {
		return Cause{}
	}
	if !speakable(correlation) {
		correlation = id
	}
	return Cause{id, correlation}
}

func speakable(s string) bool { return s != "" && len(s) <= 255 && Printable(s) }

// Checked returns the trace context of these values. What is malformed is ignored,
// as the standard demands: a trace never stops a transaction.
func Checked(parent, state string) Trace {
	if !IsTraceparent(parent) {
		return Trace{}
	}
	if !isTracestate(state) {
		state = ""
	}
	return Trace{parent, state}
}

// IsTraceparent follows the W3C recommendation: version-traceid-parentid-flags
// in lower-case hex, no version ff, no ids of zeros; a version after 00 may
// have more fields.
func IsTraceparent(s string) bool {
	if len(s) < 55 || len(s) > 255 || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return false
	}
	version, traceID, spanID, flags := s[:2], s[3:35], s[36:52], s[53:55]
	if !lowerHex(version) || !lowerHex(traceID) || !lowerHex(spanID) || !lowerHex(flags) || version == "ff" {
		return false
	}
	if strings.Trim(traceID, "0") == "" || strings.Trim(spanID, "0") == "" {
		return false
	}
	if len(s) == 55 {
		return true
	}
	return version != "00" && s[55] == '-' && Printable(s)
}

// isTracestate checks what could harm on the way: at most 512 printable
// characters of key=value members.
func isTracestate(s string) bool {
	if s == "" || len(s) > 512 || !Printable(s) {
		return false
	}
	for m := range strings.SplitSeq(s, ",") {
		if m = strings.TrimSpace(m); m != "" && strings.IndexByte(m, '=') < 1 {
			return false
		}
	}
	return true
}

func lowerHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Printable reports whether s is of printable ASCII.
func Printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

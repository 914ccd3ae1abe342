package outbox

import (
	"context"
	"strings"
)

// trace is a W3C trace context; the zero value is none.
type trace struct{ parent, state string }

type traceKey struct{}

// WithTraceparent returns a ctx that carries a W3C trace context for the events
// published with it. tracestate may be empty. What is malformed is ignored, as
// the standard demands: a trace never stops a transaction.
func WithTraceparent(ctx context.Context, traceparent, tracestate string) context.Context {
	return context.WithValue(ctx, traceKey{}, checkedTrace(traceparent, tracestate))
}

// TraceFrom makes Publish ask f for the W3C trace context of ctx; it returns
// empty strings when there is none, and then that of [WithTraceparent] counts.
// What is malformed is ignored. For OpenTelemetry:
//
//	outbox.TraceFrom(func(ctx context.Context) (string, string) {
//		c := propagation.MapCarrier{}
//		propagation.TraceContext{}.Inject(ctx, c)
//		return c["traceparent"], c["tracestate"]
//	})
func TraceFrom(f func(ctx context.Context) (traceparent, tracestate string)) Option {
	return func(p *Publisher) { p.traceFrom = f }
}

// trace returns the trace context of ctx.
func (p *Publisher) trace(ctx context.Context) trace {
	if p.traceFrom != nil {
		if t := checkedTrace(p.traceFrom(ctx)); t.parent != "" {
			return t
		}
	}
	t, _ := ctx.Value(traceKey{}).(trace)
	return t
}

func checkedTrace(parent, state string) trace {
	if !isTraceparent(parent) {
		return trace{}
	}
	if !isTracestate(state) {
		state = ""
	}
	return trace{parent, state}
}

// isTraceparent follows the W3C recommendation: version-traceid-parentid-flags
// in lower-case hex, no version ff, no ids of zeros; a version after 00 may
// have more fields.
func isTraceparent(s string) bool {
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
	return version != "00" && s[55] == '-' && printable(s)
}

// isTracestate checks what could harm on the way: at most 512 printable
// characters of key=value members.
func isTracestate(s string) bool {
	if s == "" || len(s) > 512 || !printable(s) {
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

func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

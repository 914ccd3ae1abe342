package outbox

import (
	"context"

	"github.com/onewrite/onewrite/internal/causality"
)

// WithTraceparent returns a ctx that carries a W3C trace context for the events
// published with it. tracestate may be empty. What is malformed is ignored, as
// the standard demands: a trace never stops a transaction.
func WithTraceparent(ctx context.Context, traceparent, tracestate string) context.Context {
	return causality.WithTrace(ctx, causality.Checked(traceparent, tracestate))
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

// context is what the events follow from, by the attributes that say so; nil when
// nothing is known.
func (p *Publisher) context(ctx context.Context) []attribute {
	var out []attribute
	add := func(name, value string) {
		if value != "" {
			out = append(out, attribute{name, value})
		}
	}
	t := causality.Trace{}
	if p.traceFrom != nil {
		t = causality.Checked(p.traceFrom(ctx))
	}
	if t.Parent == "" {
		t = causality.TraceOf(ctx)
	}
	add(causality.Traceparent, t.Parent)
	add(causality.Tracestate, t.State)
	c := causality.CauseOf(ctx)
	add(causality.Causation, c.ID)
	add(causality.Correlation, c.Correlation)
	return out
}

// attribute is one header that the context of a call gives.
type attribute struct{ name, value string }

// with returns hs and the attributes that it does not set itself. The state of a
// trace goes with its parent. hs itself is the caller's and stays as it is.
func with(hs map[string]string, context []attribute) map[string]string {
	_, ownTrace := hs[causality.Traceparent]
	var all map[string]string
	for _, a := range context {
		if _, own := hs[a.name]; own || ownTrace && a.name == causality.Tracestate {
			continue
		}
		if all == nil {
			all = make(map[string]string, len(hs)+len(context))
			for k, v := range hs {
				all[k] = v
			}
		}
		all[a.name] = a.value
	}
	if all == nil {
		return hs
	}
	return all
}

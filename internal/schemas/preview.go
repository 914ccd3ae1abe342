package schemas

import "github.com/onewrite/onewrite"

// Preview is what can be told of an event without asking the registry.
type Preview struct {
	// Subject is where its schema is.
	Subject string
	// Schema is the one that follows from the event alone, as it is registered if the
	// subject has none yet; empty for an event that is no row change.
	Schema string
}

// Look says by which schema an event would be written to a topic. The error is that of
// Encode, as far as it does not take the registry.
func Look(c Config, topic string, ev *onewrite.Event) (Preview, error) {
	e, err := New(c)
	if err != nil || ev.Data == nil {
		return Preview{}, err
	}
	p, err := read(ev)
	if err != nil {
		return Preview{}, err
	}
	out := Preview{Subject: e.subjectOf(topic, ev, p)}
	if p.row == nil {
		return out, nil
	}
	if out.Schema, err = e.form.derive(p.row.evolve(nil, e.form.keepsDropped), nil); err != nil {
		return out, refuse("no schema follows from it: %w", err)
	}
	codec, err := e.form.parse(out.Schema)
	if err != nil {
		return out, refuse("no schema follows from it: %w", err)
	}
	if _, err := codec.append(nil, p); err != nil {
		return out, refuse("%w; make it fit: transform: in the destination", err)
	}
	return out, nil
}

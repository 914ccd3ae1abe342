package postgres

import (
	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/outbox"
)

// invalidTopic is that of a message which cannot be the event that it was meant to be.
const invalidTopic = "onewrite.invalid"

// message acts on what pg_logical_emit_message wrote.
func (r *logReader) message(m *pgoutput.Message) error {
	prefix := string(m.Prefix)
	wanted := r.cfg.Messages && prefix == outbox.LogPrefix
	if !m.Transactional {
		if wanted && !r.astray {
			r.astray = true
			r.log.Warn("a message in the log belongs to no transaction, so it is no event and is left out, as will be others; write pg_logical_emit_message(true, …)", "lsn", m.LSN)
		}
		return nil
	}
	if wanted {
		r.emitted(m)
	} else if r.cfg.DDL && prefix == ddlPrefix {
		r.ddl(m)
	}
	r.tx.index++
	if prefix == ownPrefix && r.fill != nil {
		return r.fill.mark(r, m.Content)
	}
	return nil
}

// emitted makes the event of a message. One that can be none is committed all the same:
// it comes as it is, under a topic of its own.
func (r *logReader) emitted(m *pgoutput.Message) {
	var c change
	if !r.stamp(&c) {
		return
	}
	e := r.env.bare(&c)
	from, err := outbox.ParseLog(m.Content)
	if err != nil {
		r.invalid(&e, m, err)
	} else {
		if from.ID != "" {
			e.ID = from.ID
		}
		e.Topic, e.Type, e.Key, e.Header, e.ContentType, e.Data = from.Topic, from.Type, from.Key, from.Headers, from.ContentType, from.Payload
		if e.Type == "" {
			e.Type = e.Topic
		}
	}
	r.hold(&c, true, item{event: &e})
}

// invalid makes an event of a message that cannot be the one that was meant.
func (r *logReader) invalid(e *onewrite.Event, m *pgoutput.Message, why error) {
	e.Topic, e.Type, e.ContentType = invalidTopic, "invalid", "application/octet-stream"
	e.Data = append([]byte{}, m.Content...)
	r.log.Warn("a message in the log is no event; it is delivered with the topic "+invalidTopic, "why", why, "lsn", m.LSN, "xid", e.Tx.ID)
}

// bare is an event of which only the place is known.
func (v *envelope) bare(c *change) onewrite.Event {
	all := string(v.words(c))
	return onewrite.Event{
		ID: all[:36], Seq: all[36:], Source: v.name, Time: c.at,
		Tx: onewrite.Tx{ID: v.digits(c.xid), Index: c.order},
	}
}

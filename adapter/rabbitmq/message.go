package rabbitmq

import (
	"encoding/json"
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

const (
	attrPrefix = "cloudEvents_"
	hdrMore    = "Onewrite-Headers" // transport headers that cannot be headers here

	// maxShort is the longest short string of AMQP in bytes: a routing key, a
	// property, the name of a header. Some clients take names of 128 only.
	maxShort = 255
	maxName  = 128

	// reserve is what of a frame the properties beside the headers may take.
	reserve = 2 << 10
)

// known saves building the header names of the usual attributes.
var known = func() map[string]string {
	m := map[string]string{}
	for _, n := range []string{"specversion", "id", "source", "type", "time", "datacontenttype", "topic", "partitionkey", "sequence", "traceparent", "tracestate", "txid", "txindex", "txlast", "subject", "dataschema"} {
		m[n] = attrPrefix + n
	}
	return m
}()

// encoder makes messages of events. It is reused: the headers it returns are valid
// until the next.
type encoder struct {
	attrs   []cloudevents.Attr
	headers amqp.Table
	size    int // of the headers, in bytes
}

func (c *encoder) set(name, value string) {
	c.headers[name] = value
	c.size += len(name) + len(value) + 6
}

// encode makes the message of e: in binary mode, or as structured JSON when the
// headers would not fit into a frame, which AMQP cannot split.
func (c *encoder) encode(e *onewrite.Event, frame int) (amqp.Publishing, error) {
	m := amqp.Publishing{DeliveryMode: amqp.Persistent, AppId: defaultName, MessageId: short(e.ID), Type: short(e.Type),
		ContentType: short(e.ContentType), Body: e.Data}
	if e.Time.Unix() > 0 {
		m.Timestamp = e.Time
	}
	if c.headers == nil {
		c.headers = amqp.Table{}
	}
	clear(c.headers)
	c.size = 0
	c.attrs = cloudevents.Attributes(c.attrs[:0], e)
	for _, a := range c.attrs {
		if a.Name == "datacontenttype" && m.ContentType != "" {
			continue // it is the property
		}
		name, ok := known[a.Name]
		if !ok {
			name = attrPrefix + a.Name
		}
		c.set(name, a.Value)
	}
	c.transport(e)
	if frame <= 0 {
		frame = 128 << 10
	}
	m.Headers = c.headers
	if c.size > frame-reserve {
		m.Headers, m.ContentType, m.Body = nil, cloudevents.Structured, cloudevents.AppendStructured(nil, e)
	}
	if len(m.Body) > maxBody {
		return m, fmt.Errorf("rabbitmq: event %s has %d bytes, more than any broker takes: %w; lower max_event", e.ID, len(m.Body), onewrite.ErrRejected)
	}
	return m, nil
}

// maxBody is the largest that max_message_size can be set to, in bytes.
const maxBody = 512 << 20

// short returns a property that AMQP can carry, else nothing: what it says is in the
// headers too.
func short(s string) string {
	if len(s) > maxShort {
		return ""
	}
	return s
}

// transport writes the headers that are no attributes: under their own names, or as
// one JSON object.
func (c *encoder) transport(e *onewrite.Event) {
	if len(e.Header) == 0 {
		return
	}
	var odd map[string]string
	for _, h := range cloudevents.Headers(nil, e) {
		if plain(h.Name) {
			c.set(h.Name, h.Value)
			continue
		}
		if odd == nil {
			odd = map[string]string{}
		}
		odd[h.Name] = h.Value
	}
	if odd != nil {
		text, _ := json.Marshal(odd) // a map of strings cannot fail
		c.set(hdrMore, string(text))
	}
}

// plain reports whether a header's name means nothing to RabbitMQ or to us. CC and
// BCC are routing keys for it, and close the channel when they are a text.
func plain(name string) bool {
	return name != "" && len(name) <= maxName && name != "CC" && name != "BCC" && name != hdrMore &&
		!strings.HasPrefix(name, "x-") && !strings.HasPrefix(strings.ToLower(name), "cloudevents")
}

// fingerprint is by what a returned message is known. It holds no number of ours: the
// message should look the same whenever it comes.
type fingerprint struct{ key, messageID, id, source string }

func printOf(key, messageID string, h amqp.Table) fingerprint {
	id, _ := h[attrPrefix+"id"].(string)
	source, _ := h[attrPrefix+"source"].(string)
	return fingerprint{key, messageID, id, source}
}

// routingKey fills the template. What is filled in is not looked through again.
func (s *Sink) routingKey(e *onewrite.Event) string {
	if s.c.RoutingKey == "{topic}" {
		return e.Topic
	}
	return strings.NewReplacer("{topic}", e.Topic, "{key}", e.Key, "{source}", e.Source, "{type}", e.Type).Replace(s.c.RoutingKey)
}

package nats

import (
	"encoding/json"
	"strings"

	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// Our own headers. They are not part of the event.
const (
	private = "Onewrite-"
	hdrPos  = private + "Pos" // the source's position just after the event
	hdrMore = cloudevents.NATSHeaders

	hdrContentType = "content-type"
	structured     = cloudevents.Structured
	attrPrefix     = "ce-"

	// maxHeader is the size of a header block that JetStream stores, less room
	// for what we and it add.
	maxHeader = 56 << 10
)

// encoder writes events as messages. It is reused from event to event; the
// message it returns is valid until the next.
type encoder struct {
	msg   natsgo.Msg
	attrs []cloudevents.Attr
	slab  []string
	body  []byte // of a pack
	one   []byte // the event that is added to it
}

// known saves building the header names of the usual attributes.
var known = func() map[string]string {
	m := map[string]string{}
	for _, n := range []string{"specversion", "id", "source", "type", "time", "datacontenttype", "topic", "partitionkey", "sequence", "traceparent", "tracestate", "txid", "txindex", "txlast", "subject", "dataschema"} {
		m[n] = attrPrefix + n
	}
	return m
}()

func (c *encoder) set(name, value string) {
	c.slab = append(c.slab, value)
	n := len(c.slab)
	c.msg.Header[name] = c.slab[n-1 : n : n]
}

// encode writes e for subject, in binary mode, or as structured JSON when the
// attributes are too large for a header.
func (c *encoder) encode(subject string, e *onewrite.Event) *natsgo.Msg {
	if c.msg.Header == nil {
		c.msg.Header = natsgo.Header{}
	}
	clear(c.msg.Header)
	c.slab = c.slab[:0]
	c.msg.Subject, c.msg.Reply, c.msg.Data = subject, "", e.Data
	c.attrs = cloudevents.Attributes(c.attrs[:0], e)
	size := 0
	for _, a := range c.attrs {
		name, ok := known[a.Name]
		if !ok {
			name = attrPrefix + a.Name
		}
		value := cloudevents.Escape(a.Value)
		c.set(name, value)
		size += len(name) + len(value) + 4
	}
	if e.ContentType != "" { // what CloudEvents SDKs read, beside the attribute
		c.set(hdrContentType, cloudevents.Escape(e.ContentType))
		size += len(hdrContentType) + len(e.ContentType) + 4
	}
	size += c.transport(e)
	if size <= maxHeader {
		return &c.msg
	}
	clear(c.msg.Header)
	c.set(hdrContentType, structured)
	c.msg.Data = cloudevents.AppendStructured(nil, e)
	return &c.msg
}

// transport writes the headers that are no attributes under their own names,
// where NATS gives them back unchanged, and the others as one JSON object.
func (c *encoder) transport(e *onewrite.Event) (size int) {
	if len(e.Header) == 0 {
		return 0
	}
	var odd map[string]string
	for _, h := range cloudevents.Headers(nil, e) {
		if faithful(h.Name, h.Value) {
			c.set(h.Name, h.Value)
			size += len(h.Name) + len(h.Value) + 4
			continue
		}
		if odd == nil {
			odd = map[string]string{}
		}
		odd[h.Name] = h.Value
	}
	if odd != nil {
		text, _ := json.Marshal(odd) // a map of strings cannot fail
		value := cloudevents.Escape(string(text))
		c.set(hdrMore, value)
		size += len(hdrMore) + len(value) + 4
	}
	return size
}

// faithful reports whether a header means nothing to NATS or to us and comes
// back as it is.
func faithful(name, value string) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == ':' {
			return false
		}
	}
	lower := strings.ToLower(name)
	if name == "" || lower == hdrContentType || lower == "status" || lower == "description" ||
		strings.HasPrefix(lower, "nats-") || strings.HasPrefix(lower, "ce-") || strings.HasPrefix(lower, "onewrite-") {
		return false
	}
	for i := 0; i < len(value); i++ {
		if c := value[i]; c < ' ' || c == 0x7f {
			return false
		}
	}
	return strings.TrimSpace(value) == value
}

// decode reads an event back. The error says what is wrong with the message.
func decode(h natsgo.Header, data []byte) (onewrite.Event, error) {
	return cloudevents.ParseNATS(h, data)
}

func first(h natsgo.Header, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

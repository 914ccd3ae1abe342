package outbox

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/onewrite/onewrite/internal/causality"
)

const (
	maxTopic       = 255
	maxKey         = 1024
	maxType        = 255
	maxContentType = 255
	maxHeaderName  = 255
)

// checker collects the problems of one call.
type checker struct {
	problems []Problem
	event    int
}

func (c *checker) add(field, format string, args ...any) {
	c.problems = append(c.problems, Problem{c.event, field, fmt.Sprintf(format, args...)})
}

func (c *checker) check(e *Event) {
	c.id(e.ID)
	c.topic(e.Topic)
	if len(e.Key) > maxKey {
		c.add("Key", "has %d bytes; shorten it to %d", len(e.Key), maxKey)
	}
	if !utf8.ValidString(e.Key) || strings.IndexByte(e.Key, 0) >= 0 {
		c.add("Key", "is not UTF-8 without NUL; encode it, for example in hex")
	}
	if len(e.Type) > maxType {
		c.add("Type", "has %d bytes; shorten it to %d", len(e.Type), maxType)
	}
	if !plainText(e.Type) {
		c.add("Type", "has a control character or is not UTF-8; use letters, digits and dots")
	}
	if e.Payload != nil {
		c.content(e)
	}
	c.headers(e.Headers)
}

func (c *checker) id(id string) {
	switch {
	case id == "":
	case !isUUID(id):
		c.add("ID", "is no UUID of 36 characters; leave it empty or use outbox.NewID()")
	case id == nilID:
		c.add("ID", "is the nil UUID, which many events would share; leave it empty or use outbox.NewID()")
	}
}

func (c *checker) topic(t string) {
	switch {
	case t == "":
		c.add("Topic", `is empty; name one, such as "order.placed"`)
	case len(t) > maxTopic:
		c.add("Topic", "has %d bytes; shorten it to %d", len(t), maxTopic)
	case !isTopic(t):
		c.add("Topic", `%q is not made of letters, digits, _ and - joined by single dots; write it like "order.placed"`, t)
	}
}

func isTopic(t string) bool {
	word := 0
	for i := 0; i < len(t); i++ {
		switch c := t[i]; {
		case c == '.':
			if word == 0 {
				return false
			}
			word = 0
		case c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z':
			word++
		default:
			return false
		}
	}
	return word > 0
}

func (c *checker) content(e *Event) {
	if e.ContentType == "" {
		return
	}
	switch {
	case len(e.ContentType) > maxContentType:
		c.add("ContentType", "has %d bytes; shorten it to %d", len(e.ContentType), maxContentType)
	case !isMediaType(e.ContentType):
		c.add("ContentType", `%q is no media type; write it like "application/json"`, e.ContentType)
	case promisesText(e.ContentType) && !storableText(e.Payload):
		c.add("Payload", "is not UTF-8 without NUL, as its ContentType promises; "+
			"encode it, or name its real type, such as application/octet-stream")
	}
}

// isMediaType checks for type/subtype with anything printable behind a
// semicolon: enough to be carried in any header.
func isMediaType(s string) bool {
	name, _, _ := strings.Cut(s, ";")
	kind, sub, ok := strings.Cut(strings.TrimRight(name, " "), "/")
	return ok && isToken(kind) && isToken(sub) && causality.Printable(s)
}

// promisesText reports whether the media type says that the bytes are UTF-8.
func promisesText(contentType string) bool {
	name, params, _ := strings.Cut(strings.ToLower(contentType), ";")
	name = strings.TrimSpace(name)
	if name == "application/json" || strings.HasSuffix(name, "+json") {
		return true
	}
	if !strings.HasPrefix(name, "text/") {
		return false
	}
	for param := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(param, "=")
		if strings.TrimSpace(k) != "charset" {
			continue
		}
		switch strings.Trim(strings.TrimSpace(v), `"`) {
		case "utf-8", "utf8", "us-ascii":
		default:
			return false
		}
	}
	return true
}

// reservedNames are the attributes that onewrite sets itself.
var reservedNames = map[string]bool{
	"specversion": true, "id": true, "source": true, "type": true, "time": true,
	"datacontenttype": true, "data": true, "data_base64": true, "topic": true,
	"partitionkey": true, "sequence": true, "txid": true, "txindex": true,
	"txlast": true, "headers": true, "content-type": true,
}

var reservedPrefixes = []string{"ce-", "ce_", "nats-", "onewrite-", "webhook-"}

func reserved(lower string) bool {
	if reservedNames[lower] {
		return true
	}
	for _, p := range reservedPrefixes {
		if strings.HasPrefix(lower, p) {
			return true
		}
	}
	return false
}

func (c *checker) headers(hs map[string]string) {
	if len(hs) == 0 {
		return
	}
	seen := make(map[string]bool, len(hs))
	for _, name := range sortedNames(hs) {
		value, lower := hs[name], strings.ToLower(name)
		switch {
		case !isToken(name) || len(name) > maxHeaderName:
			c.add("Headers", "name %.80q is no token of at most %d letters, digits and !#$%%&'*+-.^_`|~; rename it", name, maxHeaderName)
		case reserved(lower):
			c.add("Headers", "name %q is set by onewrite itself; rename it", name)
		case seen[lower]:
			c.add("Headers", "name %q differs from another one by case only; remove one", name)
		case name != lower && (lower == "traceparent" || lower == "tracestate"):
			c.add("Headers", "name %q must be in lower case", name)
		}
		seen[lower] = true
		switch {
		case !plainText(value):
			c.add("Headers", "value of %.80q has a control character or is not UTF-8; encode it", name)
		case name == "traceparent" && !causality.IsTraceparent(value):
			c.add("Headers", "value of %q is no W3C trace context; leave it out", name)
		}
	}
}

func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			continue
		}
		if strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// storableText reports whether every database can hold b as text.
func storableText(b []byte) bool {
	return utf8.Valid(b) && bytes.IndexByte(b, 0) < 0
}

// plainText reports whether s is UTF-8 without control characters.
func plainText(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
}

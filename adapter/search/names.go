package search

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/onewrite/onewrite"
)

const (
	maxIndexName = 255 // bytes, by the server
	maxID        = 512 // bytes, by the server
)

// template is a text with places for parts of an event.
type template []string // literal text and names of parts take turns

var placeholder = regexp.MustCompile(`\{(topic|source|type|key|id)\}`)

func parseTemplate(text string) (t template) {
	at := 0
	for _, m := range placeholder.FindAllStringSubmatchIndex(text, -1) {
		t = append(t, text[at:m[0]], text[m[2]:m[3]])
		at = m[1]
	}
	return append(t, text[at:])
}

// has reports whether a part of the event is in the template.
func (t template) has(part string) bool {
	for i := 1; i < len(t); i += 2 {
		if t[i] == part {
			return true
		}
	}
	return false
}

// fill puts an event's parts into the template.
func (t template) fill(e *onewrite.Event, key string) string {
	if len(t) == 3 && t[0] == "" && t[2] == "" {
		return part(t[1], e, key) // what most write
	}
	var b strings.Builder
	for i := range t {
		if i%2 == 0 {
			b.WriteString(t[i])
		} else {
			b.WriteString(part(t[i], e, key))
		}
	}
	return b.String()
}

func part(name string, e *onewrite.Event, key string) string {
	switch name {
	case "topic":
		return e.Topic
	case "source":
		return e.Source
	case "type":
		return e.Type
	case "key":
		return key
	}
	return e.ID
}

// indexName makes a legal name: in lower case; each character that a name may not
// have, and all beyond ASCII, is a hyphen; what may not stand first gets "index" in
// front; what is too long ends in its hash.
func indexName(text string) string {
	b := []byte(strings.ToLower(text))
	for i, c := range b {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			b[i] = '-'
		}
	}
	name := string(b)
	if name == "" || strings.ContainsRune("._-", rune(name[0])) {
		name = "index" + name
	}
	if len(name) > maxIndexName {
		name = name[:maxIndexName-33] + "-" + digest(text)[:32]
	}
	return name
}

// documentID makes an id that the server takes: what is empty, too long or not UTF-8
// is its hash.
func documentID(text string) string {
	if text == "" || len(text) > maxID || !utf8.ValidString(text) {
		return "sha256-" + digest(text)
	}
	return text
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// rowKey is a row's key as an id: the bare value of a key of one column, else the
// canonical JSON that the event has.
func rowKey(key string) string {
	var columns map[string]json.RawMessage
	if json.Unmarshal([]byte(key), &columns) != nil || len(columns) != 1 {
		return key
	}
	for _, raw := range columns {
		var text string
		if json.Unmarshal(raw, &text) == nil && raw[0] == '"' {
			if text != "" {
				return text
			}
		} else if raw[0] != '{' && raw[0] != '[' {
			return string(raw)
		}
	}
	return key
}

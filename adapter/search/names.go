package search

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/onewrite/onewrite"
)

const (
	maxIndexName = 255 // bytes, by the server
	maxID        = 512 // bytes, by the server
)

// fill puts an event's parts into a template.
func fill(template string, e *onewrite.Event, key string) string {
	switch template { // what most write
	case "{topic}":
		return e.Topic
	case "{key}":
		return key
	}
	return strings.NewReplacer("{topic}", e.Topic, "{source}", e.Source, "{type}", e.Type, "{key}", key, "{id}", e.ID).Replace(template)
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

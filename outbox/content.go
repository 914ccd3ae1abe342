package outbox

import (
	"encoding/json"
	"unicode/utf8"
)

// DefaultContentType is the media type of a row that names none: that of every
// event whose ContentType is empty. binary says that the payload comes from
// the column payload_bytes.
//
//   - "" for a nil payload: an event without data has no type of data
//   - application/octet-stream for binary, and for bytes that are not UTF-8
//   - application/json for valid JSON
//   - text/plain; charset=utf-8 for any other text, the empty one included
func DefaultContentType(payload []byte, binary bool) string {
	switch {
	case payload == nil:
		return ""
	case binary || !utf8.Valid(payload):
		return "application/octet-stream"
	case json.Valid(payload):
		return "application/json"
	}
	return "text/plain; charset=utf-8"
}

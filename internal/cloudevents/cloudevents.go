// Package cloudevents maps an event to CloudEvents 1.0 and back: attributes for
// the binary mode (NATS, HTTP, Kafka) and the JSON format for files and batches.
//
// Sources: the CloudEvents 1.0.2 core, JSON format, HTTP binding (3.1.3.2 header
// values) and NATS binding; the partitioning, sequence and distributed tracing
// extensions.
package cloudevents

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/onewrite/onewrite"
)

// Attr is one CloudEvents attribute in its canonical text form.
type Attr struct{ Name, Value string }

// HeadersAttr carries, in the JSON format only, the transport headers that no
// CloudEvents attribute can name, as the text of a JSON object.
const HeadersAttr = "headers"

// reserved are the attributes that onewrite sets itself; an application header
// of such a name is refused by package outbox and by the tables.
var reserved = map[string]bool{
	"specversion": true, "id": true, "source": true, "type": true, "time": true,
	"datacontenttype": true, "data": true, "data_base64": true, "topic": true,
	"partitionkey": true, "sequence": true, "txid": true, "txindex": true,
	"txlast": true, HeadersAttr: true,
}

// Reserved reports whether name is an attribute that applications cannot set.
func Reserved(name string) bool { return reserved[name] }

// IsAttribute reports whether a header of this name travels as a CloudEvents
// attribute (1 to 20 lower-case letters or digits); others are transport headers.
func IsAttribute(name string) bool {
	if len(name) == 0 || len(name) > 20 {
		return false
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// TimeLayout is RFC 3339 with microseconds, the resolution of the databases.
const TimeLayout = "2006-01-02T15:04:05.999999Z07:00"

// formatTime is t.Format(TimeLayout) of a time in UTC, without reading the layout.
func formatTime(t time.Time) string {
	year, month, day := t.Date()
	if year < 0 || year > 9999 {
		return t.Format(TimeLayout)
	}
	hour, minute, second := t.Clock()
	b := [27]byte{4: '-', 7: '-', 10: 'T', 13: ':', 16: ':', 19: '.'}
	digits := func(at, n, v int) {
		for i := at + n - 1; i >= at; i-- {
			b[i], v = byte('0'+v%10), v/10
		}
	}
	digits(0, 4, year)
	digits(5, 2, int(month))
	digits(8, 2, day)
	digits(11, 2, hour)
	digits(14, 2, minute)
	digits(17, 2, second)
	digits(20, 6, t.Nanosecond()/1000)
	end := 26
	for end > 20 && b[end-1] == '0' {
		end--
	}
	if end == 20 {
		end = 19
	}
	b[end] = 'Z'
	return string(b[:end+1])
}

// Attributes appends e's attributes to dst: the context attributes first, then
// the extensions, then the application's in the order of their names. Equal
// events give equal attributes in equal order.
func Attributes(dst []Attr, e *onewrite.Event) []Attr {
	dst = append(dst,
		Attr{"specversion", "1.0"},
		Attr{"id", e.ID},
		Attr{"source", "/" + e.Source},
		Attr{"type", e.Type})
	if !e.Time.IsZero() {
		dst = append(dst, Attr{"time", formatTime(e.Time.UTC())})
	}
	if e.ContentType != "" {
		dst = append(dst, Attr{"datacontenttype", e.ContentType})
	}
	dst = append(dst, Attr{"topic", e.Topic})
	if e.Key != "" {
		dst = append(dst, Attr{"partitionkey", e.Key})
	}
	if e.Seq != "" {
		dst = append(dst, Attr{"sequence", e.Seq})
	}
	if e.Tx.ID != "" {
		dst = append(dst, Attr{"txid", e.Tx.ID},
			Attr{"txindex", strconv.Itoa(e.Tx.Index)},
			Attr{"txlast", strconv.FormatBool(e.Tx.Last)})
	}
	if len(e.Header) == 0 { // as most
		return dst
	}
	for _, k := range slices.Sorted(maps.Keys(e.Header)) {
		if IsAttribute(k) && !reserved[k] {
			dst = append(dst, Attr{k, e.Header[k]})
		}
	}
	return dst
}

// Headers appends e's transport headers, those that are no attributes, in the
// order of their names.
func Headers(dst []Attr, e *onewrite.Event) []Attr {
	for _, k := range slices.Sorted(maps.Keys(e.Header)) {
		if !IsAttribute(k) {
			dst = append(dst, Attr{k, e.Header[k]})
		}
	}
	return dst
}

// Set stores an attribute, as Attributes gave it, in e. An attribute that the
// core does not know becomes a header. A malformed time or transaction index is
// an error that names it.
func Set(e *onewrite.Event, name, value string) error {
	var err error
	switch name {
	case "specversion":
		if value != "1.0" {
			err = fmt.Errorf("cloudevents: specversion %q is not 1.0", value)
		}
	case "id":
		e.ID = value
	case "source":
		e.Source = strings.TrimPrefix(value, "/")
	case "type":
		e.Type = value
	case "time":
		if e.Time, err = time.Parse(time.RFC3339Nano, value); err != nil {
			err = fmt.Errorf("cloudevents: time %q is not RFC 3339", value)
		}
	case "datacontenttype":
		e.ContentType = value
	case "topic":
		e.Topic = value
	case "partitionkey":
		e.Key = value
	case "sequence":
		e.Seq = value
	case "txid":
		e.Tx.ID = value
	case "txindex":
		if e.Tx.Index, err = strconv.Atoi(value); err != nil {
			err = fmt.Errorf("cloudevents: txindex %q is not a number", value)
		}
	case "txlast":
		e.Tx.Last = value == "true"
	default:
		if e.Header == nil {
			e.Header = make(map[string]string)
		}
		e.Header[name] = value
	}
	return err
}

const upperHex = "0123456789ABCDEF"

func plain(c byte) bool { return c > 0x20 && c < 0x7f && c != '"' && c != '%' }

// Escape percent-encodes a value for an HTTP or NATS header: space, double
// quote, percent and all outside the printable ASCII range (HTTP binding 3.1.3.2).
func Escape(s string) string {
	n := 0
	for i := 0; i < len(s); i++ {
		if !plain(s[i]) {
			n++
		}
	}
	if n == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+2*n)
	for i := 0; i < len(s); i++ {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return string(b)
}

// Unescape undoes Escape. A percent sign that starts no escape stays as it is.
func Unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(v))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// IsJSON reports whether a media type says that the data is JSON.
func IsJSON(contentType string) bool {
	t, _, _ := strings.Cut(contentType, ";")
	t = strings.ToLower(strings.TrimSpace(t))
	return t == "application/json" || t == "text/json" || strings.HasSuffix(t, "+json")
}

func isText(contentType string) bool {
	t, _, _ := strings.Cut(contentType, ";")
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(t)), "text/")
}

// Textual reports whether e's data stands in a line as data, which is JSON or text, and
// not as data_base64.
func Textual(e *onewrite.Event) bool {
	return utf8.Valid(e.Data) && (isText(e.ContentType) || IsJSON(e.ContentType) && json.Valid(e.Data))
}

// AppendJSON appends e as one line of the CloudEvents JSON format, without the
// line's end: data is a JSON value when the content is JSON, a string when it is
// text, and data_base64 otherwise.
func AppendJSON(dst []byte, e *onewrite.Event) []byte {
	dst = append(dst, '{')
	var room [16]Attr
	for i, a := range Attributes(room[:0], e) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendString(dst, a.Name)
		dst = append(dst, ':')
		switch a.Name {
		case "txindex", "txlast": // the JSON format has integers and booleans
			dst = append(dst, a.Value...)
		default:
			dst = AppendString(dst, a.Value)
		}
	}
	if hs := Headers(nil, e); len(hs) > 0 {
		m := make(map[string]string, len(hs))
		for _, h := range hs {
			m[h.Name] = h.Value
		}
		text, _ := json.Marshal(m) // a map of strings cannot fail
		dst = append(dst, `,"`+HeadersAttr+`":`...)
		dst = AppendString(dst, string(text))
	}
	if e.Data != nil {
		dst = appendData(dst, e)
	}
	return append(dst, '}')
}

func appendData(dst []byte, e *onewrite.Event) []byte {
	if IsJSON(e.ContentType) && utf8.Valid(e.Data) && json.Valid(e.Data) {
		dst = append(dst, `,"data":`...)
		if bytes.IndexByte(e.Data, '\n') < 0 && bytes.IndexByte(e.Data, '\r') < 0 {
			return append(dst, e.Data...)
		}
		b := bytes.NewBuffer(dst) // a value over several lines would tear the line
		_ = json.Compact(b, e.Data)
		return b.Bytes()
	}
	if isText(e.ContentType) && utf8.Valid(e.Data) {
		dst = append(dst, `,"data":`...)
		return AppendString(dst, string(e.Data))
	}
	dst = append(dst, `,"data_base64":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, e.Data)
	return append(dst, '"')
}

// AppendStructured appends e in the JSON format. Data is always base64: every byte has
// to come back as it was.
func AppendStructured(dst []byte, e *onewrite.Event) []byte {
	bare := *e
	bare.Data = nil
	dst = AppendJSON(dst, &bare)
	if e.Data == nil {
		return dst
	}
	dst = append(dst[:len(dst)-1], `,"data_base64":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, e.Data)
	return append(dst, `"}`...)
}

// AppendString appends s as a JSON string without escaping HTML's characters,
// so that what a person greps for is there. What is not UTF-8 becomes U+FFFD.
func AppendString[T []byte | string](dst []byte, s T) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		if i+8 <= len(s) && verbatim(uint64(s[i])|uint64(s[i+1])<<8|uint64(s[i+2])<<16|uint64(s[i+3])<<24|
			uint64(s[i+4])<<32|uint64(s[i+5])<<40|uint64(s[i+6])<<48|uint64(s[i+7])<<56) {
			i += 8
			continue
		}
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			if r == utf8.RuneError && size == 1 {
				dst = append(dst, s[start:i]...)
				dst = append(dst, `\ufffd`...)
				start = i + 1
			}
			i += size
			continue
		}
		if c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// verbatim reports whether each of eight bytes is an ASCII character that a JSON string shows
// as it is. A subtraction that borrows leaves the highest bit of a byte set.
func verbatim(w uint64) bool {
	const each, high = 0x0101010101010101, 0x8080808080808080
	control, quote, backslash := w-each*0x20, w^each*'"'-each, w^each*'\\'-each
	return (w|control|quote|backslash)&high == 0
}

// BatchID names the events of one request: one by its id, more by a digest. All ids are
// in it: of two batches that differ in the middle only, a receiver must not take the
// second for a repeat.
func BatchID(events []onewrite.Event) string {
	if len(events) == 1 {
		return events[0].ID
	}
	sum := sha256.New()
	for i := range events {
		for _, part := range []string{events[i].Source, events[i].ID} {
			_, _ = io.WriteString(sum, strconv.Itoa(len(part))+":"+part) // a hash cannot fail
		}
	}
	return "batch-" + hex.EncodeToString(sum.Sum(nil)[:16])
}

// ParseJSON reads one event in the JSON format, as AppendJSON writes it. The
// error names what is wrong; nothing is guessed.
func ParseJSON(line []byte) (onewrite.Event, error) {
	var e onewrite.Event
	var m map[string]json.RawMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return e, fmt.Errorf("cloudevents: not a JSON object: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		raw := m[name]
		if name == "data" || name == "data_base64" || string(raw) == "null" { // null is unset (JSON format, 2.2)
			continue
		}
		value := string(raw)
		if len(raw) > 0 && raw[0] == '"' {
			if err := json.Unmarshal(raw, &value); err != nil {
				return e, fmt.Errorf("cloudevents: %s: %w", name, err)
			}
		}
		if name == HeadersAttr {
			hs := map[string]string{}
			if err := json.Unmarshal([]byte(value), &hs); err != nil {
				return e, fmt.Errorf("cloudevents: %s: %w", name, err)
			}
			for k, v := range hs {
				if err := Set(&e, k, v); err != nil {
					return e, err
				}
			}
			continue
		}
		if err := Set(&e, name, value); err != nil {
			return e, err
		}
	}
	if e.ID == "" || e.Type == "" || e.Source == "" {
		return e, fmt.Errorf("cloudevents: id, source and type are required")
	}
	if raw, ok := m["data_base64"]; ok {
		if err := json.Unmarshal(raw, &e.Data); err != nil {
			return e, fmt.Errorf("cloudevents: data_base64: %w", err)
		}
	} else if raw, ok := m["data"]; ok {
		var text string
		if len(raw) > 0 && raw[0] == '"' && !IsJSON(e.ContentType) {
			if err := json.Unmarshal(raw, &text); err != nil {
				return e, fmt.Errorf("cloudevents: data: %w", err)
			}
			e.Data = []byte(text)
		} else {
			e.Data = raw
		}
	}
	return e, nil
}

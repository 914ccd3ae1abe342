package redis

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

const (
	attrPrefix   = "ce_"
	fieldType    = "content-type"
	fieldData    = "data"
	fieldHeaders = attrPrefix + cloudevents.HeadersAttr
	// maxFields bounds an entry: the server's scripts pass no more arguments at once.
	maxFields = 2000
)

// known saves building the names of the usual attributes.
var known = func() map[string]any {
	m := map[string]any{}
	for _, n := range []string{"specversion", "id", "source", "type", "time", "datacontenttype", "topic", "partitionkey", "sequence", "traceparent", "tracestate", "txid", "txindex", "txlast", "subject", "dataschema"} {
		m[n] = attrPrefix + n
	}
	return m
}()

// appendFields appends the fields of an entry and their values: attributes, content
// type, headers that are no attributes under their own names, data. Equal events give
// equal fields in equal order.
func appendFields(dst []any, e *onewrite.Event) []any {
	var room [16]cloudevents.Attr
	for _, a := range cloudevents.Attributes(room[:0], e) {
		name, ok := known[a.Name]
		if !ok {
			name = attrPrefix + a.Name
		}
		dst = append(dst, name, a.Value)
	}
	if e.ContentType != "" { // what consumers of Kafka look for, beside the attribute
		dst = append(dst, fieldType, e.ContentType)
	}
	var odd map[string]string
	if len(e.Header) > 0 {
		for _, h := range cloudevents.Headers(nil, e) {
			if own(h.Name) {
				dst = append(dst, h.Name, h.Value)
				continue
			}
			if odd == nil {
				odd = map[string]string{}
			}
			odd[h.Name] = h.Value
		}
	}
	if odd != nil {
		text, _ := json.Marshal(odd) // a map of strings cannot fail
		dst = append(dst, fieldHeaders, string(text))
	}
	if e.Data != nil {
		dst = append(dst, fieldData, e.Data)
	}
	return dst
}

// forms collects the arguments of a script: the names of the fields of entries, each
// set of them once, and the events with the values alone.
type forms struct {
	count  int
	names  []any
	events []any
	number map[string]int // of a form, by its names
	last   []any          // fields and values of the newest event, whose form is form
	form   int
}

// newForms returns an empty collection with room for n events.
func newForms(n int) *forms {
	return &forms{events: make([]any, 0, n*18), number: map[string]int{}}
}

// add adds an event of a stream and returns how many fields it has.
func (f *forms) add(stream int, offset uint64, e *onewrite.Event) int {
	var room [40]any
	fields := appendFields(room[:0], e)
	if !sameNames(f.last, fields) {
		f.form = f.of(fields)
	}
	f.last = append(f.last[:0], fields...)
	f.events = append(f.events, stream, strconv.FormatUint(offset, 10), f.form)
	for i := 1; i < len(fields); i += 2 {
		f.events = append(f.events, fields[i])
	}
	return len(fields) / 2
}

// of returns the number of a form, from 1, and adds it if it is new.
func (f *forms) of(fields []any) int {
	var all strings.Builder
	for i := 0; i < len(fields); i += 2 {
		name, _ := fields[i].(string)
		fmt.Fprintf(&all, "%d:%s", len(name), name)
	}
	if number, ok := f.number[all.String()]; ok {
		return number
	}
	f.count++
	f.number[all.String()] = f.count
	f.names = append(f.names, len(fields)/2)
	for i := 0; i < len(fields); i += 2 {
		f.names = append(f.names, fields[i])
	}
	return f.count
}

func sameNames(a, b []any) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i += 2 {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// own reports whether a header can be a field without being taken for another.
func own(name string) bool {
	return name != "" && !strings.EqualFold(name, fieldType) && !strings.HasPrefix(name, attrPrefix)
}

// Decode reads an event from the fields of an entry and their values, in turns, as
// [Sink] writes them. The error says what is wrong with the entry.
func Decode(fields []string) (onewrite.Event, error) {
	var e onewrite.Event
	if len(fields)%2 != 0 {
		return e, errors.New("redis: a field of the entry has no value")
	}
	set := func(name, value string) {
		if e.Header == nil {
			e.Header = map[string]string{}
		}
		e.Header[name] = value
	}
	for i := 0; i < len(fields); i += 2 {
		name, value := fields[i], fields[i+1]
		switch {
		case name == fieldHeaders:
			more := map[string]string{}
			if err := json.Unmarshal([]byte(value), &more); err != nil {
				return e, fmt.Errorf("redis: field %s: %w", fieldHeaders, err)
			}
			for k, v := range more {
				set(k, v)
			}
		case strings.HasPrefix(name, attrPrefix):
			if err := cloudevents.Set(&e, name[len(attrPrefix):], value); err != nil {
				return e, fmt.Errorf("redis: %w", err)
			}
		case name == fieldData:
			e.Data = []byte(value)
		case name == fieldType:
		default:
			set(name, value)
		}
	}
	if e.ID == "" || e.Source == "" || e.Type == "" {
		return e, errors.New("redis: the entry has no CloudEvents id, source or type")
	}
	return e, nil
}

package redis

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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
var known = func() map[string]string {
	m := map[string]string{}
	for _, n := range []string{"specversion", "id", "source", "type", "time", "datacontenttype", "topic", "partitionkey", "sequence", "traceparent", "tracestate", "txid", "txindex", "txlast", "subject", "dataschema"} {
		m[n] = attrPrefix + n
	}
	return m
}()

// alike are the fields that have few values in many events.
var alike = map[string]bool{
	attrPrefix + "specversion": true, attrPrefix + "source": true, attrPrefix + "type": true, attrPrefix + "topic": true,
	attrPrefix + "datacontenttype": true, attrPrefix + "dataschema": true, fieldType: true,
}

// field is a field of an entry: its value is data if that is not nil.
type field struct {
	name, value string
	data        []byte
	alike       bool
}

// appendFields appends the fields of an entry: attributes, content type, headers that
// are no attributes under their own names, data. Equal events give equal fields in
// equal order.
func appendFields(dst []field, e *onewrite.Event) []field {
	add := func(name, value string) { dst = append(dst, field{name: name, value: value, alike: alike[name]}) }
	var room [16]cloudevents.Attr
	for _, a := range cloudevents.Attributes(room[:0], e) {
		name, ok := known[a.Name]
		if !ok {
			name = attrPrefix + a.Name
		}
		add(name, a.Value)
	}
	if e.ContentType != "" { // what consumers of Kafka look for, beside the attribute
		add(fieldType, e.ContentType)
	}
	var odd map[string]string
	if len(e.Header) > 0 {
		for _, h := range cloudevents.Headers(nil, e) {
			if own(h.Name) {
				add(h.Name, h.Value)
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
		add(fieldHeaders, string(text))
	}
	if e.Data != nil {
		dst = append(dst, field{name: fieldData, data: e.Data})
	}
	return dst
}

// maxForms bounds the forms that differ by values alone, so that events of which
// each has a type of its own do not bring a form each.
const maxForms = 64

// forms collects the arguments of a script: the forms of entries, which are the names
// of their fields and the values that are alike; the kinds, a stream and a form each;
// and the events with their other values.
type forms struct {
	forms, kinds []any
	events       []any

	numbers map[string]form // by names and values
	known   map[kind]int
	text    []byte  // of a form
	last    []field // of the newest event
	form    form    // of the newest event
}

// form is a form of entries: its number, from 1, and whether it has the values that
// are alike.
type form struct {
	number int
	values bool
}

// kind is a stream, by its number, and a form.
type kind struct{ stream, form int }

// newForms returns an empty collection with room for n events.
func newForms(n int) *forms {
	return &forms{events: make([]any, 0, n*9), numbers: map[string]form{}, known: map[kind]int{}}
}

// add adds an event of a stream and returns how many fields it has.
func (f *forms) add(stream int, offset uint64, e *onewrite.Event) int {
	var room [40]field
	fields := appendFields(room[:0], e)
	if !f.isLast(fields) {
		f.form = f.of(fields)
		f.last = append(f.last[:0], fields...)
	}
	is := kind{stream, f.form.number}
	number, ok := f.known[is]
	if !ok {
		f.kinds = append(f.kinds, stream, f.form.number)
		number = len(f.kinds) / 2
		f.known[is] = number
	}
	f.events = append(f.events, number, strconv.FormatUint(offset, 10)+"-*")
	for i := range fields {
		switch x := &fields[i]; {
		case x.data != nil:
			f.events = append(f.events, x.data)
		case !x.alike || !f.form.values:
			f.events = append(f.events, x.value)
		}
	}
	return len(fields)
}

// args are the arguments.
func (f *forms) args(head []any) []any {
	return slices.Concat(head, []any{len(f.numbers)}, f.forms, []any{len(f.kinds) / 2}, f.kinds, f.events)
}

// isLast reports whether an entry is of the form of the newest event.
func (f *forms) isLast(fields []field) bool {
	if len(f.last) != len(fields) {
		return false
	}
	for i := range fields {
		if a, b := &f.last[i], &fields[i]; a.name != b.name || b.alike && f.form.values && a.value != b.value {
			return false
		}
	}
	return true
}

// of returns the form of an entry, and adds it if it is new.
func (f *forms) of(fields []field) form {
	if known, ok := f.numbers[string(f.describe(fields, true))]; ok {
		return known
	}
	values := len(f.numbers) < maxForms
	if known, ok := f.numbers[string(f.describe(fields, values))]; ok {
		return known
	}
	is := form{number: len(f.numbers) + 1, values: values}
	f.numbers[string(f.text)] = is
	at := len(f.forms) + 1
	f.forms = append(f.forms, len(fields), 0)
	for i := range fields {
		f.forms = append(f.forms, fields[i].name)
	}
	for i := range fields {
		if values && fields[i].alike {
			f.forms = append(f.forms, i+1, fields[i].value)
		}
	}
	f.forms[at] = (len(f.forms) - at - 1 - len(fields)) / 2
	return is
}

// describe writes what tells one form from another.
func (f *forms) describe(fields []field, values bool) []byte {
	part := func(s string) {
		f.text = append(append(strconv.AppendInt(f.text, int64(len(s)), 10), ':'), s...)
	}
	f.text = strconv.AppendBool(f.text[:0], values)
	for i := range fields {
		part(fields[i].name)
		if values && fields[i].alike {
			part(fields[i].value)
		}
	}
	return f.text
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

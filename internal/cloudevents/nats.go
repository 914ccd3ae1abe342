package cloudevents

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/onewrite/onewrite"
)

// NATSHeaders is the NATS header that holds, as an escaped JSON object, the
// transport headers that NATS cannot carry as they are.
const NATSHeaders = "Onewrite-Headers"

// Structured is the media type of one event in the JSON format.
const Structured = "application/cloudevents+json"

// ParseNATS reads an event from a NATS message in the binary or the structured mode.
// The error says what is wrong with the message.
func ParseNATS(header map[string][]string, data []byte) (onewrite.Event, error) {
	var e onewrite.Event
	if first(header, "content-type") == Structured && first(header, "ce-id") == "" {
		e, err := ParseJSON(data)
		e.Data = Settle(e.Data, e.ContentType)
		return e, err
	}
	for name, values := range header {
		if len(values) == 0 {
			continue
		}
		value := values[0]
		var err error
		switch {
		case strings.HasPrefix(name, "ce-"):
			err = Set(&e, name[len("ce-"):], Unescape(value))
		case name == NATSHeaders:
			err = more(&e, value)
		case name == "content-type", name == "Status", name == "Description",
			strings.HasPrefix(name, "Nats-"), strings.HasPrefix(name, "Onewrite-"):
		default:
			if e.Header == nil {
				e.Header = make(map[string]string)
			}
			e.Header[name] = value
		}
		if err != nil {
			return e, err
		}
	}
	if e.ID == "" || e.Source == "" || e.Type == "" {
		return e, errors.New("the message has no CloudEvents id, source or type")
	}
	e.Data = Settle(data, e.ContentType)
	return e, nil
}

// Settle tells an event without data from one with data of no length, which the
// wire does not: only data has a type.
func Settle(data []byte, contentType string) []byte {
	switch {
	case len(data) > 0:
		return data
	case contentType == "":
		return nil
	}
	return []byte{}
}

func more(e *onewrite.Event, value string) error {
	m := map[string]string{}
	if err := json.Unmarshal([]byte(Unescape(value)), &m); err != nil {
		return fmt.Errorf("header %s: %w", NATSHeaders, err)
	}
	if e.Header == nil {
		e.Header = make(map[string]string)
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		e.Header[k] = m[k]
	}
	return nil
}

func first(h map[string][]string, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

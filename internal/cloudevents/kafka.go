package cloudevents

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/onewrite/onewrite"
)

// kafkaPrefix is before the name of every attribute (Kafka binding, 3.2.3.1).
const kafkaPrefix = "ce_"

// kafkaContentType is the header of the data's media type (Kafka binding, 3.2.1).
const kafkaContentType = "content-type"

// kafkaName is the header of an attribute. Those that most events have are not put
// together each time.
func kafkaName(attribute string) string {
	switch attribute {
	case "datacontenttype":
		return kafkaContentType
	case "specversion":
		return kafkaPrefix + "specversion"
	case "id":
		return kafkaPrefix + "id"
	case "source":
		return kafkaPrefix + "source"
	case "type":
		return kafkaPrefix + "type"
	case "time":
		return kafkaPrefix + "time"
	case "topic":
		return kafkaPrefix + "topic"
	case "partitionkey":
		return kafkaPrefix + "partitionkey"
	case "sequence":
		return kafkaPrefix + "sequence"
	case "txid":
		return kafkaPrefix + "txid"
	case "txindex":
		return kafkaPrefix + "txindex"
	case "txlast":
		return kafkaPrefix + "txlast"
	case "traceparent":
		return kafkaPrefix + "traceparent"
	}
	return kafkaPrefix + attribute
}

// KafkaHeaders appends the headers of a Kafka record in the binary mode: content-type
// for the data's media type, ce_<name> for the other attributes, then the transport
// headers under their own names. Values are UTF-8 as they are. Transport headers
// that would be taken for one of the former travel in ce_headers, as JSON.
func KafkaHeaders(dst []Attr, e *onewrite.Event) []Attr {
	start := len(dst)
	dst = Attributes(dst, e)
	for i := start; i < len(dst); i++ {
		dst[i].Name = kafkaName(dst[i].Name)
	}
	if len(e.Header) == 0 {
		return dst
	}
	var odd map[string]string
	for _, h := range Headers(nil, e) {
		lower := strings.ToLower(h.Name)
		if lower == kafkaContentType || strings.HasPrefix(lower, kafkaPrefix) {
			if odd == nil {
				odd = map[string]string{}
			}
			odd[h.Name] = h.Value
			continue
		}
		dst = append(dst, h)
	}
	if odd != nil {
		text, _ := json.Marshal(odd) // a map of strings cannot fail
		dst = append(dst, Attr{kafkaPrefix + HeadersAttr, string(text)})
	}
	return dst
}

// ParseKafka reads an event from a Kafka record in the binary or the structured mode.
// The key is an attribute and in the headers. The error says what is wrong with the
// record; a tombstone, which has no headers, is an error too.
func ParseKafka(headers []Attr, value []byte) (onewrite.Event, error) {
	var e onewrite.Event
	// Data may itself be an event in the JSON format.
	binary := slices.ContainsFunc(headers, func(h Attr) bool { return h.Name == kafkaPrefix+"id" })
	for _, h := range headers {
		var err error
		switch name, is := strings.CutPrefix(h.Name, kafkaPrefix); {
		case is && name == HeadersAttr:
			m := map[string]string{}
			if err = json.Unmarshal([]byte(h.Value), &m); err != nil {
				err = fmt.Errorf("header %s: %w", h.Name, err)
			}
			for k, v := range m {
				setHeader(&e, k, v)
			}
		case is:
			err = Set(&e, name, h.Value)
		case h.Name == kafkaContentType && !binary && strings.HasPrefix(h.Value, Structured):
			e, err = ParseJSON(value)
			e.Data = Settle(e.Data, e.ContentType)
			return e, err
		case h.Name == kafkaContentType:
			e.ContentType = h.Value
		default:
			setHeader(&e, h.Name, h.Value)
		}
		if err != nil {
			return e, err
		}
	}
	if e.ID == "" || e.Source == "" || e.Type == "" {
		return e, errors.New("the record has no CloudEvents id, source or type")
	}
	e.Data = value
	return e, nil
}

func setHeader(e *onewrite.Event, name, value string) {
	if e.Header == nil {
		e.Header = make(map[string]string)
	}
	e.Header[name] = value
}

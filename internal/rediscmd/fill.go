package rediscmd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/onewrite/onewrite"
)

// Filler fills templates from one event; it looks into the payload at most once.
type Filler struct {
	e     *onewrite.Event
	asked bool
	err   error
	row   struct {
		Before, After map[string]json.RawMessage
		Source        struct {
			Unchanged []string `json:"unchanged"`
		}
	}
	key map[string]json.RawMessage
}

// For makes the filler of an event.
func For(e *onewrite.Event) *Filler { return &Filler{e: e} }

// Append appends what the template is for the event. The error says what the event
// lacks, and how it is cured.
func (f *Filler) Append(dst []byte, t Template) ([]byte, error) {
	for _, p := range t.parts {
		switch {
		case p.name == "":
			dst = append(dst, p.text...)
		case p.column != "":
			text, err := f.cell(p)
			if err != nil {
				return nil, err
			}
			dst = append(dst, text...)
		case p.name == "data":
			if f.e.Data == nil {
				return nil, errors.New("{data}: the event has no data; write the types of events with data before the command: \"insert,update: SET ...\"")
			}
			dst = append(dst, f.e.Data...)
		case p.name == "key":
			if f.e.Key == "" {
				return nil, errors.New("{key}: the event has no key; publish it with one, or take {key} out of the template")
			}
			dst = append(dst, f.e.Key...)
		default:
			dst = append(dst, map[string]string{"topic": f.e.Topic, "source": f.e.Source, "type": f.e.Type, "id": f.e.ID}[p.name]...)
		}
	}
	return dst, nil
}

// Fill returns the arguments of a command for the event, and the first key among
// them; the key is empty for a command without one.
func (f *Filler) Fill(c Command) (args []any, key string, err error) {
	args = make([]any, len(c.Args))
	args[0] = c.Name()
	for i := 1; i < len(c.Args); i++ {
		b, err := f.Append(nil, c.Args[i])
		if err != nil {
			return nil, "", err
		}
		if i <= c.keys() && len(b) == 0 {
			return nil, "", fmt.Errorf("the key of %s would be empty; give the template a prefix", c.Name())
		}
		if b == nil {
			b = []byte{}
		}
		args[i] = b
	}
	if c.keys() > 0 {
		key = string(args[1].([]byte))
	}
	return args, key, nil
}

// cell returns a column as text: that of a string, else the JSON as it stands;
// nothing for NULL.
func (f *Filler) cell(p part) ([]byte, error) {
	f.look()
	columns := map[string]map[string]json.RawMessage{"after": f.row.After, "before": f.row.Before, "key": f.key}[p.name]
	raw, ok := columns[p.column]
	switch {
	case ok:
	case f.err != nil:
		return nil, fmt.Errorf("{%s}: the event is no row change: %w; name topics of tables under topics", p.show(), f.err)
	case slices.Contains(f.row.Source.Unchanged, p.column):
		return nil, fmt.Errorf("{%s}: the log does not carry the column, as the update did not touch its large value; ALTER TABLE ... REPLICA IDENTITY FULL, or take it out of the template", p.show())
	default:
		return nil, fmt.Errorf("{%s}: the event of type %s has no such column; correct the name, or write the types it is for before the command: \"delete: DEL ...\"", p.show(), f.e.Type)
	}
	switch {
	case string(raw) == "null":
		return nil, nil
	case len(raw) > 0 && raw[0] == '"':
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return nil, fmt.Errorf("{%s}: %w", p.show(), err)
		}
		return []byte(s), nil
	}
	return bytes.TrimSpace(raw), nil
}

func (f *Filler) look() {
	if f.asked {
		return
	}
	f.asked = true
	if f.e.Key != "" {
		_ = json.Unmarshal([]byte(f.e.Key), &f.key) // a key that is no object has no columns
	}
	if f.e.Data == nil {
		f.err = errors.New("it has no data")
	} else if err := json.Unmarshal(f.e.Data, &f.row); err != nil {
		f.err = errors.New("its data is no object of JSON with before and after")
	}
}

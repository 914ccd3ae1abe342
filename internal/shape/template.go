package shape

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/onewrite/onewrite"
)

// Template is a text with fields of an event in braces: {topic}, {key}, {type},
// {source}, {id}, {header.NAME}; {data} is the payload as it is, {data.a.b} a field in
// a payload of JSON. Of a row change there are {after.COLUMN}, {before.COLUMN}, and
// {key.COLUMN} of its primary key. {{ and }} stand for braces.
type Template struct {
	text  string
	parts []part
}

// part is text, or a field.
type part struct {
	text  string
	field string
	path  []string
}

// fields are those without a path.
var fields = map[string]func(*onewrite.Event) string{
	"topic":  func(e *onewrite.Event) string { return e.Topic },
	"key":    func(e *onewrite.Event) string { return e.Key },
	"type":   func(e *onewrite.Event) string { return e.Type },
	"source": func(e *onewrite.Event) string { return e.Source },
	"id":     func(e *onewrite.Event) string { return e.ID },
	"data":   func(e *onewrite.Event) string { return string(e.Data) },
}

// paths are the fields that are looked into.
var paths = map[string]bool{"data": true, "after": true, "before": true, "key": true, "header": true}

// ParseTemplate reads a template. The error says what is wrong and where.
func ParseTemplate(text string) (*Template, error) {
	t := &Template{text: text}
	var literal strings.Builder
	flush := func() {
		if literal.Len() > 0 {
			t.parts = append(t.parts, part{text: literal.String()})
			literal.Reset()
		}
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case (c == '{' || c == '}') && i+1 < len(text) && text[i+1] == c:
			literal.WriteByte(c)
			i++
		case c == '{':
			end := strings.IndexByte(text[i:], '}')
			if end < 0 {
				return nil, fmt.Errorf("the brace at character %d of %q is not closed; write {{ for a brace", i+1, text)
			}
			p, err := parseField(text[i+1 : i+end])
			if err != nil {
				return nil, err
			}
			flush()
			t.parts = append(t.parts, p)
			i += end
		case c == '}':
			return nil, fmt.Errorf("the brace at character %d of %q was not opened; write }} for a brace", i+1, text)
		default:
			literal.WriteByte(c)
		}
	}
	flush()
	return t, nil
}

func parseField(name string) (part, error) {
	field, path, deep := strings.Cut(name, ".")
	known := fields[field] != nil && !deep || paths[field] && deep && path != ""
	if !known {
		return part{}, fmt.Errorf("{%s} is no field; there are {topic}, {key}, {type}, {source}, {id}, {data}, {data.NAME}, {header.NAME}, and of row changes {after.COLUMN}, {before.COLUMN} and {key.COLUMN}", name)
	}
	p := part{field: field}
	switch {
	case !deep:
	case field == "data":
		p.path = strings.Split(path, ".")
	default: // a column or a header may have dots
		p.path = []string{path}
	}
	return p, nil
}

// String is the template as it was written.
func (t *Template) String() string { return t.text }

// Expand fills the fields in. The error names a field that the event does not have.
func (t *Template) Expand(e *onewrite.Event) (string, error) { return t.expand(&view{e: e}) }

func (t *Template) expand(v *view) (string, error) {
	if len(t.parts) == 1 && t.parts[0].field == "" {
		return t.parts[0].text, nil
	}
	var b strings.Builder
	for _, p := range t.parts {
		if p.field == "" {
			b.WriteString(p.text)
			continue
		}
		text, err := v.field(p)
		if err != nil {
			return "", err
		}
		b.WriteString(text)
	}
	return b.String(), nil
}

// field returns the text of a field.
func (v *view) field(p part) (string, error) {
	if p.path == nil {
		return fields[p.field](v.e), nil
	}
	name := p.field + "." + strings.Join(p.path, ".")
	var value any
	var err error
	path := p.path
	switch p.field {
	case "header":
		text, ok := v.e.Header[path[0]]
		if !ok {
			return "", fmt.Errorf("the event has no header %s", path[0])
		}
		return text, nil
	case "key":
		if value, err = parse([]byte(v.e.Key)); err != nil {
			return "", fmt.Errorf("{%s}: the key of the event is no JSON object, as that of a row change is", name)
		}
	case "after", "before":
		path = append([]string{p.field}, path...)
		fallthrough
	default:
		if value, err = v.payload(); err != nil {
			return "", fmt.Errorf("{%s}: %w", name, err)
		}
	}
	for _, step := range path {
		object, ok := value.(map[string]any)
		if !ok {
			return "", fmt.Errorf("the event has no {%s}", name)
		}
		if value, ok = object[step]; !ok {
			return "", fmt.Errorf("the event has no {%s}", name)
		}
	}
	return textOf(name, value)
}

// textOf is a JSON value as text.
func textOf(name string, value any) (string, error) {
	switch x := value.(type) {
	case nil:
		return "", fmt.Errorf("{%s} is null in this event", name)
	case string:
		return x, nil
	case json.Number:
		return x.String(), nil
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	err := enc.Encode(value)
	return strings.TrimSuffix(text.String(), "\n"), err
}

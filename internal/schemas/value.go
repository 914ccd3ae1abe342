package schemas

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep a payload is nested.
const maxDepth = 200

// object is a JSON object whose members keep their order.
type object struct {
	names  []string
	values map[string]any
}

func (o *object) get(name string) (any, bool) {
	if o == nil {
		return nil, false
	}
	v, ok := o.values[name]
	return v, ok
}

func (o *object) set(name string, v any) {
	if _, has := o.values[name]; !has {
		o.names = append(o.names, name)
	}
	o.values[name] = v
}

// parse reads a JSON text: nil, bool, json.Number, string, []any and *object. What
// would not come out as it is is an error.
func parse(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("the payload is not valid UTF-8")
	}
	p := parser{dec: json.NewDecoder(bytes.NewReader(data))}
	// A half of a surrogate pair becomes U+FFFD when it is read. Where the payload has
	// none of these, one that is found was made so.
	lower := bytes.ToLower(data)
	p.replaced = bytes.Contains(data, []byte("\uFFFD")) || bytes.Contains(lower, []byte(`\ufffd`)) || !bytes.Contains(lower, []byte(`\ud`))
	p.dec.UseNumber()
	v, err := p.value(0)
	if err != nil {
		return nil, fmt.Errorf("the payload is not JSON: %w", err)
	}
	if _, err := p.dec.Token(); err != io.EOF {
		return nil, errors.New("the payload is not one JSON value")
	}
	return v, nil
}

type parser struct {
	dec      *json.Decoder
	replaced bool // U+FFFD may stand in the payload itself
}

func (p *parser) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("it is nested deeper than %d", maxDepth)
	}
	t, err := p.dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case string:
		return t, p.whole(t)
	case json.Delim:
		if t == '[' {
			return p.array(depth)
		}
		return p.object(depth)
	}
	return t, nil
}

func (p *parser) whole(s string) error {
	if !p.replaced && strings.ContainsRune(s, utf8.RuneError) {
		return errors.New("a string has half of a surrogate pair, which is no text")
	}
	return nil
}

func (p *parser) array(depth int) (any, error) {
	list := []any{}
	for p.dec.More() {
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := p.dec.Token()
	return list, err
}

func (p *parser) object(depth int) (any, error) {
	o := &object{values: map[string]any{}}
	for p.dec.More() {
		t, err := p.dec.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, errors.New("a member has no name")
		}
		if err := p.whole(name); err != nil {
			return nil, err
		}
		if _, twice := o.values[name]; twice {
			return nil, fmt.Errorf("%q stands twice in an object", name)
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		o.set(name, v)
	}
	_, err := p.dec.Token()
	return o, err
}

// misfit says which field of a payload its schema does not take.
type misfit struct {
	path   string
	reason string
}

// Error names the field.
func (m *misfit) Error() string {
	if m.path == "" {
		return "the payload " + m.reason
	}
	return "field " + m.path + " " + m.reason
}

func misfitf(path, format string, args ...any) error {
	return &misfit{path: path, reason: fmt.Sprintf(format, args...)}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// what names the kind of a value in messages.
func what(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case json.Number:
		if isLong(string(v)) {
			return "an integer"
		}
		return "the number " + clip(string(v))
	case string:
		return "a string"
	case []any:
		return "an array"
	}
	return "an object"
}

// isLong reports whether a number is an integer of 64 bits, written as one.
func isLong(literal string) bool {
	_, err := strconv.ParseInt(literal, 10, 64)
	return err == nil && literal != "-0"
}

// clip shortens what is quoted.
func clip(s string) string {
	if len(s) > 40 {
		return s[:37] + "..."
	}
	return s
}

// exact returns a number as a float of 32 or 64 bits; false: the float is another one,
// and would be written in other digits.
func exact(literal string, bits int) (float64, bool) {
	f, err := strconv.ParseFloat(literal, bits)
	if err != nil {
		return 0, false
	}
	gotDigits, gotExp := digits(strconv.FormatFloat(f, 'e', -1, bits))
	wantDigits, wantExp := digits(literal)
	if gotDigits == wantDigits && (gotExp == wantExp || gotDigits == "") {
		return f, true
	}
	// An integer has the digits that it has: 2^60 is exact, though fewer would do.
	if strings.ContainsAny(literal, ".eE") {
		return 0, false
	}
	return f, strconv.FormatFloat(f, 'f', 0, 64) == literal
}

// digits returns the digits of a number without zeros around them, and the exponent of
// the first one: two numbers are equal if both are, and their signs.
func digits(literal string) (string, int) {
	mantissa, exp := strings.TrimLeft(literal, "+-"), 0
	if i := strings.IndexAny(mantissa, "eE"); i >= 0 {
		exp, _ = strconv.Atoi(mantissa[i+1:]) // at worst it is clamped, and differs
		mantissa = mantissa[:i]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	exp += len(whole)
	all := whole + fraction
	trimmed := strings.TrimLeft(all, "0")
	exp -= len(all) - len(trimmed)
	trimmed = strings.TrimRight(trimmed, "0")
	if trimmed == "" {
		exp = 0
	}
	return trimmed, exp
}

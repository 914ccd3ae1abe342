package schemas

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/twmb/avro"
)

// avroType is a type of an Avro schema, made for writing JSON values by it.
type avroType struct {
	word     string // record, union, int ...
	name     string // of a record
	decimal  bool
	scale    int
	digits   int // of a decimal, at most
	size     int // of a fixed
	fields   []avroField
	names    map[string]bool // of the fields, as JSON has them
	items    *avroType       // of an array, of a map's values
	branches []*avroType
	symbols  map[string]int
}

type avroField struct {
	name   string // as JSON has it
	typ    *avroType
	preset []byte // what is written where the payload has no such member; nil: it is missing
}

// avroCodec writes by one schema.
type avroCodec struct {
	root *avroType
	t    *table
}

// columnProp is the property of a field that has the name of its column, where a name
// of Avro cannot be that.
const columnProp = "column"

func parseAvro(text string) (*avroCodec, error) {
	s, err := avro.Parse(text)
	if err != nil {
		return nil, err
	}
	root := s.Root()
	b := &avroBuilder{named: map[string]*avroType{}}
	t, err := b.build(root)
	if err != nil {
		return nil, err
	}
	return &avroCodec{root: t, t: avroTable(root)}, nil
}

type avroBuilder struct {
	named map[string]*avroType
	space string // of the names that have none, where we are
}

// known returns a type that was defined before.
func (b *avroBuilder) known(name string) *avroType {
	if t := b.named[b.space+"."+name]; t != nil && !strings.Contains(name, ".") {
		return t
	}
	return b.named[name]
}

func (b *avroBuilder) build(n *avro.SchemaNode) (*avroType, error) {
	if t := b.known(n.Type); t != nil {
		return t, nil
	}
	t := &avroType{word: n.Type, size: n.Size}
	if n.LogicalType == "decimal" {
		t.decimal, t.scale, t.digits = true, n.Scale, n.Precision
	}
	if n.Name != "" {
		t.name = n.Name
		if n.Namespace != "" && !strings.Contains(n.Name, ".") {
			t.name = n.Namespace + "." + n.Name
		}
		b.named[t.name] = t
		around := b.space
		b.space = spaceOf(t.name)
		defer func() { b.space = around }()
	}
	var err error
	switch n.Type {
	case "record", "error":
		t.word = "record"
		return t, b.fields(t, n.Fields)
	case "array":
		t.items, err = b.build(n.Items)
	case "map":
		t.items, err = b.build(n.Values)
	case "enum":
		t.symbols = map[string]int{}
		for i, s := range n.Symbols {
			t.symbols[s] = i
		}
	case "union":
		for i := range n.Branches {
			one, err := b.build(&n.Branches[i])
			if err != nil {
				return nil, err
			}
			t.branches = append(t.branches, one)
		}
	case "null", "boolean", "int", "long", "float", "double", "string", "bytes", "fixed":
	default:
		return nil, errors.New("the type " + n.Type + " is not defined")
	}
	return t, err
}

// spaceOf is a full name without its last word.
func spaceOf(name string) string {
	return name[:max(strings.LastIndexByte(name, '.'), 0)]
}

func (b *avroBuilder) fields(t *avroType, fields []avro.SchemaField) error {
	t.names = map[string]bool{}
	for i := range fields {
		f := &fields[i]
		typ, err := b.build(&f.Type)
		if err != nil {
			return err
		}
		out := avroField{name: f.Name, typ: typ}
		if column, ok := f.Props[columnProp].(string); ok {
			out.name = column
		}
		if f.HasDefault {
			s, err := f.Type.Schema()
			if err != nil {
				return err
			}
			if out.preset, err = s.AppendEncode([]byte{}, f.Default); err != nil {
				return err
			}
		}
		t.fields = append(t.fields, out)
		t.names[out.name] = true
	}
	return nil
}

func (c *avroCodec) table() *table { return c.t }

func (c *avroCodec) append(b []byte, p *payload) ([]byte, error) {
	v := p.value
	if p.row != nil && c.t != nil {
		v = p.row.shaped(c.t)
	}
	return c.root.append(b, v, "")
}

// append writes a value, or says which part of it does not fit.
func (t *avroType) append(b []byte, v any, path string) ([]byte, error) {
	switch t.word {
	case "union":
		return t.union(b, v, path)
	case "null":
		if v == nil {
			return b, nil
		}
	case "boolean":
		if v, ok := v.(bool); ok {
			if v {
				return append(b, 1), nil
			}
			return append(b, 0), nil
		}
	case "record":
		if o, ok := v.(*object); ok {
			return t.record(b, o, path)
		}
	case "map":
		if o, ok := v.(*object); ok {
			return t.keyed(b, o, path)
		}
	case "array":
		if list, ok := v.([]any); ok {
			return t.array(b, list, path)
		}
	case "enum":
		if s, ok := v.(string); ok {
			i, has := t.symbols[s]
			if !has {
				return nil, misfitf(path, "is %q, which is none of the symbols of the schema", clip(s))
			}
			return binary.AppendVarint(b, int64(i)), nil
		}
	case "string":
		if s, ok := v.(string); ok {
			return append(binary.AppendVarint(b, int64(len(s))), s...), nil
		}
	case "bytes", "fixed":
		return t.binary(b, v, path)
	default:
		return t.number(b, v, path)
	}
	return nil, misfitf(path, "is %s, the schema has %s", what(v), t)
}

// String names the type in messages.
func (t *avroType) String() string {
	switch {
	case t.decimal:
		return "decimal(" + strconv.Itoa(t.digits) + "," + strconv.Itoa(t.scale) + ")"
	case t.name != "":
		return t.word + " " + t.name
	case t.word == "union":
		words := make([]string, len(t.branches))
		for i, one := range t.branches {
			words[i] = one.String()
		}
		return strings.Join(words, " or ")
	}
	return t.word
}

// union writes the first branch that takes the value. Where there is but one beside
// null, what it says is what is wrong.
func (t *avroType) union(b []byte, v any, path string) ([]byte, error) {
	var err error
	tried := 0
	for i, one := range t.branches {
		if (one.word == "null") != (v == nil) {
			continue
		}
		tried++
		var out []byte
		if out, err = one.append(binary.AppendVarint(b, int64(i)), v, path); err == nil {
			return out, nil
		}
	}
	if tried == 1 {
		return nil, err
	}
	return nil, misfitf(path, "is %s, the schema has %s", what(v), t)
}

func (t *avroType) record(b []byte, o *object, path string) ([]byte, error) {
	for _, name := range o.names {
		if !t.names[name] {
			return nil, misfitf(join(path, name), "is not in the schema")
		}
	}
	for i := range t.fields {
		f := &t.fields[i]
		v, has := o.values[f.name]
		if !has {
			if f.preset == nil {
				return nil, misfitf(join(path, f.name), "is missing, and the schema has no default of it")
			}
			b = append(b, f.preset...)
			continue
		}
		var err error
		if b, err = f.typ.append(b, v, join(path, f.name)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (t *avroType) keyed(b []byte, o *object, path string) ([]byte, error) {
	if len(o.names) > 0 {
		b = binary.AppendVarint(b, int64(len(o.names)))
	}
	for _, name := range o.names {
		b = append(binary.AppendVarint(b, int64(len(name))), name...)
		var err error
		if b, err = t.items.append(b, o.values[name], join(path, name)); err != nil {
			return nil, err
		}
	}
	return append(b, 0), nil
}

func (t *avroType) array(b []byte, list []any, path string) ([]byte, error) {
	if len(list) > 0 {
		b = binary.AppendVarint(b, int64(len(list)))
	}
	for i, v := range list {
		var err error
		if b, err = t.items.append(b, v, path+"["+strconv.Itoa(i)+"]"); err != nil {
			return nil, err
		}
	}
	return append(b, 0), nil
}

// number writes a number that comes out with the same digits, or none.
func (t *avroType) number(b []byte, v any, path string) ([]byte, error) {
	if s, ok := v.(string); ok && isOdd(s) && (t.word == "double" || t.word == "float") {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return nil, misfitf(path, "is %q: %v", s, err)
		}
		return t.float(b, f), nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return nil, misfitf(path, "is %s, the schema has %s", what(v), t)
	}
	switch t.word {
	case "int", "long":
		bits := map[string]int{"int": 32, "long": 64}[t.word]
		i, err := strconv.ParseInt(string(n), 10, bits)
		if err != nil {
			return nil, misfitf(path, "is %s, which %s does not hold", clip(string(n)), t)
		}
		return binary.AppendVarint(b, i), nil
	}
	bits := map[string]int{"float": 32, "double": 64}[t.word]
	f, ok := exact(string(n), bits)
	if !ok {
		return nil, misfitf(path, "is %s, which %s does not hold exactly", clip(string(n)), t)
	}
	return t.float(b, f), nil
}

func (t *avroType) float(b []byte, f float64) []byte {
	if t.word == "float" {
		return binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(f)))
	}
	return binary.LittleEndian.AppendUint64(b, math.Float64bits(f))
}

// binary writes base64 as bytes, and a decimal of a number or its text.
func (t *avroType) binary(b []byte, v any, path string) ([]byte, error) {
	var raw []byte
	if t.decimal {
		literal, ok := v.(string)
		if n, isNumber := v.(json.Number); isNumber {
			literal, ok = string(n), true
		}
		unscaled, fits := unscaled(literal, t.scale, t.digits)
		if !ok || !fits {
			return nil, misfitf(path, "is %s, which %s does not hold", what(v), t)
		}
		raw = twos(unscaled, t.size)
	} else {
		s, ok := v.(string)
		var err error
		if raw, err = base64.StdEncoding.DecodeString(s); !ok || err != nil {
			return nil, misfitf(path, "is not base64, which bytes have to be in JSON")
		}
	}
	if t.word == "fixed" {
		if len(raw) != t.size {
			return nil, misfitf(path, "has %d bytes, the schema has %d", len(raw), t.size)
		}
		return append(b, raw...), nil
	}
	return append(binary.AppendVarint(b, int64(len(raw))), raw...), nil
}

// unscaled returns a number as so many units of its last place; false: it has more
// places, or more digits.
func unscaled(literal string, scale, precision int) (*big.Int, bool) {
	if _, err := strconv.ParseFloat(literal, 64); err != nil && !errors.Is(err, strconv.ErrRange) || strings.ContainsAny(literal, "xXpP_nNiI") {
		return nil, false
	}
	all, exp := digits(literal)
	places := len(all) - exp // behind the point, without zeros at the end
	if all != "" && (places > scale || exp+scale > precision) {
		return nil, false
	}
	n, ok := new(big.Int).SetString(all+strings.Repeat("0", scale-places), 10)
	if all == "" {
		n, ok = new(big.Int), true
	}
	if ok && strings.HasPrefix(literal, "-") {
		n.Neg(n)
	}
	return n, ok
}

// twos returns the two's complement, of size bytes or, for 0, of as few as it takes.
func twos(n *big.Int, size int) []byte {
	bits := n.BitLen()
	if n.Sign() < 0 {
		bits = new(big.Int).Not(n).BitLen()
	}
	size = max(size, bits/8+1)
	if n.Sign() < 0 {
		n = new(big.Int).Add(n, new(big.Int).Lsh(big.NewInt(1), uint(8*size)))
	}
	return n.FillBytes(make([]byte, size))
}

package schemas

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// protoCodec writes by one schema.
type protoCodec struct {
	file   linker.File
	t      *table
	fields []protoField // of the rows, by number
}

// protoName is what a schema is called while it is read.
const protoName = "schema.proto"

// parseProto reads a schema: its text, or its descriptor in base64, as some clients
// register it. A registry's text must not make us read files: there is no other one but
// those that come with Protobuf.
func parseProto(text string) (*protoCodec, error) {
	var fd *descriptorpb.FileDescriptorProto
	if raw, err := base64.StdEncoding.DecodeString(text); err == nil && len(raw) > 0 {
		fd = &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(raw, fd); err != nil {
			return nil, err
		}
		fd.Name = proto.String(protoName)
	}
	c := protocompile.Compiler{MaxParallelism: 1, Resolver: protocompile.WithStandardImports(protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
		switch {
		case path != protoName:
			return protocompile.SearchResult{}, errors.New("it refers to " + path + ", which is not read")
		case fd != nil:
			return protocompile.SearchResult{Proto: fd}, nil
		}
		return protocompile.SearchResult{Source: strings.NewReader(text)}, nil
	}))}
	files, err := c.Compile(context.Background(), protoName)
	if err != nil {
		return nil, err
	}
	out := &protoCodec{file: files[0]}
	out.t, out.fields = protoTable(out.file)
	return out, nil
}

func (c *protoCodec) table() *table { return c.t }

func (c *protoCodec) append(b []byte, p *payload) ([]byte, error) {
	md := c.message(p.name)
	if md == nil {
		return nil, misfitf("", "has no place: the schema has no message")
	}
	m := dynamicpb.NewMessage(md)
	var err error
	if p.row != nil && c.t != nil {
		err = c.change(m, p.row)
	} else {
		err = fromJSON(m, p)
	}
	if err != nil {
		return nil, err
	}
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(appendIndex(b, md), m)
	if err != nil {
		return nil, misfitf("", "does not fit message %s: %s", md.FullName(), said(err))
	}
	return out, nil
}

// message is the one that is called as the event's type is, else the first; nil: the
// schema has none.
func (c *protoCodec) message(name string) protoreflect.MessageDescriptor {
	if md, ok := c.file.FindDescriptorByName(protoreflect.FullName(name)).(protoreflect.MessageDescriptor); ok && !md.IsMapEntry() {
		return md
	}
	if c.file.Messages().Len() == 0 {
		return nil
	}
	return c.file.Messages().Get(0)
}

// appendIndex says which message of the file follows: how many steps, and the place at
// each; the first of all is a zero.
func appendIndex(b []byte, md protoreflect.MessageDescriptor) []byte {
	var steps []int
	for d := protoreflect.Descriptor(md); d != d.ParentFile(); d = d.Parent() {
		steps = append(steps, d.Index())
	}
	if len(steps) == 1 && steps[0] == 0 {
		return append(b, 0)
	}
	b = binary.AppendVarint(b, int64(len(steps)))
	for _, i := range slices.Backward(steps) {
		b = binary.AppendVarint(b, int64(i))
	}
	return b
}

// change writes a row change by a schema that onewrite made.
func (c *protoCodec) change(m protoreflect.Message, r *row) error {
	var nulls []string
	if err := c.fill(m, r.data, "", &nulls); err != nil {
		return err
	}
	list := m.Mutable(m.Descriptor().Fields().ByName("nulls")).List()
	for _, path := range nulls {
		list.Append(protoreflect.ValueOfString(path))
	}
	return nil
}

// fill sets what an object has. The columns that are null have no value in their
// message, so they are named; what is absent is neither here nor there.
func (c *protoCodec) fill(m protoreflect.Message, o *object, path string, nulls *[]string) error {
	isRow := path == "before" || path == "after"
	for _, name := range o.names {
		v, at := o.values[name], join(path, name)
		fd := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		if isRow {
			fd = c.column(m.Descriptor(), name, v)
		}
		switch {
		case v == nil:
			if isRow {
				*nulls = append(*nulls, at)
			}
			continue
		case isRow && v == unavailable && (fd == nil || fd.Kind() != protoreflect.StringKind):
			continue // it is named in source.unchanged
		case at == "nulls":
			fd = nil // it is what is noted here
		}
		if err := c.set(m, fd, v, at, nulls); err != nil {
			return err
		}
	}
	return nil
}

func (c *protoCodec) set(m protoreflect.Message, fd protoreflect.FieldDescriptor, v any, path string, nulls *[]string) error {
	switch {
	case fd == nil || fd.IsMap(): // somebody has changed what onewrite made
		return misfitf(path, "is not in the schema")
	case fd.IsList():
		list, ok := v.([]any)
		if !ok {
			return misfitf(path, "is %s, the schema has an array", what(v))
		}
		for i, one := range list {
			to := m.Mutable(fd).List()
			out, err := c.value(to.NewElement(), fd, one, path+"["+strconv.Itoa(i)+"]", nulls)
			if err != nil {
				return err
			}
			to.Append(out)
		}
		return nil
	}
	out, err := c.value(m.NewField(fd), fd, v, path, nulls)
	if err == nil {
		m.Set(fd, out)
	}
	return err
}

// value is one of a field, or says what does not fit.
func (c *protoCodec) value(empty protoreflect.Value, fd protoreflect.FieldDescriptor, v any, path string, nulls *[]string) (protoreflect.Value, error) {
	switch v := v.(type) {
	case bool:
		if fd.Kind() == protoreflect.BoolKind {
			return protoreflect.ValueOfBool(v), nil
		}
	case string:
		switch {
		case fd.Kind() == protoreflect.StringKind:
			return protoreflect.ValueOfString(v), nil
		case fd.Kind() == protoreflect.DoubleKind && isOdd(v):
			f, err := strconv.ParseFloat(v, 64)
			return protoreflect.ValueOfFloat64(f), err
		}
	case json.Number:
		switch fd.Kind() {
		case protoreflect.Int64Kind:
			if i, err := strconv.ParseInt(string(v), 10, 64); err == nil {
				return protoreflect.ValueOfInt64(i), nil
			}
		case protoreflect.DoubleKind:
			f, ok := exact(string(v), 64)
			if !ok {
				return empty, misfitf(path, "is %s, which double does not hold exactly", clip(string(v)))
			}
			return protoreflect.ValueOfFloat64(f), nil
		}
	case *object:
		if fd.Kind() == protoreflect.MessageKind && fd.Message().Name() != arrayMessage {
			return empty, c.fill(empty.Message(), v, path, nulls)
		}
	case []any:
		if fd.Kind() == protoreflect.MessageKind && fd.Message().Name() == arrayMessage {
			return empty, c.array(empty.Message(), v, path)
		}
	}
	return empty, misfitf(path, "is %s, the schema has %s", what(v), fd.Kind())
}

// array writes each item as what it is; one that is null is none of them.
func (c *protoCodec) array(m protoreflect.Message, list []any, path string) error {
	k, err := kindOf(path, list)
	if err != nil {
		return err
	}
	fd := m.Descriptor().Fields().ByName("items")
	if fd == nil || !fd.IsList() || fd.Kind() != protoreflect.MessageKind {
		return misfitf(path, "is an array, and the schema has no items for it")
	}
	items := m.Mutable(fd).List()
	for i, v := range list {
		item := items.AppendMutable().Message()
		word := ""
		switch v := v.(type) {
		case nil:
			continue
		case bool:
			word = "boolean"
		case json.Number:
			if word = "number"; isLong(string(v)) {
				word = "integer"
			}
		case string:
			if word = "text"; isOdd(v) && k.items.base == double {
				word = "number"
			}
		case []any:
			word = "array"
		}
		if err := c.set(item, item.Descriptor().Fields().ByName(protoreflect.Name(word)), v, path+"["+strconv.Itoa(i)+"]", nil); err != nil {
			return err
		}
	}
	return nil
}

// fromJSON writes a payload as Protobuf's own mapping of JSON says, which refuses what
// the message does not have. What that mapping would round, or forget, is refused too.
func fromJSON(m *dynamicpb.Message, p *payload) error {
	md := m.Descriptor()
	if err := (protojson.UnmarshalOptions{Resolver: new(protoregistry.Types)}).Unmarshal(p.data, m); err != nil {
		return misfitf("", "does not fit message %s: %s", md.FullName(), said(err))
	}
	return keeps(md, p.value, "")
}

// said is an error of the library without its name, which is followed by one space or
// another.
func said(err error) string {
	_, words, found := strings.Cut(err.Error(), "proto:")
	if !found {
		return err.Error()
	}
	return strings.TrimSpace(words)
}

// keeps reports what of a payload would not come out of its message again.
func keeps(md protoreflect.MessageDescriptor, v any, path string) error {
	switch md.FullName() {
	case "google.protobuf.FloatValue":
		return float(v, 32, path)
	case "google.protobuf.DoubleValue":
		return float(v, 64, path)
	case "google.protobuf.Value", "google.protobuf.Struct", "google.protobuf.ListValue":
		return digitsIn(v, 64, path)
	}
	o, ok := v.(*object)
	if !ok || strings.HasPrefix(string(md.FullName()), "google.protobuf.") {
		return nil
	}
	for _, name := range o.names {
		fd := md.Fields().ByJSONName(name)
		if fd == nil {
			fd = md.Fields().ByTextName(name)
		}
		if fd == nil {
			continue
		}
		if err := keepsField(fd, o.values[name], join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func keepsField(fd protoreflect.FieldDescriptor, v any, path string) error {
	if v == nil && !fd.HasPresence() && !(fd.Enum() != nil && fd.Enum().FullName() == "google.protobuf.NullValue") {
		return misfitf(path, "is null, which the schema has for optional fields alone")
	}
	values, of := []any{v}, fd
	switch list, _ := v.([]any); {
	case fd.IsList():
		values = list
	case fd.IsMap():
		values, of = nil, fd.MapValue()
		if o, ok := v.(*object); ok {
			for _, name := range o.names {
				values = append(values, o.values[name])
			}
		}
	}
	for _, v := range values {
		var err error
		switch of.Kind() {
		case protoreflect.MessageKind, protoreflect.GroupKind:
			err = keeps(of.Message(), v, path)
		case protoreflect.FloatKind:
			err = float(v, 32, path)
		case protoreflect.DoubleKind:
			err = float(v, 64, path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// float refuses what a float would round. Protobuf takes numbers in quotes as well.
func float(v any, bits int, path string) error {
	if s, ok := v.(string); ok && !isOdd(s) {
		v = json.Number(s)
	}
	return digitsIn(v, bits, path)
}

// digitsIn refuses numbers, at any depth, that a float would round.
func digitsIn(v any, bits int, path string) error {
	switch v := v.(type) {
	case json.Number:
		if _, ok := exact(string(v), bits); !ok {
			return misfitf(path, "is %s, which a float of %d bits does not hold exactly", clip(string(v)), bits)
		}
	case []any:
		for _, one := range v {
			if err := digitsIn(one, bits, path); err != nil {
				return err
			}
		}
	case *object:
		for _, name := range v.names {
			if err := digitsIn(v.values[name], bits, join(path, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

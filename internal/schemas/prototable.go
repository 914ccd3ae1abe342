package schemas

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// The schema of row changes in Protobuf is the envelope as a message, the first of its
// file, with one for the table's rows. A column's number is its own for ever: a column
// that is gone stays as a field that is deprecated, and has it again when it is back. A
// reserved one could not come back, and registries take that for a field removed.
//
// A column that had whole numbers gets a second field with its first fraction, since no
// type takes both on the wire. One of the two is set: integers stay where they were.

// protoField is a field of the rows.
type protoField struct {
	column string
	twin   bool // it is the second one of its column, for fractions
	gone   bool // the table has lost the column
	name   string
	number protoreflect.FieldNumber
	kind   kind
}

const (
	rowMessage   = "Value"
	arrayMessage = "Array"
	// twinSuffix makes the second field's JSON name of the column's.
	twinSuffix = ".double"
)

// deriveProto is the schema of a table, with the numbers of the version before.
func deriveProto(t *table, before codec) (string, error) {
	var fields []protoField
	if was, ok := before.(*protoCodec); ok {
		fields = slices.Clone(was.fields)
	}
	for i := range fields {
		fields[i].gone = true
	}
	for _, c := range t.columns {
		if c.kind.base == unknown {
			continue // it gets a field with its first value
		}
		var f *protoField
		fields, f = place(fields, c.name, false, c.kind)
		if k := f.kind.with(c.kind).settled(); k.base == double && f.kind.base == long {
			fields, _ = place(fields, c.name, true, k)
		} else {
			f.kind = k
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "// Row changes, as onewrite derives them from its events.\nsyntax = \"proto3\";\n\npackage %s;\n\n", t.space)
	fmt.Fprintf(&b, "option java_package = \"%s%s\";\n", ours, strings.ReplaceAll(strings.TrimPrefix(t.space, ours), ".", "_"))
	b.WriteString(protoEnvelope)
	b.WriteString("\nmessage Source {\n")
	for i, f := range sourceMembers {
		typ := "optional " + protoOf(kind{base: f.word})
		if f.word == list {
			typ = "repeated string"
		}
		protoField{column: f.name, name: f.name, number: protoreflect.FieldNumber(i + 1)}.print(&b, typ)
	}
	fmt.Fprintf(&b, "}\n\nmessage %s {\n", rowMessage)
	for _, f := range fields {
		f.print(&b, "optional "+protoOf(f.kind))
	}
	b.WriteString("}\n")
	return b.String(), nil
}

const protoEnvelope = `
message Envelope {
  Value before = 1;
  Value after = 2;
  Source source = 3;
  string op = 4;
  optional int64 ts_ms = 5 [json_name = "ts_ms"];
  Transaction transaction = 6;
  // The columns that are null, as before.NAME and after.NAME. What is not set and not
  // here is absent.
  repeated string nulls = 7;
}

message Transaction {
  string id = 1;
  int64 total_order = 2 [json_name = "total_order"];
  int64 data_collection_order = 3 [json_name = "data_collection_order"];
}

message Array {
  repeated Item items = 1;
}

// Null is an item with none of these.
message Item {
  oneof kind {
    bool boolean = 1;
    int64 integer = 2;
    double number = 3;
    string text = 4;
    Array array = 5;
  }
}
`

// place returns the field of a column, which is made with the next number if there is
// none.
func place(fields []protoField, column string, twin bool, k kind) ([]protoField, *protoField) {
	i := slices.IndexFunc(fields, func(f protoField) bool { return f.column == column && f.twin == twin })
	if i < 0 {
		i = len(fields)
		f := protoField{column: column, twin: twin, number: 1, kind: k.settled()}
		if i > 0 {
			f.number = fields[i-1].number + 1
		}
		if f.number == protoreflect.FieldNumber(19000) { // up to 19999 they are Protobuf's own
			f.number = 20000
		}
		if f.name = identifier(column); twin {
			f.name += "_double"
		}
		for slices.ContainsFunc(fields, f.clashes) {
			f.name += "_" + strconv.Itoa(int(f.number))
		}
		fields = append(fields, f)
	}
	fields[i].gone = false
	return fields, &fields[i]
}

// clashes reports whether two names are one to a compiler of Protobuf, or to an older
// one: they compare names without underscores, in lower case.
func (f protoField) clashes(o protoField) bool {
	bare := strings.NewReplacer("_", "")
	return strings.EqualFold(bare.Replace(f.name), bare.Replace(o.name))
}

// print writes a field with the column's own name beside it, where the two differ in
// JSON.
func (f protoField) print(b *strings.Builder, typ string) {
	var options []string
	name := f.column
	if f.twin {
		name += twinSuffix
	}
	if f.name != name || strings.Contains(name, "_") {
		options = append(options, "json_name = "+protoQuoted(name))
	}
	if f.gone {
		options = append(options, "deprecated = true")
	}
	fmt.Fprintf(b, "  %s %s = %d", typ, f.name, f.number)
	if options != nil {
		fmt.Fprintf(b, " [%s]", strings.Join(options, ", "))
	}
	b.WriteString(";\n")
}

// protoQuoted is a string of Protobuf, with escapes that all its readers know.
func protoQuoted(s string) string {
	b := []byte{'"'}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c == 0x7f {
			b = fmt.Appendf(b, `\%03o`, c)
		} else {
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}

// protoOf is the type of a column.
func protoOf(k kind) string {
	switch k.base {
	case boolean:
		return "bool"
	case long:
		return "int64"
	case double:
		return "double"
	case list:
		return arrayMessage
	}
	return "string"
}

// protoTable reads a table from its schema; nil: onewrite has not made it.
func protoTable(file protoreflect.FileDescriptor) (*table, []protoField) {
	space := string(file.Package())
	envelope, rows := file.Messages().ByName("Envelope"), file.Messages().ByName(rowMessage)
	if !strings.HasPrefix(space, ours) || envelope == nil || envelope.Index() != 0 || rows == nil {
		return nil, nil
	}
	if nulls := envelope.Fields().ByName("nulls"); nulls == nil || !nulls.IsList() || nulls.Kind() != protoreflect.StringKind {
		return nil, nil
	}
	t := &table{space: space, sparse: true}
	var fields []protoField
	for i := range rows.Fields().Len() {
		fd := rows.Fields().Get(i)
		f := protoField{column: fd.JSONName(), name: string(fd.Name()), number: fd.Number()}
		var ok bool
		if f.kind, ok = kindOfProto(fd); !ok {
			return nil, nil
		}
		if options, ok := fd.Options().(*descriptorpb.FieldOptions); ok {
			f.gone = options.GetDeprecated()
		}
		fields = append(fields, f)
	}
	slices.SortFunc(fields, func(a, b protoField) int { return int(a.number - b.number) })
	for i := range fields {
		f := &fields[i]
		of, isTwin := strings.CutSuffix(f.column, twinSuffix)
		first := slices.IndexFunc(fields, func(o protoField) bool { return o.column == of && !o.twin })
		switch f.twin = isTwin && first >= 0 && fields[first].kind.base == long && f.kind.base == double; {
		case f.twin:
			f.column = of
		case !f.gone:
			t.columns = append(t.columns, column{f.column, f.kind})
		}
	}
	for i := range t.columns {
		c := &t.columns[i]
		if c.kind.base == long && slices.ContainsFunc(fields, func(f protoField) bool { return f.twin && !f.gone && f.column == c.name }) {
			c.kind = kind{base: double}
		}
	}
	return t, fields
}

func kindOfProto(fd protoreflect.FieldDescriptor) (kind, bool) {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return kind{base: boolean}, fd.HasPresence()
	case protoreflect.Int64Kind:
		return kind{base: long}, fd.HasPresence()
	case protoreflect.DoubleKind:
		return kind{base: double}, fd.HasPresence()
	case protoreflect.StringKind:
		return kind{base: text}, fd.HasPresence()
	case protoreflect.MessageKind:
		return kind{base: list, items: &kind{base: anything}}, fd.HasPresence() && fd.Message().Name() == arrayMessage
	}
	return kind{}, false
}

// column is the field for a value of a column; nil: there is none.
func (c *protoCodec) column(md protoreflect.MessageDescriptor, name string, v any) protoreflect.FieldDescriptor {
	var found protoreflect.FieldDescriptor
	n, isNumber := v.(json.Number)
	s, isText := v.(string)
	fraction := isNumber && !isLong(string(n)) || isText && isOdd(s)
	for _, f := range c.fields {
		if f.column == name && (!f.twin || fraction) {
			found = md.Fields().ByNumber(f.number)
		}
	}
	return found
}

package config

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kind is how a setting is written and read.
type kind int

const (
	kindString kind = iota
	kindBool
	kindInt
	kindSize
	kindDuration
	kindSecret
	kindStrings    // a list of texts
	kindSecrets    // one secret or a list
	kindSecretMap  // name: secret
	kindTextMap    // name: text
	kindStruct     // a mapping of known keys
	kindStructMap  // name: mapping of known keys
	kindKeep       // "1GB / 24h" or a mapping
	kindBatch      // true, false or a mapping
	kindNotSetting // not in the file
)

// field is one key of the file.
type field struct {
	name, doc, def, unless, example, special string

	index    int // of the struct's field
	kind     kind
	types    []string // the types it belongs to; empty: all
	per      map[string]string
	need     []string // the types that need it
	enum     []string
	min, max int64
	not      bool   // the struct stores the opposite
	sub      *table // of a mapping
}

// table is one mapping of known keys.
type table struct {
	typ    reflect.Type
	fields []*field
}

// root is the table of the whole file.
var root = tableOf(reflect.TypeFor[Config]())

// find returns the field of a key, or nil.
func (t *table) find(key string) *field {
	for _, f := range t.fields {
		if f.name == key {
			return f
		}
	}
	return nil
}

// names returns the keys that a mapping of this type may have.
func (t *table) names(typ string) []string {
	var out []string
	for _, f := range t.fields {
		if f.belongs(typ) {
			out = append(out, f.name)
		}
	}
	return out
}

// belongs reports whether the field may stand in a mapping of this type; an
// empty type allows all.
func (f *field) belongs(typ string) bool {
	return typ == "" || len(f.types) == 0 || slices.Contains(f.types, typ)
}

// needed reports whether a mapping of this type cannot do without the field.
func (f *field) needed(typ string) bool {
	return slices.Contains(f.need, "*") || slices.Contains(f.need, typ)
}

// of returns the field as it is in a mapping of this type.
func (f *field) of(typ string) *field {
	text := f.per[typ]
	if text == "" {
		return f
	}
	own := *f
	if len(f.enum) == 0 {
		own.example = text
		return &own
	}
	if own.enum = words(text, "|"); !slices.Contains(own.enum, f.def) {
		own.def = ""
	}
	return &own
}

func tableOf(t reflect.Type) *table {
	out := &table{typ: t}
	for i := range t.NumField() {
		sf := t.Field(i)
		tag := sf.Tag
		name := tag.Get("yaml")
		k, sub := kindOf(sf.Type)
		if name == "-" || name == "" || k == kindNotSetting {
			continue
		}
		f := &field{
			name: name, doc: tag.Get("doc"), def: tag.Get("default"), unless: tag.Get("unless"),
			example: tag.Get("example"), special: tag.Get("kind"), index: i, kind: k, not: tag.Get("as") == "not",
			types: words(tag.Get("for"), ","), need: words(tag.Get("need"), ","), enum: words(tag.Get("enum"), "|"), per: map[string]string{},
		}
		for _, own := range words(tag.Get("per"), "; ") {
			typ, text, _ := strings.Cut(own, " ")
			f.per[typ] = text
		}
		if low, high, ok := strings.Cut(tag.Get("range"), ".."); ok {
			f.min, f.max = f.number(low), f.number(high)
		}
		if sub != nil {
			f.sub = tableOf(sub)
		}
		out.fields = append(out.fields, f)
	}
	return out
}

func words(s, sep string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, sep)
}

// kindOf tells how a Go type is written, and the struct behind it if any.
func kindOf(t reflect.Type) (kind, reflect.Type) {
	switch t {
	case reflect.TypeFor[Secret]():
		return kindSecret, nil
	case reflect.TypeFor[[]Secret]():
		return kindSecrets, nil
	case reflect.TypeFor[map[string]Secret]():
		return kindSecretMap, nil
	case reflect.TypeFor[map[string]string]():
		return kindTextMap, nil
	case reflect.TypeFor[[]string]():
		return kindStrings, nil
	case reflect.TypeFor[Size]():
		return kindSize, nil
	case reflect.TypeFor[time.Duration]():
		return kindDuration, nil
	case reflect.TypeFor[Keep]():
		return kindKeep, t
	case reflect.TypeFor[*Batch]():
		return kindBatch, t.Elem()
	}
	switch t.Kind() {
	case reflect.String:
		return kindString, nil
	case reflect.Bool:
		return kindBool, nil
	case reflect.Int:
		return kindInt, nil
	case reflect.Struct:
		return kindStruct, t
	case reflect.Pointer:
		return kindStruct, t.Elem()
	case reflect.Map:
		return kindStructMap, t.Elem()
	}
	return kindNotSetting, nil
}

// number reads a bound of range; a test proves that all of them can be read.
func (f *field) number(text string) int64 {
	switch f.kind {
	case kindSize:
		n, _ := parseSize(text)
		return int64(n)
	case kindDuration:
		d, _ := parseDuration(text)
		return int64(d)
	}
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// show prints a number as the file writes it.
func (f *field) show(n int64) string {
	switch f.kind {
	case kindSize:
		return Size(n).String()
	case kindDuration:
		return showDuration(time.Duration(n))
	}
	return strconv.FormatInt(n, 10)
}

// sample is a value to show in a cure.
func (f *field) sample() string {
	switch {
	case f.example != "":
		return f.example
	case f.def != "":
		return f.def
	case len(f.enum) > 0:
		return f.enum[0]
	case f.min != 0:
		return f.show(f.min)
	case f.kind == kindBool || f.kind == kindBatch:
		return "true"
	}
	return "..."
}

// setDefault stores the default in v, the struct's field.
func (f *field) setDefault(v reflect.Value) {
	switch f.kind {
	case kindString:
		v.SetString(f.def)
	case kindInt, kindSize, kindDuration:
		v.SetInt(f.number(f.def))
	}
}

// fill gives the fields of a struct that hold nothing their defaults, but for
// those that skip names by their dotted path.
func fill(v reflect.Value, t *table, path string, skip func(path string) bool) {
	typ := typeOf(v, t)
	for _, f := range t.fields {
		f = f.of(typ)
		at, fv := join(path, f.name), v.Field(f.index)
		switch {
		case !f.belongs(typ): // the checks say so
		case f.kind == kindStructMap:
			for _, key := range fv.MapKeys() {
				entry := reflect.New(fv.Type().Elem()).Elem()
				entry.Set(fv.MapIndex(key))
				fill(entry, f.sub, join(at, key.String()), skip)
				fv.SetMapIndex(key, entry)
			}
		case f.sub != nil && fv.Kind() == reflect.Pointer:
			if !fv.IsNil() {
				fresh := reflect.New(fv.Type().Elem())
				fresh.Elem().Set(fv.Elem())
				fill(fresh.Elem(), f.sub, at, skip)
				fv.Set(fresh)
			}
		case f.sub != nil:
			fill(fv, f.sub, at, skip)
		case f.def == "" || !fv.IsZero() || skip(at):
		case f.unless != "" && !v.Field(t.find(f.unless).index).IsZero():
		default:
			f.setDefault(fv)
		}
	}
}

// typeOf returns the type of a source or destination if it is one of the known
// ones, else nothing.
func typeOf(v reflect.Value, t *table) string {
	f := t.find("type")
	if f == nil {
		return ""
	}
	if typ := v.Field(f.index).String(); slices.Contains(f.enum, typ) {
		return typ
	}
	return ""
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

package config

import (
	"encoding/json"
	"reflect"
	"strings"
)

type object = map[string]any

// The forms of scalars in the schema.
const (
	referencePattern = `\$\{(env|file):[^}]+\}`
	sizePattern      = `^ *[0-9]+(\.[0-9]+)? *([KkMmGgTt][Ii]?[Bb]?|[Pp][Ii][Bb]?|[Bb])? *$`
	durationPattern  = `^ *([0-9]+d|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))*) *$`
	keepPattern      = `^ *[0-9][0-9A-Za-zµ.]*( *[A-Za-z]+)? *(/ *[0-9][0-9A-Za-zµ.]* *)?$`
)

// Schema returns the JSON Schema (draft 7) of the file, for editors. It accepts
// every file that [Parse] accepts; what it cannot see are rules between settings
// and the ranges of sizes and durations.
func Schema() []byte {
	top := structSchema(root, "", true)
	top["$schema"] = "http://json-schema.org/draft-07/schema#"
	top["title"] = "onewrite"
	top["description"] = "Configuration of onewrite. What it cannot say, onewrite check does."
	top["definitions"] = object{"reference": object{"type": "string", "pattern": referencePattern,
		"description": "${env:NAME} or ${file:path}"}}
	out, _ := json.MarshalIndent(top, "", "  ") // maps, slices, strings and numbers cannot fail
	return append(out, '\n')
}

// structSchema is a mapping of known keys, for one type or, when typ is empty,
// for all.
func structSchema(t *table, typ string, must bool) object {
	properties, required := object{}, []string{}
	for _, f := range t.fields {
		if !f.belongs(typ) {
			continue
		}
		properties[f.name] = f.of(typ).schema()
		if f.needed(typ) {
			required = append(required, f.name)
		}
	}
	out := object{"type": sectionType(must), "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		out["required"] = required
	}
	return out
}

// sectionType allows a section whose lines are all comments, unless it must be.
func sectionType(must bool) any {
	if must {
		return "object"
	}
	return []string{"object", "null"}
}

func (f *field) schema() object {
	out := f.form()
	out["description"] = f.doc
	if f.def == "" {
		return out
	}
	switch f.kind {
	case kindInt:
		out["default"] = f.number(f.def)
	case kindBool:
		out["default"] = f.def == "true"
	default:
		out["default"] = f.def
	}
	return out
}

func (f *field) form() object {
	reference := object{"$ref": "#/definitions/reference"}
	text := object{"type": "string", "minLength": 1}
	pattern := func(p string) object { return object{"type": "string", "pattern": p} }
	switch f.kind {
	case kindString:
		switch {
		case f.name == "type" && len(f.enum) > 0:
			return object{"enum": f.enum}
		case len(f.enum) > 0:
			return object{"anyOf": []object{{"enum": f.enum}, reference}}
		}
		return text
	case kindSecret:
		return text
	case kindBool:
		return object{"anyOf": []object{{"type": "boolean"}, reference}}
	case kindInt:
		return object{"anyOf": []object{{"type": "integer", "minimum": f.min, "maximum": f.max}, reference}}
	case kindSize:
		return object{"anyOf": []object{{"type": "integer", "minimum": f.min, "maximum": f.max}, pattern(sizePattern), reference}}
	case kindDuration:
		return object{"anyOf": []object{pattern(durationPattern), reference}}
	case kindStrings:
		return object{"type": "array", "minItems": 1, "items": text}
	case kindSecrets:
		return object{"anyOf": []object{text, {"type": "array", "minItems": 1, "items": text}}}
	case kindSecretMap, kindTextMap:
		return object{"type": sectionType(false), "additionalProperties": text}
	case kindKeep:
		return object{"anyOf": []object{pattern(keepPattern), reference, structSchema(f.sub, "", false)}}
	case kindBatch:
		return object{"anyOf": []object{{"type": "boolean"}, structSchema(f.sub, "", true)}}
	case kindStructMap:
		return f.namedSchema()
	}
	if kinds := f.sub.find("type"); kinds != nil && kinds.def != "" {
		return kindsSchema(f.sub, kinds)
	}
	return structSchema(f.sub, "", false)
}

// kindsSchema is a mapping whose keys depend on its type; a type that is not written is
// the default.
func kindsSchema(t *table, kinds *field) object {
	var variants []object
	for _, typ := range kinds.enum {
		is := object{"type": "object", "properties": object{"type": object{"const": typ}}}
		if typ != kinds.def {
			is["required"] = []string{"type"}
		}
		variants = append(variants, object{"if": is, "then": structSchema(t, typ, false)})
	}
	return object{"type": sectionType(false), "properties": object{"type": kinds.schema()}, "allOf": variants}
}

// namedSchema is a mapping of names to mappings, each by its type if they have one.
func (f *field) namedSchema() object {
	must := len(f.need) > 0
	kinds := f.sub.find("type")
	var entry object
	if kinds == nil || len(kinds.need) == 0 { // or of kinds that have the same keys
		entry = structSchema(f.sub, "", true)
	} else {
		entry = object{"type": "object", "required": []string{"type"}, "properties": object{"type": kinds.schema()}}
		var variants []object
		for _, typ := range kinds.enum {
			variants = append(variants, object{
				"if":   object{"properties": object{"type": object{"const": typ}}, "required": []string{"type"}},
				"then": structSchema(f.sub, typ, true),
			})
		}
		entry["allOf"] = variants
	}
	out := object{"type": sectionType(must), "additionalProperties": entry,
		"propertyNames": object{"pattern": namePattern.String()}}
	if f.special == "foreign" {
		out["propertyNames"] = object{"minLength": 1}
	}
	if must {
		out["minProperties"] = 1
	}
	return out
}

// typeText names the form of a setting on the reference page.
func (f *field) typeText() string {
	switch f.kind {
	case kindString:
		switch {
		case len(f.enum) > 0:
			return "`" + strings.Join(f.enum, "` `") + "`"
		case f.special == "path":
			return "path"
		}
		return "text"
	case kindSecret:
		return "text, hidden"
	case kindBool:
		return "`true` `false`"
	case kindInt:
		return "number, " + f.show(f.min) + " to " + f.show(f.max)
	case kindSize:
		return "size, " + f.show(f.min) + " to " + f.show(f.max)
	case kindDuration:
		return "duration, " + f.show(f.min) + " to " + f.show(f.max)
	case kindStrings:
		return "list of texts"
	case kindSecrets:
		return "text or list of texts, hidden"
	case kindSecretMap:
		return "mapping of names to texts, hidden"
	case kindTextMap:
		return "mapping of names to texts"
	case kindStructMap:
		return "mapping of names to mappings"
	case kindKeep:
		return "`size / age` or mapping"
	case kindBatch:
		return "`true` `false` or mapping"
	}
	return "mapping"
}

// at returns the table at a path such as "destinations.retry".
func (t *table) at(path string) *table {
	for _, name := range strings.Split(path, ".") {
		if f := t.find(name); f != nil && f.sub != nil {
			t = f.sub
		}
	}
	return t
}

// defaultText shows a default on the reference page.
func (f *field) defaultText(typ string) string {
	switch {
	case f.needed(typ) || (len(f.need) > 0 && typ == ""):
		return "required"
	case f.def != "":
		return "`" + f.def + "`"
	case f.kind == kindBool:
		return "`false`"
	case f.kind == kindKeep:
		var keep Keep
		fill(reflect.ValueOf(&keep).Elem(), f.sub, "", func(string) bool { return false })
		return "`" + keep.Size.String() + " / " + showDuration(keep.Age) + "`"
	}
	return ""
}

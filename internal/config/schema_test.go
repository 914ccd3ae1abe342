package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// schemaSays evaluates the part of JSON Schema that Schema uses; a keyword that
// it does not know is a complaint.
type schemaSays struct{ definitions map[string]any }

var readSchema = sync.OnceValue(func() map[string]any {
	var top map[string]any
	_ = json.Unmarshal(Schema(), &top) // of nothing, all is taken, and the tests fail
	return top
})

func (s schemaSays) check(schema map[string]any, v any, path string) []string {
	var out []string
	complain := func(format string, args ...any) { out = append(out, path+": "+fmt.Sprintf(format, args...)) }
	text, isText := v.(string)
	number, isNumber := v.(float64)
	list, isList := v.([]any)
	object, isObject := v.(map[string]any)
	for keyword, arg := range schema {
		switch keyword {
		case "$schema", "title", "description", "default", "definitions", "then":
		case "$ref":
			out = append(out, s.check(s.definitions[strings.TrimPrefix(arg.(string), "#/definitions/")].(map[string]any), v, path)...)
		case "type":
			if !isType(arg, v) {
				complain("is no %v", arg)
			}
		case "enum":
			if !slices.Contains(arg.([]any), v) {
				complain("is none of %v", arg)
			}
		case "const":
			if v != arg {
				complain("is not %v", arg)
			}
		case "anyOf":
			if !slices.ContainsFunc(arg.([]any), func(a any) bool { return len(s.check(a.(map[string]any), v, path)) == 0 }) {
				complain("fits no alternative")
			}
		case "allOf":
			for _, a := range arg.([]any) {
				out = append(out, s.check(a.(map[string]any), v, path)...)
			}
		case "if":
			if len(s.check(arg.(map[string]any), v, path)) == 0 {
				out = append(out, s.check(schema["then"].(map[string]any), v, path)...)
			}
		case "minLength":
			if isText && len(text) < int(arg.(float64)) {
				complain("is too short")
			}
		case "pattern":
			if isText && !compiled(arg.(string)).MatchString(text) {
				complain("does not match %v", arg)
			}
		case "minimum", "maximum":
			if isNumber && ((keyword == "minimum" && number < arg.(float64)) || (keyword == "maximum" && number > arg.(float64))) {
				complain("is beyond %s %v", keyword, arg)
			}
		case "minItems":
			if isList && len(list) < int(arg.(float64)) {
				complain("has too few items")
			}
		case "items":
			for i, item := range list {
				out = append(out, s.check(arg.(map[string]any), item, fmt.Sprintf("%s[%d]", path, i))...)
			}
		case "minProperties":
			if isObject && len(object) < int(arg.(float64)) {
				complain("has too few keys")
			}
		case "required":
			for _, key := range arg.([]any) {
				if _, ok := object[key.(string)]; isObject && !ok {
					complain("lacks %v", key)
				}
			}
		default:
			if slices.Contains([]string{"properties", "additionalProperties", "propertyNames"}, keyword) {
				out = append(out, s.keys(schema, keyword, object, path)...)
				continue
			}
			complain("the schema has an unknown keyword %s", keyword)
		}
	}
	return out
}

var patterns sync.Map

func compiled(pattern string) *regexp.Regexp {
	if re, ok := patterns.Load(pattern); ok {
		return re.(*regexp.Regexp)
	}
	re := regexp.MustCompile(pattern)
	patterns.Store(pattern, re)
	return re
}

func (s schemaSays) keys(schema map[string]any, keyword string, object map[string]any, path string) []string {
	var out []string
	known, _ := schema["properties"].(map[string]any)
	for key, value := range object {
		at, here := join(path, key), known[key]
		switch {
		case keyword == "properties" && here != nil:
			out = append(out, s.check(here.(map[string]any), value, at)...)
		case keyword == "propertyNames":
			out = append(out, s.check(schema[keyword].(map[string]any), key, at+"(key)")...)
		case keyword == "additionalProperties" && here == nil:
			if more, ok := schema[keyword].(map[string]any); ok {
				out = append(out, s.check(more, value, at)...)
			} else if schema[keyword] == false {
				out = append(out, at+": unknown key")
			}
		}
	}
	return out
}

func isType(arg, v any) bool {
	if list, ok := arg.([]any); ok {
		return slices.ContainsFunc(list, func(a any) bool { return isType(a, v) })
	}
	switch v := v.(type) {
	case nil:
		return arg == "null"
	case bool:
		return arg == "boolean"
	case string:
		return arg == "string"
	case float64:
		return arg == "number" || (arg == "integer" && v == float64(int64(v)))
	case []any:
		return arg == "array"
	}
	return arg == "object"
}

// plainData turns YAML into what JSON knows.
func plainData(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = plainData(v[k])
		}
	case map[any]any:
		out := map[string]any{}
		for k := range v {
			out[fmt.Sprint(k)] = plainData(v[k])
		}
		return out
	case []any:
		for i := range v {
			v[i] = plainData(v[i])
		}
	case int:
		return float64(v)
	case int64:
		return float64(v)
	case uint64:
		return float64(v)
	case time.Time:
		return v.Format(time.RFC3339)
	}
	return v
}

// shapely reports whether the parser found something that the schema must see.
func shapely(err error) bool {
	var bad Problems
	return errors.As(err, &bad) && slices.ContainsFunc(bad, func(p Problem) bool { return p.shape })
}

// agree complains if the parser and the schema disagree about a file; it
// returns what the parser said.
func agree(t testing.TB, data []byte, dir string) error {
	t.Helper()
	top := readSchema()
	s := schemaSays{top["definitions"].(map[string]any)}
	var v any
	_, _, err := Parse(data, "x", dir)
	if yaml.Unmarshal(data, &v) != nil {
		if err == nil {
			t.Errorf("the parser took what YAML refuses:\n%s", data)
		}
		return err
	}
	says := s.check(top, plainData(v), "")
	if err == nil && len(says) > 0 {
		t.Errorf("the schema refuses what the parser takes:\n%s\n%s", data, strings.Join(says, "\n"))
	}
	if shapely(err) && len(says) == 0 {
		t.Errorf("the schema takes what the parser refuses:\n%s\n%v", data, err)
	}
	return err
}

func TestSchemaAgreesOnCorpus(t *testing.T) {
	dir := stage(t)
	for _, file := range corpus(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(file) != "alias_bomb.yaml" {
			agree(t, data, dir)
		}
	}
}

// TestSchemaAgreesOnEverySetting puts every kind of value at every setting.
func TestSchemaAgreesOnEverySetting(t *testing.T) {
	dir := stage(t)
	if err := os.WriteFile(filepath.Join(dir, "x.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	values := []any{"", "x", "x.pem", "5", "5s", "5MB", "1GB / 24h", "true", "park-key", "${env:FOUR}", "https://a.example/",
		5, 50000000, -1, 0, 1.5, true, false, nil, []any{}, []any{"x"}, []any{5}, []any{""}, map[string]any{}, map[string]any{"x": "y"},
		map[string]any{"unknown": 1}, map[string]any{"count": 5}, map[string]any{"age": "5m"}}
	base := func() map[string]any {
		return map[string]any{
			"sources": map[string]any{
				"pg": map[string]any{"type": "postgres", "url": "postgres://localhost/x", "roles": map[string]any{}},
				"sl": map[string]any{"type": "sqlite", "path": "a.db"}},
			"destinations": map[string]any{
				"wh": map[string]any{"type": "webhook", "url": "https://a.example/", "secret": "${env:CANARY}", "retry": map[string]any{}, "batch": map[string]any{}, "tls": map[string]any{}},
				"fi": map[string]any{"type": "file", "path": "-"},
				"na": map[string]any{"type": "nats", "url": "nats://localhost"},
				"re": map[string]any{"type": "redis", "url": "redis://localhost"},
				"ca": map[string]any{"type": "redis", "url": "redis://localhost", "commands": []any{"DEL {key}"}},
				"ka": map[string]any{"type": "kafka", "brokers": []any{"localhost:9092"}, "sasl": map[string]any{"mechanism": "oauthbearer", "token": "${env:CANARY}"}}},
			"bus": map[string]any{"keep": map[string]any{}}, "log": map[string]any{}}
	}
	tried, refused := 0, 0
	var visit func(at map[string]any, tab *table, rebuild func() []byte)
	visit = func(at map[string]any, tab *table, rebuild func() []byte) {
		for _, key := range append(tab.names(""), "unknown") {
			old, had := at[key]
			for _, value := range values {
				at[key] = value
				if agree(t, rebuild(), dir) != nil {
					refused++
				}
				tried++
			}
			if delete(at, key); had {
				agree(t, rebuild(), dir)
				at[key] = old
			}
		}
		for _, f := range tab.fields {
			sub, ok := at[f.name].(map[string]any)
			switch {
			case !ok || f.sub == nil:
			case f.kind == kindStructMap:
				for _, name := range slices.Sorted(maps.Keys(sub)) {
					visit(sub[name].(map[string]any), f.sub, rebuild)
				}
			default:
				visit(sub, f.sub, rebuild)
			}
		}
	}
	top := base()
	rebuild := func() []byte {
		data, err := json.Marshal(top)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if _, warnings, err := Parse(rebuild(), "x", dir); err != nil || len(warnings) > 0 {
		t.Fatal("the base is not valid: ", err, warnings)
	}
	visit(top, root, rebuild)
	if tried < 2000 || refused < tried/2 || refused == tried {
		t.Errorf("%d files, %d refused: this test proves little", tried, refused)
	}
}

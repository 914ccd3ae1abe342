package config

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	maxFile  = 1 << 20 // bytes
	maxNodes = 100_000 // visited, so that aliases cannot multiply without bound
	maxDepth = 16

	maxProblems = 1000 // found before the walk ends
)

// place is where a setting stands.
type place struct {
	line, column int
	ref          bool // its value came from a reference: never show it
	broken       bool // a problem was reported already
}

// decoder walks the node tree beside the table.
type decoder struct {
	file, dir string
	problems  Problems
	places    map[string]place
	nodes     int
	depth     int
	full      bool // a bound was passed: the walk ends
	literal   bool // a secret stands in the file itself
	also      []Check
}

// pair is one key and its value in a mapping.
type pair struct {
	key   string
	at    *yaml.Node
	value *yaml.Node
}

func (d *decoder) report(n *yaml.Node, path, message, cure string, warning, shape bool) {
	d.problems = append(d.problems, Problem{File: d.file, Line: max(n.Line, 1), Column: max(n.Column, 1),
		Path: path, Message: message, Cure: cure, Warning: warning, shape: shape})
}

// bad reports an error about the value at path.
func (d *decoder) bad(n *yaml.Node, path, message, cure string) {
	p := d.places[path]
	p.broken = true
	if p.line == 0 {
		p.line, p.column = n.Line, n.Column
	}
	d.places[path] = p
	d.report(n, path, message, cure, false, false)
}

// wrong reports a value of the wrong shape: one that the JSON Schema refuses too.
func (d *decoder) wrong(n *yaml.Node, path, message, cure string) {
	d.bad(n, path, message, cure)
	d.problems[len(d.problems)-1].shape = !d.places[path].ref
}

func (d *decoder) warn(n *yaml.Node, path, message, cure string) {
	d.report(n, path, message, cure, true, false)
}

// enter follows aliases and counts; nil says that the walk ends here.
func (d *decoder) enter(n *yaml.Node, path string) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil && d.count(n, path) {
		n = n.Alias
	}
	if !d.count(n, path) {
		return nil
	}
	if d.depth > maxDepth {
		d.bad(n, path, "is nested too deeply", "nothing in this file is deeper than five levels")
		return nil
	}
	return n
}

// count bounds the work; the first time that a bound is passed is reported.
func (d *decoder) count(n *yaml.Node, path string) bool {
	d.nodes++
	if d.full {
		return false
	}
	switch {
	case d.nodes > maxNodes:
		d.bad(n, path, "the file has too many values, counting what aliases repeat", "write fewer aliases")
	case len(d.problems) > maxProblems:
		d.bad(n, path, "too many problems; the rest of the file was not read", "cure these first")
	default:
		return true
	}
	d.full = true
	return false
}

// pairs lists a mapping's keys: merge keys spread out, repeats refused.
func (d *decoder) pairs(n *yaml.Node, path string) []pair {
	var out, merged []pair
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if !d.count(k, path) {
			return out
		}
		if k.Kind != yaml.ScalarNode {
			d.wrong(k, path, "a key must be plain text", "write name: value")
			continue
		}
		if k.Tag == "!!merge" {
			merged = append(merged, d.merge(v, path)...)
			continue
		}
		if first := seen[k.Value]; first != nil {
			d.bad(k, join(path, k.Value), fmt.Sprintf("is written twice, first at line %d", first.Line), "keep one")
			continue
		}
		seen[k.Value] = k
		out = append(out, pair{k.Value, k, v})
	}
	for _, m := range merged {
		if seen[m.key] == nil {
			seen[m.key] = m.at
			out = append(out, m)
		}
	}
	return out
}

// merge lists what a merge key (<<) brings: one mapping or a list of them.
func (d *decoder) merge(v *yaml.Node, path string) []pair {
	d.depth++
	defer func() { d.depth-- }()
	n := d.enter(v, path)
	switch {
	case n == nil:
		return nil
	case n.Kind == yaml.MappingNode:
		return d.pairs(n, path)
	case n.Kind == yaml.SequenceNode:
		var out []pair
		for _, item := range n.Content {
			if m := d.enter(item, path); m != nil && m.Kind == yaml.MappingNode {
				out = append(out, d.pairs(m, path)...)
			}
		}
		return out
	}
	d.bad(n, path, "a merge key (<<) takes a mapping", "write <<: *name, with &name before a mapping")
	return nil
}

// structure reads a mapping of known keys into v.
func (d *decoder) structure(n *yaml.Node, v reflect.Value, t *table, path string) {
	d.depth++
	defer func() { d.depth-- }()
	pairs := d.pairs(n, path)
	typ := d.typeIn(pairs, t)
	for _, p := range pairs {
		at := join(path, p.key)
		if !d.count(p.at, at) {
			return
		}
		f := t.find(p.key)
		if f == nil {
			d.unknown(p, t, typ, at)
			continue
		}
		d.places[at] = place{line: p.at.Line, column: p.at.Column}
		if !f.belongs(typ) {
			d.wrong(p.at, at, "does not belong to type "+typ, "it belongs to "+typesText(f.types)+": remove it here")
			continue
		}
		d.value(p.value, v.Field(f.index), f.of(typ), at)
	}
}

// typeIn looks ahead for the type, since keys come in any order.
func (d *decoder) typeIn(pairs []pair, t *table) string {
	f := t.find("type")
	for _, p := range pairs {
		if f != nil && p.key == "type" && slices.Contains(f.enum, p.value.Value) {
			return p.value.Value
		}
	}
	if f != nil && !slices.ContainsFunc(pairs, func(p pair) bool { return p.key == "type" }) {
		return f.def
	}
	return ""
}

func (d *decoder) unknown(p pair, t *table, typ, at string) {
	cure := "known are " + strings.Join(t.names(typ), ", ")
	if best := nearest(p.key, t.names(typ)); best != "" {
		cure = fmt.Sprintf("did you mean %q?", best)
	} else if home := root.homeOf(p.key, ""); home != "" {
		cure = "it belongs under " + home
	}
	d.wrong(p.at, at, "unknown key", cure)
}

// homeOf returns the path of the mapping that knows the key, if there is one.
func (t *table) homeOf(key, path string) string {
	for _, f := range t.fields {
		if f.sub == nil {
			continue
		}
		at := join(path, f.name)
		if f.kind == kindStructMap {
			at += ".NAME"
		}
		if f.sub.find(key) != nil {
			return at
		}
		if home := f.sub.homeOf(key, at); home != "" {
			return home
		}
	}
	return ""
}

// value reads one setting into v.
func (d *decoder) value(n *yaml.Node, v reflect.Value, f *field, path string) {
	if n = d.enter(n, path); n == nil {
		return
	}
	if f.kind == kindStruct || f.kind == kindStructMap { // their place stays the key's
		d.mapping(n, v, f, path)
		return
	}
	p := d.places[path]
	p.line, p.column = n.Line, n.Column
	d.places[path] = p
	switch f.kind {
	case kindKeep:
		d.keep(n, v, f, path)
	case kindBatch:
		d.batch(n, v, f, path)
	case kindStrings, kindSecrets:
		d.list(n, v, f, path)
	case kindSecretMap, kindTextMap:
		d.textMap(n, v, f, path)
	default:
		d.scalar(n, v, f, path)
	}
}

// mapping reads a mapping of known keys, or of names to such mappings.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, f *field, path string) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a section whose lines are all comments
	}
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, "must be a mapping, not "+kindName(n), "write its keys on the lines below, indented")
		return
	}
	if f.kind == kindStruct {
		if v.Kind() == reflect.Pointer {
			v.Set(reflect.New(v.Type().Elem()))
			v = v.Elem()
		}
		d.structure(n, v, f.sub, path)
		return
	}
	d.depth++
	defer func() { d.depth-- }()
	v.Set(reflect.MakeMap(v.Type()))
	for _, p := range d.pairs(n, path) {
		at := join(path, p.key)
		d.places[at] = place{line: p.at.Line, column: p.at.Column}
		entry := reflect.New(v.Type().Elem()).Elem()
		if m := d.enter(p.value, at); m != nil && m.Kind == yaml.MappingNode {
			d.structure(m, entry, f.sub, at)
		} else if m != nil && m.Tag != "!!null" {
			d.wrong(m, at, "must be a mapping, not "+kindName(m), "write type: and its other keys on the lines below, indented")
			continue
		}
		v.SetMapIndex(reflect.ValueOf(p.key), entry)
	}
}

// list reads a list of texts or secrets; a single secret is a list of one.
func (d *decoder) list(n *yaml.Node, v reflect.Value, f *field, path string) {
	item := *f
	item.kind = kindString
	if f.kind == kindSecrets {
		item.kind = kindSecret
	}
	if n.Kind == yaml.ScalarNode && f.kind == kindSecrets {
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		d.scalar(n, v.Index(0), &item, path)
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.wrong(n, path, "must be a list, not "+kindName(n), "write "+f.name+": "+f.sample())
		return
	}
	if len(n.Content) == 0 {
		d.wrong(n, path, "is an empty list", "give it an item, or remove the key")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, c := range n.Content {
		at := path + "[" + strconv.Itoa(i) + "]"
		if m := d.enter(c, at); m != nil {
			d.places[at] = place{line: m.Line, column: m.Column}
			d.scalar(m, v.Index(i), &item, at)
		}
	}
}

// textMap reads a mapping of names to secrets or texts.
func (d *decoder) textMap(n *yaml.Node, v reflect.Value, f *field, path string) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, "must be a mapping, not "+kindName(n), "write "+f.name+": "+f.sample())
		return
	}
	item := *f
	if item.kind, item.example = kindString, "TEXT"; f.kind == kindSecretMap {
		item.kind, item.example = kindSecret, "${env:NAME}"
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, p := range d.pairs(n, path) {
		at := join(path, p.key)
		d.places[at] = place{line: p.at.Line, column: p.at.Column}
		if m := d.enter(p.value, at); m != nil {
			text := reflect.New(v.Type().Elem()).Elem()
			item.name = p.key
			d.scalar(m, text, &item, at)
			v.SetMapIndex(reflect.ValueOf(p.key), text)
		}
	}
}

// keep reads "1GB / 24h", either alone, or a mapping.
func (d *decoder) keep(n *yaml.Node, v reflect.Value, f *field, path string) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		d.mapping(n, v, &field{name: f.name, kind: kindStruct, sub: f.sub}, path)
		return
	}
	const cure = "write keep: 1GB / 24h, keep: 1GB or keep: 24h"
	text, ok := d.text(n, path, n.Tag == "!!str", cure)
	if !ok {
		return
	}
	parts := strings.Split(text, "/")
	for i, part := range parts {
		keep := v.Addr().Interface().(*Keep)
		age, notAge := parseDuration(part)
		size, notSize := parseSize(part)
		switch {
		case notSize == nil && i == 0 && !(notAge == nil && len(parts) == 1):
			keep.Size = size
			d.places[join(path, "size")] = d.places[path]
		case notAge == nil && i == len(parts)-1:
			keep.Age = age
			d.places[join(path, "age")] = d.places[path]
		default:
			d.wrong(n, path, "is not a size / an age", cure)
			return
		}
	}
}

// batch reads true, false or a mapping.
func (d *decoder) batch(n *yaml.Node, v reflect.Value, f *field, path string) {
	as := &field{name: f.name, kind: kindStruct, sub: f.sub}
	switch {
	case n.Kind == yaml.MappingNode:
		d.mapping(n, v, as, path)
	case n.Kind == yaml.ScalarNode && n.Tag == "!!bool":
		if strings.EqualFold(n.Value, "true") {
			v.Set(reflect.ValueOf(&Batch{}))
		}
	default:
		d.wrong(n, path, "must be true, false or a mapping, not "+kindName(n), "write batch: true or batch: {count: 100, bytes: 1MB, linger: 5ms}")
	}
}

// resolve makes a relative path start at the file's folder.
func (d *decoder) resolve(f *field, text string) string {
	if f.special != "path" || text == "-" || filepath.IsAbs(text) {
		return text
	}
	return filepath.Join(d.dir, text)
}

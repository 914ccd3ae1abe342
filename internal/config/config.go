package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Load reads and checks a file. The warnings say what is allowed but unwise;
// they may come with an error too. The error is [Problems] for what is wrong
// inside the file, else says why it cannot be read; the configuration is nil
// then. also are checks of what this package cannot judge.
func Load(path string, also ...Check) (*Config, Problems, error) {
	data, info, err := read(path)
	if err != nil {
		return nil, nil, err
	}
	d := &decoder{file: path, dir: filepath.Dir(path), also: also}
	cfg := d.run(data)
	if d.literal && worldReadable(info) {
		d.warn(&yaml.Node{}, "", "every user of this machine can read this file and the secret in it", "chmod 600 "+path)
	}
	return d.finish(cfg)
}

// Check looks for what is wrong with settings, and reports each by its path, what is
// wrong and the cure.
type Check func(c *Config, bad func(path, message, cure string))

// read returns the bytes of a configuration file; one more than maxFile if it is
// larger.
func read(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%s: no such file (%w); make one with: onewrite init, or name another with -c FILE", path, fs.ErrNotExist)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w; let the user that runs onewrite read it", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if info.IsDir() {
		return nil, nil, fmt.Errorf("%s: is a folder; name the file in it with -c FILE", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, info, nil
}

// Parse reads and checks a configuration from memory. The name stands in the
// problems; relative paths start at dir. It returns what [Load] does.
func Parse(data []byte, name, dir string, also ...Check) (*Config, Problems, error) {
	d := &decoder{file: name, dir: dir, also: also}
	return d.finish(d.run(data))
}

// Validate gives the settings that hold nothing their defaults and checks all.
// The error is [Problems], without lines. It is for configurations that a
// program made or changed.
func (c *Config) Validate(also ...Check) error {
	c.ownMaps()
	fill(reflect.ValueOf(c).Elem(), root, "", func(string) bool { return false })
	check := &checker{cfg: c, also: also}
	check.run()
	if bad, _ := check.problems.split(); len(bad) > 0 {
		return bad
	}
	return nil
}

// ownMaps copies the maps, so that filling them changes nobody else's.
func (c *Config) ownMaps() {
	sources, destinations := c.Sources, c.Destinations
	c.Sources, c.Destinations = make(map[string]Source, len(sources)), make(map[string]Destination, len(destinations))
	for name, s := range sources {
		c.Sources[name] = s
	}
	for name, d := range destinations {
		c.Destinations[name] = d
	}
}

// Endpoint returns where the instance of a configuration listens, and the token
// that it wants, for the commands that only talk to it: all else in the file may
// be wrong, and the secrets of sources and destinations may be missing. The error
// says what is wrong with these two, or why the file cannot be read.
func Endpoint(path string) (listen string, token Secret, err error) {
	data, _, err := read(path)
	if err != nil {
		return "", Secret{}, err
	}
	d := decoder{file: path, dir: filepath.Dir(path)}
	cfg := d.run(data)
	bad, _ := d.problems.split()
	bad = slices.DeleteFunc(bad, func(p Problem) bool { return cfg != nil && p.Path != "listen" && p.Path != "token" })
	if len(bad) > 0 {
		return "", Secret{}, bad
	}
	return cfg.Listen, cfg.Token, nil
}

// run parses, decodes, fills in and checks.
func (d *decoder) run(data []byte) *Config {
	d.places = map[string]place{}
	cfg := &Config{Dir: d.dir}
	top := d.parse(data)
	if top == nil {
		return nil
	}
	d.structure(top, reflect.ValueOf(cfg).Elem(), root, "")
	fill(reflect.ValueOf(cfg).Elem(), root, "", func(path string) bool {
		p, written := d.places[path]
		return written && !p.broken
	})
	if _, written := d.places["bus.dir"]; !written && cfg.Bus.Dir != "" { // the default, too, starts at the file's folder
		cfg.Bus.Dir = filepath.Join(d.dir, cfg.Bus.Dir)
	}
	check := &checker{cfg: cfg, file: d.file, places: d.places, also: d.also}
	check.run()
	d.problems = append(d.problems, check.problems...)
	return cfg
}

const maxShown = 100 // problems

func (d *decoder) finish(cfg *Config) (*Config, Problems, error) {
	bad, warnings := d.problems.split()
	if len(warnings) > maxShown {
		warnings = warnings[:maxShown]
	}
	if len(bad) == 0 {
		return cfg, warnings, nil
	}
	if more := len(bad) - maxShown; more > 0 {
		next := bad[maxShown]
		bad = append(slices.Clip(bad[:maxShown]), Problem{File: d.file, Line: next.Line, Column: next.Column,
			Message: fmt.Sprintf("%d more problems follow", more), Cure: "cure those above first"})
	}
	return nil, warnings, bad
}

// parse returns the top mapping, or nil after reporting why there is none.
func (d *decoder) parse(data []byte) *yaml.Node {
	if len(data) > maxFile {
		d.report(&yaml.Node{}, "", "the file is larger than 1 MiB", "name the configuration, not another file, with -c FILE", false, false)
		return nil
	}
	if n, message := badByte(data); n != nil {
		d.report(n, "", message, "save the file as plain UTF-8 text", false, false)
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) || (err == nil && emptyDocument(&doc)) {
		d.report(&yaml.Node{}, "", "the file is empty: it names no source", "write one with comments: onewrite init", false, true)
		return nil
	}
	if err == nil {
		err = dec.Decode(&second)
		if err == nil {
			d.report(&second, "", "the file has several documents", "keep what stands before the second ---", false, false)
			return nil
		}
	}
	if !errors.Is(err, io.EOF) && err != nil {
		d.syntax(data, err)
		return nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		d.report(top, "", "the file must be a mapping, not "+kindName(top), "begin with sources:, or see what onewrite init writes", false, true)
		return nil
	}
	return top
}

func emptyDocument(doc *yaml.Node) bool {
	return len(doc.Content) == 0 || (doc.Content[0].Kind == yaml.ScalarNode && doc.Content[0].Tag == "!!null")
}

// badByte returns the place of the first byte that is not text.
func badByte(data []byte) (*yaml.Node, string) {
	line, start := 1, 0
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		at := func() *yaml.Node { return &yaml.Node{Line: line, Column: utf8.RuneCount(data[start:i]) + 1} }
		switch {
		case r == utf8.RuneError && size <= 1:
			return at(), "the file is not UTF-8 text"
		case r == '\n':
			line, start = line+1, i+1
		case r < 0x20 && r != '\t' && r != '\r', r >= 0x7f && r < 0xa0 && r != 0x85:
			return at(), fmt.Sprintf("the file has a control character (%U)", r)
		}
		i += size
	}
	return nil, ""
}

var (
	syntaxLine    = regexp.MustCompile(`line (\d+): `)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced`)
)

// find returns the line and column of the first place of a text, from 1.
func find(lines []string, text string) (line, column int) {
	for i, l := range lines {
		if before, _, ok := strings.Cut(l, text); ok {
			return i + 1, utf8.RuneCountInString(before) + 1
		}
	}
	return 1, 1
}

// syntax reports what the YAML parser said, at the line that it means.
func (d *decoder) syntax(data []byte, err error) {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	at := &yaml.Node{Line: 1, Column: 1}
	if m := syntaxLine.FindStringSubmatch(message); m != nil {
		at.Line, _ = strconv.Atoi(m[1])
		message = strings.Replace(message, m[0], "", 1)
	}
	cure := "look at the indentation, quotes and colons here and on the line above"
	lines := strings.Split(string(data), "\n")
	for i := at.Line - 1; i <= at.Line && i < len(lines); i++ { // the parser counts some lines from 0
		indent := lines[max(i, 0)]
		indent = indent[:len(indent)-len(strings.TrimLeft(indent, " \t"))]
		if tab := strings.IndexByte(indent, '\t'); tab >= 0 {
			at.Line, at.Column = max(i, 0)+1, tab+1
			message, cure = "a tab cannot indent", "use spaces"
			break
		}
	}
	if m := unknownAnchor.FindStringSubmatch(message); m != nil {
		at.Line, at.Column = find(lines, "*"+m[1])
		message, cure = "an alias (*name) has no anchor (&name) before it", "write the anchor first; quote a value that begins with *"
	}
	d.report(at, "", "this is not YAML: "+message, cure, false, false)
}

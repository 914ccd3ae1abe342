package config

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
)

// checker looks for what is wrong with values, each alone and together. With
// places it reports where; without, the configuration was made by a program.
type checker struct {
	cfg      *Config
	file     string
	places   map[string]place
	problems Problems
	also     []Check
}

// at returns the place of a setting, or of the nearest one around it.
func (c *checker) at(path string) place {
	for {
		if p, ok := c.places[path]; ok {
			return p
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return place{line: 1, column: 1}
		}
		path = path[:i]
	}
}

func (c *checker) add(p Problem) {
	p.File = c.file
	if c.places != nil {
		at := c.at(p.Path)
		p.Line, p.Column = at.line, at.column
	}
	c.problems = append(c.problems, p)
}

func (c *checker) bad(path, message, cure string) {
	c.add(Problem{Path: path, Message: message, Cure: cure})
}

// wrong reports a value that the JSON Schema refuses too, if it can see it.
func (c *checker) wrong(path, message, cure string) {
	c.add(Problem{Path: path, Message: message, Cure: cure, shape: !c.places[path].ref})
}

func (c *checker) warn(path, message, cure string) {
	c.add(Problem{Path: path, Message: message, Cure: cure, Warning: true})
}

// broken reports whether a problem of the setting was reported already.
func (c *checker) broken(path string) bool { return c.places[path].broken }

// present reports whether a setting was written; of a program's configuration,
// whether it holds something.
func (c *checker) present(path string, v any) bool {
	if c.places == nil {
		return !reflect.ValueOf(v).IsZero()
	}
	_, ok := c.places[path]
	return ok
}

// show quotes a value for a message, unless it came from a reference: then it
// may be a secret that stands in the wrong place.
func (c *checker) show(path, text string) string {
	if c.at(path).ref {
		return "what the reference stands for"
	}
	if len(text) > 60 {
		text = text[:57] + "..."
	}
	return fmt.Sprintf("%q", text)
}

// run does all checks.
func (c *checker) run() {
	c.structure(reflect.ValueOf(c.cfg).Elem(), root, "")
	if len(c.cfg.Sources) == 0 && !c.broken("sources") {
		c.wrong("sources", "there is no source", "write sources: {NAME: {type: sqlite, path: app.db}}, or run: onewrite init")
	}
	if len(c.cfg.Destinations) == 0 && !c.broken("destinations") {
		c.warn("destinations", "there is no destination", "events stay on the bus until one is added and onewrite reload is run")
	}
	for _, name := range sorted(c.cfg.Sources) {
		c.name("sources."+name, name)
		c.source("sources."+name, c.cfg.Sources[name])
	}
	for _, name := range sorted(c.cfg.Destinations) {
		c.name("destinations."+name, name)
		c.destination("destinations."+name, c.cfg.Destinations[name])
	}
	c.twins()
	c.bus("bus", c.cfg.Bus)
	c.listen()
	for _, check := range c.also {
		check(c.cfg, func(path, message, cure string) {
			refused := slices.ContainsFunc(c.problems, func(p Problem) bool { return p.Path == path && !p.Warning })
			if !refused && !c.broken(path) {
				c.bad(path, message, cure)
			}
		})
	}
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// structure checks what the table says: needs, words, ranges and types.
func (c *checker) structure(v reflect.Value, t *table, path string) {
	typ := typeOf(v, t)
	for _, f := range t.fields {
		at, fv := join(path, f.name), v.Field(f.index)
		if c.broken(at) {
			continue
		}
		switch {
		case !f.belongs(typ):
			if !fv.IsZero() {
				c.wrong(at, "does not belong to type "+typ, "it belongs to "+typesText(f.types)+": remove it here")
			}
		case f.kind == kindStructMap:
			for _, key := range fv.MapKeys() {
				c.structure(fv.MapIndex(key), f.sub, join(at, key.String()))
			}
		case f.sub != nil && fv.Kind() == reflect.Pointer:
			if !fv.IsNil() {
				c.structure(fv.Elem(), f.sub, at)
			}
		case f.sub != nil:
			c.structure(fv, f.sub, at)
		default:
			c.value(fv, f.of(typ), typ, at)
		}
	}
}

func (c *checker) value(v reflect.Value, f *field, typ, at string) {
	switch f.kind {
	case kindInt, kindSize, kindDuration:
		n := v.Int()
		if n == 0 && !c.present(at, n) {
			return
		}
		if n < f.min || n > f.max {
			c.add(Problem{Path: at, Message: f.show(n) + " is out of range", Cure: "write " + f.show(f.min) + " to " + f.show(f.max),
				shape: f.kind == kindInt && !c.places[at].ref})
		}
	case kindString, kindSecret:
		if v.IsZero() {
			if f.needed(typ) {
				cure := fmt.Sprintf("write %s: %s", f.name, f.sample())
				if len(f.enum) > 0 {
					cure = fmt.Sprintf("write %s: and one of %s", f.name, strings.Join(f.enum, ", "))
				}
				c.wrong(at, "is missing", cure)
			}
			return
		}
		if len(f.enum) == 0 {
			return
		}
		if got := v.String(); !slices.Contains(f.enum, got) {
			cure := "write one of " + strings.Join(f.enum, ", ")
			if best := nearest(got, f.enum); best != "" && !c.at(at).ref {
				cure = fmt.Sprintf("did you mean %q?", best)
			}
			c.wrong(at, c.show(at, got)+" is not "+orList(f.enum, "or"), cure)
		}
	}
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (c *checker) name(path, name string) {
	if !namePattern.MatchString(name) {
		c.wrong(path, "is not a good name", "use 1 to 64 letters, digits, _ and -")
	}
}

func (c *checker) destination(path string, d Destination) {
	for i, topic := range d.Topics {
		at := fmt.Sprintf("%s.topics[%d]", path, i)
		if c.broken(at) {
			continue
		}
		if reason := badTopic(topic); reason != "" {
			c.bad(at, c.show(at, topic)+" is not a topic pattern: "+reason, topicCure)
		}
	}
	if _, err := d.Start(); err != nil && !c.broken(path+".from") {
		c.bad(path+".from", c.show(path+".from", d.From)+" is not a start", "write beginning, now, or a time such as 2026-01-31T08:00:00Z")
	}
	if d.Retry.First > d.Retry.Max && !c.broken(path+".retry.first") && !c.broken(path+".retry.max") {
		c.bad(path+".retry.first", "is longer than retry.max", "write a shorter first or a longer max")
	}
	switch d.Type {
	case Webhook:
		c.webhook(path, d)
	case File:
		c.compression(path, d)
	case NATS:
		c.natsDestination(path, d)
	case RabbitMQ:
		c.rabbitDestination(path, d)
	case Redis:
		c.redis(path, d)
	case Postgres, MySQL, SQLite:
		c.replica(path, d)
	case Kafka:
		c.kafka(path, d)
	case Email:
		c.email(path, d)
	case S3:
		c.s3(path, d)
	case Elasticsearch, OpenSearch, Meilisearch:
		c.search(path, d)
	}
	if d.TLS != nil {
		c.tls(path+".tls", d.TLS)
	}
}

// Start returns from as the bus takes it; an error if it is none of the forms.
func (d Destination) Start() (onewrite.From, error) {
	switch d.From {
	case "", "beginning":
		return onewrite.From{}, nil
	case "now":
		return onewrite.From{Now: true}, nil
	}
	t, err := time.Parse(time.RFC3339, d.From)
	if err != nil {
		return onewrite.From{}, fmt.Errorf("from: %q is not beginning, now or an RFC 3339 time; write from: now", d.From)
	}
	return onewrite.From{Time: t}, nil
}

// CheckTopic returns an error that says what is wrong with a topic pattern.
func CheckTopic(pattern string) error {
	if reason := badTopic(pattern); reason != "" {
		return fmt.Errorf("%q is not a topic pattern: %s; %s", pattern, reason, topicCure)
	}
	return nil
}

const topicCure = `write words of letters, digits, _ and - with dots between; * stands for one word, > at the end for all that follow: "order.>"`

// badTopic says what is wrong with a topic pattern, or nothing.
func badTopic(topic string) string {
	if len(topic) > 255 {
		return "it is longer than 255 bytes"
	}
	tokens := strings.Split(topic, ".")
	for i, token := range tokens {
		switch {
		case token == "":
			return "a word is empty"
		case token == ">" && i < len(tokens)-1:
			return "> stands only at the end"
		case token == "*" || token == ">":
		case strings.ContainsAny(token, "*>"):
			return "* and > stand for whole words"
		case !topicWord.MatchString(token):
			return "it has other characters"
		}
	}
	return ""
}

var topicWord = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// twins looks for two names of one thing.
func (c *checker) twins() {
	seen := map[string]string{}
	check := func(path, what, thing, cure string) {
		if thing == "" || thing == "-" || c.broken(path) {
			return
		}
		if first, ok := seen[what+thing]; ok {
			c.bad(path, "is the same "+what+" as "+first, cure)
			return
		}
		seen[what+thing] = path
	}
	for _, name := range sorted(c.cfg.Sources) {
		s := c.cfg.Sources[name]
		check("sources."+name+".path", "file", clean(s.Path), "a database is read by one source: keep one of the two")
		check("sources."+name+".url", "database", s.URL.Reveal(), "a database is read by one source: keep one of the two")
	}
	for _, name := range sorted(c.cfg.Destinations) {
		d := c.cfg.Destinations[name]
		if d.Type == SQLite { // a database may be shared, if no table of it is
			c.loops("destinations."+name, d)
			continue
		}
		if d.Type == Postgres {
			c.loops("destinations."+name, d)
		}
		check("destinations."+name+".path", "file", clean(d.Path), "give each its own file")
	}
	for _, name := range sorted(c.cfg.Destinations) {
		if at, path := "destinations."+name+".path", clean(c.cfg.Destinations[name].Path); c.cfg.Destinations[name].Type == SQLite && path != "" && !c.broken(at) {
			if first, ok := seen["file"+path]; ok && strings.HasPrefix(first, "destinations.") {
				c.bad(at, "is the same file as "+first, "give each its own file")
			}
		}
	}
}

// Package rediscmd reads the templates of a Redis destination, the key of a stream
// and the commands that keep a cache, and fills them from events. A template is
// split into arguments once, when it is read: what an event holds becomes part of
// an argument and never a further one, whatever is in it.
package rediscmd

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Template is one text with placeholders in it.
type Template struct{ parts []part }

// part is literal text, or a placeholder if its name is set.
type part struct {
	text   string
	name   string // topic, key, ..., or before, after, key with a column
	column string
}

// plain are the placeholders that need no look into the payload.
var plain = []string{"topic", "source", "key", "type", "id", "data"}

// ParseKey reads the template of a stream's key: {topic} {source} {key} {type},
// with {{ and }} for braces.
func ParseKey(text string) (Template, error) {
	t, rest, err := scan(text, false)
	switch {
	case err != nil:
		return t, err
	case rest != "" || len(t.parts) == 0:
		return t, errors.New("it is empty")
	}
	for _, p := range t.parts {
		if p.column != "" || p.name == "id" || p.name == "data" {
			return t, fmt.Errorf("{%s} has no place in the key of a stream; there are {topic}, {source}, {key} and {type}", p.show())
		}
	}
	return t, nil
}

// Command is one command of a cache.
type Command struct {
	// Types are the event types that it is for; none: all.
	Types []string
	// Args are the command's name and its arguments.
	Args []Template
}

// Name is the command's name, in capitals.
func (c Command) Name() string { return c.Args[0].parts[0].text }

// For reports whether the command is for events of a type.
func (c Command) For(eventType string) bool {
	return len(c.Types) == 0 || slices.Contains(c.Types, eventType)
}

// ParseCommand reads a command: its name and arguments with blanks between, each a
// template; quotes, single or double, hold an argument with blanks together. The
// types of events that it is for may stand before it: "insert,update: SET ...".
func ParseCommand(text string) (Command, error) {
	var c Command
	if head, rest, is := strings.Cut(strings.TrimSpace(text), " "); is && strings.HasSuffix(head, ":") && !strings.ContainsAny(head, `{}"'`) {
		for _, t := range strings.Split(strings.TrimSuffix(head, ":"), ",") {
			if t == "" {
				return c, fmt.Errorf("an event type is empty before the colon")
			}
			c.Types = append(c.Types, t)
		}
		text = rest
	}
	for {
		text = strings.TrimLeft(text, " \t\r\n")
		if text == "" {
			break
		}
		t, rest, err := scan(text, true)
		if err != nil {
			return c, err
		}
		c.Args, text = append(c.Args, t), rest
	}
	if len(c.Args) == 0 {
		return c, errors.New("it is empty")
	}
	return c, c.check()
}

// arity is the least number of arguments of the commands that are allowed.
var arity = map[string]int{"DEL": 1, "UNLINK": 1, "SET": 2, "HSET": 3, "HDEL": 2, "EXPIRE": 2, "PUBLISH": 2}

// Allowed are the commands that a cache may be kept with.
func Allowed() []string { return []string{"DEL", "UNLINK", "SET", "HSET", "HDEL", "EXPIRE", "PUBLISH"} }

func (c *Command) check() error {
	first, ok := c.Args[0].Literal()
	name := strings.ToUpper(first)
	least, known := arity[name]
	if !ok || !known {
		return fmt.Errorf("the command is not one of %s", strings.Join(Allowed(), ", "))
	}
	c.Args[0] = Template{parts: []part{{text: name}}}
	n := len(c.Args) - 1
	switch {
	case n < least:
		return fmt.Errorf("%s has %d arguments, it needs %d", name, n, least)
	case name == "HSET" && n%2 == 0:
		return errors.New("HSET needs a key, and then fields and values in pairs")
	case name == "PUBLISH" && n != 2, name == "EXPIRE" && n > 3:
		return fmt.Errorf("%s has %d arguments, that is too many", name, n)
	}
	from := map[string]int{"SET": 3, "EXPIRE": 3}[name] // where options begin
	for i := from; from > 0 && i < len(c.Args); i++ {
		if _, ok := c.Args[i].Literal(); !ok {
			return fmt.Errorf("an option of %s has a placeholder: what is in an event must not steer a command; if it is part of the value, put the value into quotes", name)
		}
	}
	return nil
}

// keys returns how many arguments after the name are keys.
func (c Command) keys() int {
	switch c.Name() {
	case "DEL", "UNLINK":
		return len(c.Args) - 1
	case "PUBLISH":
		return 0
	}
	return 1
}

// Literal returns the text of a template without placeholders.
func (t Template) Literal() (text string, ok bool) {
	for _, p := range t.parts {
		if p.name != "" {
			return "", false
		}
		text += p.text
	}
	return text, true
}

// Prefix returns the text before the first placeholder.
func (t Template) Prefix() string {
	if len(t.parts) == 0 || t.parts[0].name != "" {
		return ""
	}
	return t.parts[0].text
}

// Tag returns the hash tag by which a Redis cluster places every key of this
// template, if it is the same for all: {text} before the first placeholder.
func (t Template) Tag() string {
	_, rest, ok := strings.Cut(t.Prefix(), "{")
	tag, _, closed := strings.Cut(rest, "}")
	if !ok || !closed {
		return ""
	}
	return tag
}

func (p part) show() string {
	if p.column != "" {
		return p.name + "." + p.column
	}
	return p.name
}

// scan reads one template: all of text, or the first of several arguments.
func scan(text string, argument bool) (t Template, rest string, err error) {
	var lit strings.Builder
	any := false // quotes make an argument, even an empty one
	flush := func() {
		if lit.Len() > 0 || any && len(t.parts) == 0 {
			t.parts = append(t.parts, part{text: lit.String()})
			lit.Reset()
		}
	}
	quote := byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case argument && quote == 0 && (c == '"' || c == '\''):
			quote, any = c, true
		case argument && quote == 0 && strings.IndexByte(" \t\r\n", c) >= 0:
			flush()
			return t, text[i:], nil
		case (c == '{' || c == '}') && i+1 < len(text) && text[i+1] == c:
			lit.WriteByte(c)
			i++
		case c == '}':
			return t, "", errors.New("a } stands alone; write }} for the character")
		case c == '{':
			end := strings.IndexByte(text[i:], '}')
			if end < 0 {
				return t, "", errors.New("a { is not closed; write {{ for the character")
			}
			p, err := placeholder(text[i+1 : i+end])
			if err != nil {
				return t, "", err
			}
			if lit.Len() > 0 {
				flush()
			}
			t.parts = append(t.parts, p)
			i += end
		default:
			lit.WriteByte(c)
		}
	}
	if quote != 0 {
		return t, "", fmt.Errorf("a quote %c is not closed", quote)
	}
	flush()
	return t, "", nil
}

func placeholder(name string) (part, error) {
	if slices.Contains(plain, name) {
		return part{name: name}, nil
	}
	head, column, ok := strings.Cut(name, ".")
	if ok && column != "" && (head == "after" || head == "before" || head == "key") {
		return part{name: head, column: column}, nil
	}
	return part{}, fmt.Errorf("{%s} is no placeholder; there are {topic} {source} {key} {type} {id} {data}, and of row changes {after.COLUMN} {before.COLUMN} {key.COLUMN}; braces are written {{ and }}", name)
}

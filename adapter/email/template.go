package email

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io"
	"net/mail"
	"net/textproto"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
	"time"
	"unicode/utf8"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// form is the configuration's part of every mail.
type form struct {
	destination, domain string
	sender              *mail.Address
	to, cc, replyTo     *field // nil where there is none
	subject             *field
	text, html          *field
	headers             map[string]*field
}

// field is one template.
type field struct {
	name string
	t    interface {
		Execute(w io.Writer, data any) error
	}
}

// view is what templates see.
type view struct {
	ID, Topic, Type, Key, Source string
	Time                         time.Time
	Data                         any // JSON as Go has it, or a text; nil: none
	Header                       map[string]string

	event *onewrite.Event
}

// JSON is the whole event, as one line of CloudEvents JSON.
func (v *view) JSON() string { return string(cloudevents.AppendJSON(nil, v.event)) }

func viewOf(e *onewrite.Event) (*view, error) {
	v := &view{ID: e.ID, Topic: e.Topic, Type: e.Type, Key: e.Key, Source: e.Source, Time: e.Time, Header: e.Header, event: e}
	switch {
	case e.Data == nil:
	case cloudevents.IsJSON(e.ContentType):
		d := json.NewDecoder(bytes.NewReader(e.Data))
		d.UseNumber()
		if err := d.Decode(&v.Data); err != nil {
			return nil, fmt.Errorf("the data is said to be %s and is none", e.ContentType)
		}
		v.Data = numbers(v.Data)
	default:
		v.Data = string(e.Data)
	}
	return v, nil
}

// number is a number of JSON. It is printed with the digits that were published, and
// taken by printf for what the verb wants.
type number json.Number

// Format implements fmt.Formatter.
func (n number) Format(f fmt.State, verb rune) {
	switch verb {
	case 'd', 'x', 'X', 'b', 'o', 'c':
		if i, err := strconv.ParseInt(string(n), 10, 64); err == nil {
			_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), i)
			return
		}
	case 'e', 'E', 'f', 'F', 'g', 'G':
		if x, err := strconv.ParseFloat(string(n), 64); err == nil {
			_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), x)
			return
		}
	}
	_, _ = io.WriteString(f, string(n))
}

// MarshalJSON writes the digits.
func (n number) MarshalJSON() ([]byte, error) { return []byte(n), nil }

// numbers changes the numbers within v.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		return number(v)
	case map[string]any:
		for k := range v {
			v[k] = numbers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	}
	return v
}

var errNull = errors.New("the value is null, or not there; print it within {{with …}}, or publish it")

// out is the last step of everything that a template prints; what is the text of it.
func out(what string, v any) (any, error) {
	switch v.(type) {
	case nil:
		return nil, fmt.Errorf("{{%s}}: %w", what, errNull)
	case map[string]any, []any:
		return toJSON(v)
	}
	return v, nil
}

// outAddress is out where addresses are printed: what comes from an event is no more
// than one address, or the part of one.
func outAddress(what string, v any) (any, error) {
	v, err := out(what, v)
	if err != nil {
		return nil, err
	}
	if a, made := v.(made); made {
		return string(a), nil
	}
	text := fmt.Sprint(v)
	if !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || strings.ContainsRune(`,;:<>"()[]\`, r) }) {
		return text, nil
	}
	a, err := mail.ParseAddress(text)
	if err != nil {
		return nil, fmt.Errorf("{{%s}}: %q is not one address; a name with such characters is written as {{address .Data.name .Data.email}}", what, short(text, 80))
	}
	return a.String(), nil
}

// made is an address that the function address made.
type made string

func toJSON(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// functions are those that templates have besides the ones of text/template.
var functions = map[string]any{
	"json": toJSON,
	"int": func(v any) (int64, error) {
		return strconv.ParseInt(fmt.Sprint(v), 10, 64)
	},
	"float": func(v any) (float64, error) {
		return strconv.ParseFloat(fmt.Sprint(v), 64)
	},
	"address": func(name, address any) (made, error) {
		if name == nil || address == nil {
			return "", errNull
		}
		a := mail.Address{Name: fmt.Sprint(name), Address: fmt.Sprint(address)}
		if !plainAddress(a.Address) {
			return "", fmt.Errorf("%q is no address", short(a.Address, 80))
		}
		return made(a.String()), nil
	},
	"printf": func(format string, args ...any) (string, error) {
		if slices.Contains(args, any(nil)) {
			return "", errNull
		}
		return fmt.Sprintf(format, args...), nil
	},
	"_out": out, "_outAddress": outAddress,
}

// check puts a step behind everything that a template prints.
func check(n parse.Node, step string) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n != nil {
			for _, each := range n.Nodes {
				check(each, step)
			}
		}
	case *parse.ActionNode:
		if len(n.Pipe.Decl) == 0 {
			name := parse.NewIdentifier(step).SetPos(n.Pipe.Pos)
			what := &parse.StringNode{NodeType: parse.NodeString, Pos: n.Pipe.Pos, Text: short(n.Pipe.String(), 100)}
			what.Quoted = strconv.Quote(what.Text)
			n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{NodeType: parse.NodeCommand, Pos: n.Pipe.Pos, Args: []parse.Node{name, what}})
		}
	case *parse.IfNode:
		check(n.List, step)
		check(n.ElseList, step)
	case *parse.RangeNode:
		check(n.List, step)
		check(n.ElseList, step)
	case *parse.WithNode:
		check(n.List, step)
		check(n.ElseList, step)
	}
}

func bad(name string, err error) error {
	return fmt.Errorf("email: %s is no template: %s; see docs/destinations/email.md for what it may have", name, strings.TrimPrefix(err.Error(), "template: "))
}

// newField reads a template; nil if there is no text.
func newField(name, text, step string) (*field, error) {
	if text == "" {
		return nil, nil
	}
	t, err := template.New(name).Funcs(functions).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, bad(name, err)
	}
	for _, each := range t.Templates() {
		check(each.Root, step)
	}
	return &field{name, t}, nil
}

// newHTML reads a template of HTML, and looks whether it can be escaped.
func newHTML(text string) (*field, error) {
	if text == "" {
		return nil, nil
	}
	t, err := htmltemplate.New("html").Funcs(functions).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, bad("html", err)
	}
	for _, each := range t.Templates() {
		if each.Tree != nil {
			check(each.Tree.Root, "_out")
		}
	}
	var escape *htmltemplate.Error
	if err := t.Execute(io.Discard, &view{event: &onewrite.Event{}}); errors.As(err, &escape) {
		return nil, bad("html", err)
	}
	return &field{"html", t}, nil
}

// newForm reads the templates and addresses.
func newForm(c Config) (*form, error) {
	f := &form{destination: c.Destination, headers: map[string]*field{}}
	var err error
	if f.sender, err = parseSender(c.Sender); err != nil {
		return nil, err
	}
	_, f.domain, _ = strings.Cut(f.sender.Address, "@")
	switch {
	case strings.TrimSpace(c.To) == "":
		return nil, errors.New(`email: to is missing; set it to an address, or to where events have it: "{{.Data.email}}"`)
	case strings.TrimSpace(c.Subject) == "":
		return nil, errors.New(`email: subject is missing; set it to a line such as "Order {{.Key}}"`)
	case c.Text == "" && c.HTML == "":
		return nil, errors.New("email: there is no body; set text or html, or both")
	}
	for _, p := range []struct {
		to               **field
		name, text, step string
	}{
		{&f.to, "to", strings.TrimSpace(c.To), "_outAddress"}, {&f.cc, "cc", strings.TrimSpace(c.CC), "_outAddress"}, {&f.replyTo, "reply_to", strings.TrimSpace(c.ReplyTo), "_outAddress"},
		{&f.subject, "subject", strings.TrimSpace(c.Subject), "_out"}, {&f.text, "text", c.Text, "_out"},
	} {
		if *p.to, err = newField(p.name, p.text, p.step); err != nil {
			return nil, err
		}
	}
	if f.html, err = newHTML(c.HTML); err != nil {
		return nil, err
	}
	for name, text := range c.Headers {
		key := textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case !headerName.MatchString(name):
			return nil, fmt.Errorf("email: %q is no header name; use letters, digits and -", name)
		case slices.Contains(own, key) || strings.HasPrefix(key, "Content-"):
			return nil, fmt.Errorf("email: onewrite sets the header %s itself; remove it from headers", key)
		}
		if f.headers[key], err = newField("headers."+name, strings.TrimSpace(text), "_out"); err != nil {
			return nil, err
		}
		if f.headers[key] == nil {
			return nil, fmt.Errorf("email: the header %s is empty; remove it", name)
		}
	}
	return f, nil
}

var headerName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,60}$`)

// inserted is what text/template says of the steps that check put in.
var inserted = regexp.MustCompile(`: executing "[^"]*" at <_out\w* .*>: error calling _out\w*: `)

// render fills a template in. The error says which, and what in it failed.
func (t *field) render(v *view) (string, error) {
	var b strings.Builder
	if err := t.t.Execute(&b, v); err != nil {
		text := inserted.ReplaceAllString(strings.TrimPrefix(strings.TrimPrefix(err.Error(), "template: "), "html/template:"), ": ")
		return "", fmt.Errorf("the template of %s failed: %s", t.name, short(text, 300))
	}
	return b.String(), nil
}

// line renders a template of one line. What would make a second one is refused: it
// would be a header of its own.
func (t *field) line(v *view) (string, error) {
	text, err := t.render(v)
	if err != nil {
		return "", err
	}
	if i := strings.IndexFunc(text, func(r rune) bool {
		return r < ' ' && r != '\t' || r == 0x7f || r == 0x85 || r == '\u2028' || r == '\u2029'
	}); i >= 0 {
		return "", fmt.Errorf("%s would have a line end or control character (%q at byte %d), which could begin another header", t.name, text[i:i+1], i)
	}
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "\ufffd")
	}
	return text, nil
}

package config

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// kindName says what a node is, for a person.
func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "nothing"
	case "!!str", "!!timestamp":
		return "text"
	}
	return "a value tagged " + n.Tag
}

// scalar reads one plain value into v.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, f *field, path string) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		d.wrong(n, path, "has no value", fmt.Sprintf("write %s: %s, or remove the key", f.name, f.sample()))
		return
	}
	switch f.kind {
	case kindString, kindSecret:
		d.stringInto(n, v, f, path)
	case kindBool:
		text, ok := d.text(n, path, n.Tag == "!!bool", "write true or false")
		if !ok {
			return
		}
		b, err := strconv.ParseBool(strings.ToLower(text))
		if err != nil || len(text) < 4 {
			d.wrong(n, path, "must be true or false", "write "+f.name+": true")
			return
		}
		v.SetBool(b != f.not)
	default:
		d.numberInto(n, v, f, path)
	}
}

func (d *decoder) stringInto(n *yaml.Node, v reflect.Value, f *field, path string) {
	cure := fmt.Sprintf("write %s: %s; text that YAML takes for something else goes in quotes", f.name, f.sample())
	text, ok := d.text(n, path, n.Tag == "!!str" || n.Tag == "!!timestamp", cure)
	if !ok {
		return
	}
	ref := d.places[path].ref
	switch {
	case text == "":
		d.wrong(n, path, "is empty", fmt.Sprintf("write %s: %s, or remove the key", f.name, f.sample()))
	case strings.IndexFunc(text, func(r rune) bool { return r < 0x20 || r == 0x7f }) >= 0:
		d.bad(n, path, "holds a control character", "write it on one line")
	case f.name == "type" && ref:
		d.bad(n, path, "must be written out", "a reference cannot name a type; known are "+strings.Join(f.enum, ", "))
	case f.kind == kindString:
		v.SetString(d.resolve(f, text))
	default:
		d.warnLiteral(n, f, path)
		v.Set(reflect.ValueOf(NewSecret(text)))
	}
}

func (d *decoder) numberInto(n *yaml.Node, v reflect.Value, f *field, path string) {
	cure := "write " + f.name + ": " + f.sample()
	text, ok := d.text(n, path, n.Tag == "!!int" || (f.kind != kindInt && n.Tag == "!!str"), cure)
	if !ok {
		return
	}
	var value int64
	var err error
	switch f.kind {
	case kindInt:
		if value, err = strconv.ParseInt(text, 10, 32); err != nil {
			err = fmt.Errorf("is not a whole number")
		}
	case kindSize:
		var s Size
		s, err = parseSize(text)
		value = int64(s)
	case kindDuration:
		if _, plain := strconv.Atoi(text); plain == nil {
			err = fmt.Errorf("has no unit")
			break
		}
		t, e := parseDuration(text)
		value, err = int64(t), e
	}
	if err != nil {
		d.wrong(n, path, err.Error(), cure)
		return
	}
	v.SetInt(value)
}

// text returns a scalar's text with its references replaced. typed says that
// the value has the right type as it stands; a value that comes from a
// reference is text and gets its type from what it says.
func (d *decoder) text(n *yaml.Node, path string, typed bool, cure string) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		d.wrong(n, path, "must be a single value, not "+kindName(n), cure)
		return "", false
	}
	if n.Tag != "!!str" || !strings.Contains(n.Value, "${") {
		if !typed {
			d.wrong(n, path, "has the wrong type: it is "+kindName(n), cure)
		}
		return n.Value, typed
	}
	text, refs, ok := d.expand(n, path)
	if refs > 0 {
		p := d.places[path]
		p.ref = true
		d.places[path] = p
	} else if ok && !typed {
		d.wrong(n, path, "has the wrong type: it is text", cure)
		ok = false
	}
	return text, ok
}

// expand replaces the references of a value; how many there were is counted.
func (d *decoder) expand(n *yaml.Node, path string) (text string, refs int, ok bool) {
	var b strings.Builder
	ok = true
	rest := n.Value
	for {
		i := strings.Index(rest, "${")
		if i < 0 {
			b.WriteString(rest)
			return b.String(), refs, ok
		}
		if i > 0 && rest[i-1] == '$' { // $${ is the way to write ${
			b.WriteString(rest[:i-1] + "${")
			rest = rest[i+2:]
			continue
		}
		b.WriteString(rest[:i])
		inner, after, closed := strings.Cut(rest[i+2:], "}")
		if !closed {
			d.bad(n, path, "has a reference without its end", "write ${env:NAME} or ${file:path}; $${ for the two characters ${")
			return "", refs, false
		}
		value, found := d.reference(n, path, inner)
		b.WriteString(value)
		ok = ok && found
		rest = after
		refs++
	}
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// reference returns what one reference stands for.
func (d *decoder) reference(n *yaml.Node, path, inner string) (string, bool) {
	scheme, arg, has := strings.Cut(inner, ":")
	switch {
	case scheme == "env" && has && envName.MatchString(arg):
		value, set := os.LookupEnv(arg)
		if !set {
			d.bad(n, path, "environment variable "+arg+" is not set", "export "+arg+"=... (onewrite run takes it only at a restart), or write ${file:path}, which reload reads again")
		} else if value == "" {
			d.bad(n, path, "environment variable "+arg+" is empty", "export "+arg+"=...")
		}
		return value, value != ""
	case scheme == "file" && has && arg != "":
		return d.secretFile(n, path, arg)
	case scheme == "cmd" && has:
		d.bad(n, path, "a reference cannot run a command", "let the program that starts onewrite put it in the environment: ${env:NAME}, or in a file: ${file:path}")
	case !has && envName.MatchString(inner):
		d.bad(n, path, "has a reference that says not where to look", "write ${env:"+inner+"}; $${ for the two characters ${")
	default:
		d.bad(n, path, "has an unknown reference", "write ${env:NAME} or ${file:path}; $${ for the two characters ${")
	}
	return "", false
}

const maxSecretFile = 64 << 10 // bytes

// secretFile reads a referenced file without the end of its last line.
func (d *decoder) secretFile(n *yaml.Node, path, name string) (string, bool) {
	full := name
	if !filepath.IsAbs(full) {
		full = filepath.Join(d.dir, full)
	}
	info, err := os.Stat(full)
	if err != nil {
		d.bad(n, path, "file "+name+" cannot be read: "+plainError(err), "write the secret into "+full+" (mode 0600)")
		return "", false
	}
	if !info.Mode().IsRegular() || info.Size() > maxSecretFile {
		d.bad(n, path, "file "+name+" is not a regular file of at most 64 KiB", "write the secret into a file of its own")
		return "", false
	}
	f, err := os.Open(full)
	if err != nil {
		d.bad(n, path, "file "+name+" cannot be read: "+plainError(err), "let the user that runs onewrite read it")
		return "", false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	if err != nil {
		d.bad(n, path, "file "+name+" cannot be read: "+plainError(err), "look at "+full)
		return "", false
	}
	if worldReadable(info) {
		d.warn(n, path, "every user of this machine can read "+name, "chmod 600 "+full)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if text == "" {
		d.bad(n, path, "file "+name+" is empty", "write the secret into "+full)
	}
	return text, text != ""
}

func worldReadable(info os.FileInfo) bool {
	return runtime.GOOS != "windows" && info.Mode().Perm()&0o004 != 0
}

var (
	anyReference = regexp.MustCompile(`\$\{[^}]*\}`)
	urlPassword  = regexp.MustCompile(`://[^/?#,]*:([^/?#,]*)@`)
	natsToken    = regexp.MustCompile(`(?:nats|tls)://([^/?#,:@]+)@`)
	dsnPassword  = regexp.MustCompile(`(?i)\b(?:ssl)?password\s*=\s*([^\s&]+)`)
	secretName   = regexp.MustCompile(`(?i)auth|cookie|token|key|secret|passw|credential|signature`)
)

// warnLiteral warns of a secret that stands in the file itself. In a URL only
// the password is one; of the headers those whose name says so.
func (d *decoder) warnLiteral(n *yaml.Node, f *field, path string) {
	literal := !d.places[path].ref
	switch {
	case f.name == "url", f.name == "log_url":
		literal = false
		const referred = "\x00"
		text := anyReference.ReplaceAllString(n.Value, referred)
		for _, re := range []*regexp.Regexp{urlPassword, natsToken, dsnPassword} {
			for _, m := range re.FindAllStringSubmatch(text, -1) {
				literal = literal || (m[1] != "" && !strings.Contains(m[1], referred))
			}
		}
	case strings.Contains(path, ".headers."):
		literal = literal && secretName.MatchString(f.name)
	}
	if literal {
		d.literal = true
		d.warn(n, path, "a secret stands in the file", "put it in the environment, ${env:NAME}, or in a file of its own, ${file:path}")
	}
}

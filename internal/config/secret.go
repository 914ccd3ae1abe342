package config

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
)

// mask is what every printed form of a secret shows.
const mask = "***"

// Secret is a text that must not be printed: fmt, encoding/json, encoding and
// log/slog all show ***. The zero value is the empty text.
type Secret struct {
	// A pointer, because fmt cannot call the methods of a field that is not
	// exported: it prints an address then, never the text.
	text *string
}

// NewSecret makes a secret of a text; of the empty text, the zero value.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Reveal returns the text; empty for the zero value.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Empty reports whether there is no text.
func (s Secret) Empty() bool { return s.text == nil }

// String returns ***, or nothing for an empty secret.
func (s Secret) String() string {
	if s.text == nil {
		return ""
	}
	return mask
}

// GoString returns what String does, for %#v.
func (s Secret) GoString() string { return s.String() }

// Format writes what String returns, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText returns what String does, for JSON, YAML and the like; the error
// is always nil.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue returns what String does, for log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Redact returns a URL, or several with commas, fit to be shown: without user
// information, query and fragment. What is no URL becomes ***.
func Redact(raw string) string {
	parts := strings.Split(raw, ",")
	for i, part := range parts {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil || u.Scheme == "" || u.Opaque != "" || (u.Host == "" && u.Path == "") {
			return mask
		}
		shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
		if u.User != nil {
			shown.User = url.User("user")
		}
		parts[i] = strings.Replace(shown.String(), "//user@", "//"+mask+"@", 1)
		if u.RawQuery != "" {
			parts[i] += "?" + mask
		}
	}
	return strings.Join(parts, ",")
}

// Package masking says which columns of captured tables are left out of events, or are
// shown in another form, before an event leaves the reader.
//
// A rule is a line of words:
//
//	public.customers.password drop
//	public.customers.email hash
//	*.note truncate 20
//	billing.cards only id, brand
//
// The first part names a column as schema.table.column, or *.column for all tables;
// for only, a table. Of several rules for a column the last one counts.
package masking

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Kind is what becomes of a column.
type Kind uint8

// The kinds. Null stays null, whatever the kind.
const (
	// None leaves the value as it is.
	None Kind = iota
	// Drop leaves the column out.
	Drop
	// Hash writes a keyed hash, HMAC-SHA-256 in hex, of the value's text: equal values
	// stay equal, and nobody without the key can try values out.
	Hash
	// Truncate writes the first characters of the value's text.
	Truncate
)

// Mask is what becomes of one column.
type Mask struct {
	Kind Kind
	// Chars is how many characters Truncate leaves.
	Chars int
}

// Rules are parsed rules; nil masks nothing.
type Rules []rule

type rule struct {
	schema, table, column string // "" is any
	only                  []string
	mask                  Mask
	text                  string // in one form, whatever the spaces were
}

// Parse reads rules. The error names the rule and what it should look like.
func Parse(lines []string) (Rules, error) {
	var rules Rules
	for _, line := range lines {
		r, err := parse(line)
		if err != nil {
			return nil, fmt.Errorf("%q %w", line, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func parse(line string) (rule, error) {
	what, how, _ := strings.Cut(strings.TrimSpace(line), " ")
	how = strings.TrimSpace(how)
	parts := strings.Split(what, ".")
	var r rule
	if list, ok := strings.CutPrefix(how, "only "); ok {
		if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
			return r, fmt.Errorf("names no table; write public.customers only id, name")
		}
		r.schema, r.table = parts[0], parts[1]
		for _, c := range strings.Split(list, ",") {
			if c = strings.TrimSpace(c); c == "" {
				return r, fmt.Errorf("has an empty name; write public.customers only id, name")
			}
			r.only = append(r.only, c)
		}
		r.text = what + " only " + strings.Join(r.only, ", ")
		return r, nil
	}
	switch {
	case len(parts) == 2 && parts[0] == "*" && parts[1] != "":
		r.column = parts[1]
	case len(parts) == 3 && !slices.Contains(parts, ""):
		r.schema, r.table, r.column = parts[0], parts[1], parts[2]
	default:
		return r, fmt.Errorf("names no column; write schema.table.column, or *.column, and then drop, hash or truncate 20")
	}
	word, count, _ := strings.Cut(how, " ")
	n, err := strconv.Atoi(strings.TrimSpace(count))
	switch {
	case how == "drop":
		r.mask.Kind = Drop
	case how == "hash":
		r.mask.Kind = Hash
	case word == "truncate" && err == nil && n >= 0:
		r.mask = Mask{Kind: Truncate, Chars: n}
	default:
		return r, fmt.Errorf("does not say what becomes of the column; write drop, hash, or truncate and a number")
	}
	r.text = what + " " + strings.Join(strings.Fields(how), " ")
	return r, nil
}

// Text is what Rules say of a table, a rule a line: the same text is the same treatment
// of every column, but for the key of the hashes.
func (rs Rules) Text(schema, table string) string {
	var lines []string
	for _, r := range rs {
		if r.schema == "" || r.schema == schema && r.table == table {
			lines = append(lines, r.text)
		}
	}
	return strings.Join(lines, "\n")
}

// Target is what a rule names.
type Target struct {
	// Rule is the rule's text.
	Rule string
	// Schema and Table are empty where the rule is for all tables.
	Schema, Table string
	// Columns are those that the rule names.
	Columns []string
}

// Targets returns what each rule names, in the order of the rules.
func (rs Rules) Targets() []Target {
	list := make([]Target, len(rs))
	for i, r := range rs {
		list[i] = Target{Rule: r.text, Schema: r.schema, Table: r.table, Columns: r.only}
		if r.only == nil {
			list[i].Columns = []string{r.column}
		}
	}
	return list
}

// Hashes reports whether a rule needs a key.
func (rs Rules) Hashes() bool {
	return slices.ContainsFunc(rs, func(r rule) bool { return r.mask.Kind == Hash })
}

// Of returns what becomes of a column.
func (rs Rules) Of(schema, table, column string) (m Mask) {
	for _, r := range rs {
		if r.schema != "" && (r.schema != schema || r.table != table) {
			continue
		}
		switch {
		case r.only != nil:
			if !slices.Contains(r.only, column) {
				m = Mask{Kind: Drop}
			}
		case r.column == column:
			m = r.mask
		}
	}
	return m
}

// Hasher makes the keyed hashes. It is not for concurrent use.
type Hasher struct{ mac hash.Hash }

// NewHasher returns a Hasher with a key.
func NewHasher(key string) *Hasher { return &Hasher{mac: hmac.New(sha256.New, []byte(key))} }

// Sum returns the hash of a text.
func (h *Hasher) Sum(text []byte) string {
	h.mac.Reset()
	h.mac.Write(text)
	return hex.EncodeToString(h.mac.Sum(nil))
}

// First returns the first n characters of a text.
func First(text []byte, n int) []byte {
	i := 0
	for ; n > 0 && i < len(text); n-- {
		_, size := utf8.DecodeRune(text[i:])
		i += size
	}
	return text[:i]
}

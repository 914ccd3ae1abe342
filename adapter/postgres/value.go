package postgres

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"

	"github.com/onewrite/onewrite/internal/cloudevents"
)

// form is how values of a type become JSON. All values come in PostgreSQL's text
// form, from the log and from a snapshot alike, so both render alike.
type form uint8

const (
	formText      form = iota // a string, as PostgreSQL writes it
	formNumber                // a number as it stands
	formFloat                 // a number, but for NaN and the infinities
	formBool                  // t, f
	formTimestamp             // ISO 8601, without a zone
	formInstant               // ISO 8601, in UTC
	formBytes                 // base64
	formArray                 // an array of elem
)

// valueType is a type as far as it matters for rendering.
type valueType struct {
	form  form
	elem  form // of an array
	delim byte // between an array's elements
}

// builtIn are the types whose oids never change. What is neither here nor a domain
// over or an array of one is text.
var builtIn = map[uint32]valueType{
	16: {form: formBool}, 17: {form: formBytes},
	20: {form: formNumber}, 21: {form: formNumber}, 23: {form: formNumber}, 26: {form: formNumber}, // int8, int2, int4, oid
	700: {form: formFloat}, 701: {form: formFloat},
	1114: {form: formTimestamp}, 1184: {form: formInstant},
	25: {}, 1043: {}, 1042: {}, 18: {}, 19: {}, 114: {}, 3802: {}, 1700: {}, 2950: {}, 1082: {}, 1083: {}, 1266: {}, 1186: {}, 790: {}, // text, varchar, bpchar, char, name, json, jsonb, numeric, uuid, date, time, timetz, interval, money
	1000: array(formBool), 1001: array(formBytes), 1005: array(formNumber), 1007: array(formNumber), 1016: array(formNumber), 1028: array(formNumber),
	1021: array(formFloat), 1022: array(formFloat), 1115: array(formTimestamp), 1185: array(formInstant),
	1009: array(formText), 1015: array(formText), 1014: array(formText), 1002: array(formText), 1003: array(formText), 199: array(formText), 3807: array(formText), 1231: array(formText),
	2951: array(formText), 1182: array(formText), 1183: array(formText), 1270: array(formText), 1187: array(formText), 791: array(formText), 1041: array(formText), 651: array(formText),
}

func array(elem form) valueType { return valueType{form: formArray, elem: elem, delim: ','} }

// appendValue appends a value in JSON. What does not look like its type, which a
// server never sends, is shown as text.
func appendValue(b, text []byte, t valueType) []byte {
	switch t.form {
	case formArray:
		if out, ok := appendArray(b, text, t); ok {
			return out
		}
		return cloudevents.AppendString(b, text)
	default:
		return appendScalar(b, text, t.form)
	}
}

func appendScalar(b, text []byte, f form) []byte {
	switch f {
	case formNumber, formFloat:
		if isNumber(text) {
			return append(b, text...)
		}
	case formBool:
		switch string(text) {
		case "t":
			return append(b, "true"...)
		case "f":
			return append(b, "false"...)
		}
	case formTimestamp, formInstant:
		return appendTime(b, text, f == formInstant)
	case formBytes:
		if bytes.HasPrefix(text, []byte(`\x`)) {
			raw := make([]byte, hex.DecodedLen(len(text)-2))
			if _, err := hex.Decode(raw, text[2:]); err == nil {
				b = append(b, '"')
				b = base64.StdEncoding.AppendEncode(b, raw)
				return append(b, '"')
			}
		}
	}
	return cloudevents.AppendString(b, text)
}

// isNumber reports whether a text is a number of JSON. NaN and the infinities are not.
func isNumber(text []byte) bool {
	text = bytes.TrimPrefix(text, []byte("-"))
	n := digits(text)
	if n == 0 || n > 1 && text[0] == '0' {
		return false
	}
	if text = text[n:]; len(text) > 0 && text[0] == '.' {
		if n = digits(text[1:]); n == 0 {
			return false
		}
		text = text[1+n:]
	}
	if len(text) > 0 && (text[0] == 'e' || text[0] == 'E') {
		text = text[1:]
		if len(text) > 0 && (text[0] == '+' || text[0] == '-') {
			text = text[1:]
		}
		if n = digits(text); n == 0 {
			return false
		}
		text = text[n:]
	}
	return len(text) == 0
}

// digits counts the digits that a text begins with.
func digits(text []byte) (n int) {
	for n < len(text) && text[n] >= '0' && text[n] <= '9' {
		n++
	}
	return n
}

// digitsAnd reports whether a text is of digits and two other characters.
func digitsAnd(text []byte, a, b byte) bool {
	for _, c := range text {
		if (c < '0' || c > '9') && c != a && c != b {
			return false
		}
	}
	return true
}

// appendTime turns "2024-05-06 07:08:09.5+00" into ISO 8601. The session's zone is
// UTC. Infinities, and years before Christ, have no such form: they stay as they are.
func appendTime(b, text []byte, instant bool) []byte {
	day, clock, ok := bytes.Cut(text, []byte(" "))
	if ok && instant {
		clock, ok = bytes.CutSuffix(clock, []byte("+00"))
	}
	if !ok || !digitsAnd(day, '-', '-') || !digitsAnd(clock, ':', '.') { // BC is a word after the clock
		return cloudevents.AppendString(b, text)
	}
	b = append(b, '"')
	b = append(b, day...)
	b = append(b, 'T')
	b = append(b, clock...)
	if instant {
		b = append(b, 'Z')
	}
	return append(b, '"')
}

// maxDepth is how many dimensions an array of PostgreSQL may have.
const maxDepth = 6

// appendArray turns PostgreSQL's array literal into JSON. Lower bounds other than 1
// ("[2:3]={…}") have no place there and are left out. False: it is no array literal.
func appendArray(b, text []byte, t valueType) ([]byte, bool) {
	if len(text) > 0 && text[0] == '[' {
		_, body, ok := bytes.Cut(text, []byte("]="))
		if !ok {
			return b, false
		}
		text = body
	}
	ends := string([]byte{t.delim, '}'})
	depth, full := 0, false // full: a delimiter or an end has to come
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case c == '{' && !full && depth < maxDepth:
			depth++
			b = append(b, '[')
			i++
			continue
		case depth == 0:
			return b, false
		case c == '}' && (full || text[i-1] == '{'):
			if depth--; depth == 0 {
				return append(b, ']'), i == len(text)-1
			}
			b = append(b, ']')
			i++
		case c == t.delim && full:
			b = append(b, ',')
			i++
			full = false
			continue
		case full:
			return b, false
		case c == '"':
			cell, n := quotedElement(text[i:])
			if n == 0 {
				return b, false
			}
			b = appendScalar(b, cell, t.elem)
			i += n
		default:
			n := bytes.IndexAny(text[i:], ends)
			if n <= 0 {
				return b, false
			}
			if cell := text[i : i+n]; string(cell) == "NULL" {
				b = append(b, "null"...)
			} else {
				b = appendScalar(b, cell, t.elem)
			}
			i += n
		}
		full = true
	}
	return b, false
}

// quotedElement reads an element in quotes and returns it with the length it had.
func quotedElement(text []byte) (cell []byte, n int) {
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			if i++; i < len(text) {
				cell = append(cell, text[i])
			}
		case '"':
			return cell, i + 1
		default:
			cell = append(cell, text[i])
		}
	}
	return nil, 0
}

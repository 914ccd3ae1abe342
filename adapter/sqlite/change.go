package sqlite

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/onewrite/onewrite"
)

var changeTypes = map[string]string{"c": "insert", "u": "update", "d": "delete", "r": "snapshot"}

// change fills the event of a row change: Debezium's envelope without schema.
// All of it follows from the row, so that a repeat has the same bytes.
func (s *Source) change(e *onewrite.Event, r *row) error {
	l := s.layouts[r.layout]
	op := text(r.op)
	e.Type, e.ContentType = changeTypes[op], "application/json"
	b := make([]byte, 0, 400+2*(len(text(r.old))+len(text(r.new))))
	key := text(r.new)
	if r.new == nil {
		key = text(r.old)
	}
	cells, err := parseImage(key, len(l.Columns))
	if err != nil {
		return err
	}
	e.Key = l.key(cells)
	for _, side := range []struct {
		name  string
		image any
	}{{`{"before":`, r.old}, {`,"after":`, r.new}} {
		b = append(b, side.name...)
		if side.image == nil {
			b = append(b, "null"...)
			continue
		}
		if cells, err = parseImage(text(side.image), len(l.Columns)); err != nil {
			return err
		}
		b = l.appendRow(b, cells)
	}
	ms := int64(0)
	if !e.Time.IsZero() {
		ms = e.Time.UnixMilli()
	}
	b = append(b, `,"source":{"version":"1","connector":"sqlite","name":`...)
	b = appendText(b, s.cfg.Name)
	b = append(b, `,"ts_ms":`...)
	b = strconv.AppendInt(b, ms, 10)
	b = append(b, `,"snapshot":"`...)
	b = strconv.AppendBool(b, op == "r")
	b = append(b, `","db":"main","table":`...)
	b = appendText(b, l.Table)
	b = append(b, `,"seq":`...)
	b = strconv.AppendInt(b, r.seq, 10)
	b = append(b, `},"op":"`...)
	b = append(b, op...)
	b = append(b, `","ts_ms":`...)
	b = strconv.AppendInt(b, ms, 10)
	e.Data = append(b, `,"transaction":null}`...)
	return nil
}

// key is the primary key as JSON with its names in order, or, for a table
// without one, its name: one lane.
func (l *layout) key(cells []string) string {
	var cols []int
	for i, c := range l.Columns {
		if c.Key > 0 {
			cols = append(cols, i)
		}
	}
	if len(cols) == 0 {
		return l.Table
	}
	slices.SortFunc(cols, func(a, b int) int { return strings.Compare(l.Columns[a].Name, l.Columns[b].Name) })
	b := []byte{'{'}
	for n, i := range cols {
		if n > 0 {
			b = append(b, ',')
		}
		b = appendText(b, l.Columns[i].Name)
		b = append(b, ':')
		b = appendCell(b, cells[i], l.Columns[i].Type)
	}
	return string(append(b, '}'))
}

func (l *layout) appendRow(b []byte, cells []string) []byte {
	b = append(b, '{')
	for i, c := range l.Columns {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(b, c.Name)
		b = append(b, ':')
		b = appendCell(b, cells[i], c.Type)
	}
	return append(b, '}')
}

var errImage = errors.New("the image of a row change cannot be read; delete the row from onewrite_outbox, and take the table out of tables: and in again for a new snapshot")

// parseImage cuts an image into its cells, as the function cell wrote them.
func parseImage(image string, columns int) ([]string, error) {
	cells := make([]string, 0, columns)
	for start, i := 0, 0; ; i++ {
		switch {
		case i == len(image) || image[i] == ',':
			if cells = append(cells, image[start:i]); i == len(image) {
				if len(cells) != columns {
					return nil, errImage
				}
				return cells, nil
			}
			start = i + 1
		case image[i] == '"':
			for i++; i < len(image) && image[i] != '"'; i++ {
				if image[i] == '\\' {
					i++
				}
			}
			if i >= len(image) {
				return nil, errImage
			}
		}
	}
}

// appendCell writes a cell as a JSON value: BLOBs in base64, infinities as
// text, since JSON has no number for them.
func appendCell(b []byte, cell, declared string) []byte {
	switch {
	case cell == "NULL" || cell == "":
		return append(b, "null"...)
	case cell[0] == '"':
		var s string
		if json.Unmarshal([]byte(cell), &s) != nil { // also replaces what is not UTF-8
			s = strings.Trim(cell, `"`)
		}
		return appendText(b, s)
	case cell[0] == 'X' || cell[0] == 'x':
		raw, _ := hex.DecodeString(strings.Trim(cell[1:], "'"))
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, raw)
		return append(b, '"')
	case isInteger(cell):
		if d := strings.ToUpper(declared); (cell == "0" || cell == "1") && (d == "BOOLEAN" || d == "BOOL") {
			return strconv.AppendBool(b, cell == "1")
		}
		return append(b, cell...)
	}
	return appendReal(b, cell)
}

func isInteger(s string) bool {
	s = strings.TrimPrefix(s, "-")
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func appendReal(b []byte, cell string) []byte {
	f, err := strconv.ParseFloat(cell, 64)
	switch {
	case err != nil && !math.IsInf(f, 0):
		return appendText(b, cell)
	case math.IsInf(f, 1):
		return append(b, `"Infinity"`...)
	case math.IsInf(f, -1):
		return append(b, `"-Infinity"`...)
	}
	n := len(b)
	b = strconv.AppendFloat(b, f, 'g', -1, 64)
	if !strings.ContainsAny(string(b[n:]), ".e") {
		b = append(b, ".0"...)
	}
	return b
}

// appendText writes a JSON string without escaping HTML's characters.
func appendText(b []byte, s string) []byte {
	var w strings.Builder
	enc := json.NewEncoder(&w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return fmt.Appendf(b, "%q", s) // a string cannot fail
	}
	return append(b, strings.TrimSuffix(w.String(), "\n")...)
}

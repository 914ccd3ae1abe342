package sqlsink

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// bytesOf are the bytes of a value for a column of bytes.
func bytesOf(v cell) ([]byte, error) {
	if v.kind != cellText {
		return nil, errors.New("it has bytes, and the event's value is no base64")
	}
	b, err := base64.StdEncoding.DecodeString(v.text)
	if err != nil {
		return nil, errors.New("it has bytes, and the event's value is no base64")
	}
	return b, nil
}

// isInteger reports whether a text is digits with or without a sign.
func isInteger(s string) bool {
	s = strings.TrimPrefix(s, "-")
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// wholeNumber is the value of a text for a column of integers: MySQL would round what
// is none without a word.
func wholeNumber(s string) (any, error) {
	if digits, fraction, ok := strings.Cut(s, "."); ok && isInteger(digits) && strings.Trim(fraction, "0") == "" {
		s = digits
	}
	if !isInteger(s) {
		if _, err := strconv.ParseFloat(s, 64); err == nil {
			return nil, fmt.Errorf("%s is no whole number", s)
		}
		return s, nil // for the server to refuse
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, nil
	}
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return n, nil
	}
	return s, nil
}

func bit(v cell) int64 {
	if v.text == "true" {
		return 1
	}
	return 0
}

// mysqlTime is a time of an event as MySQL reads it. The session is in UTC.
func mysqlTime(s string) string {
	if len(s) < 19 || s[10] != 'T' {
		return s
	}
	return s[:10] + " " + strings.TrimSuffix(s[11:], "Z")
}

// asFloat refuses an integer that a column of floats would change.
func asFloat(v cell) error {
	if v.kind != cellNumber || !isInteger(v.text) {
		return nil
	}
	f, err := strconv.ParseFloat(v.text, 64)
	if err != nil {
		return nil // for the server to refuse
	}
	whole, _ := new(big.Int).SetString(v.text, 10)
	if got, _ := new(big.Float).SetFloat64(f).Int(nil); got.Cmp(whole) != 0 {
		return fmt.Errorf("it has floats, which cannot hold %s", v.text)
	}
	return nil
}

func (m *mysqlDB) bind(c *column, v cell) (any, error) {
	if v.kind == cellNull {
		return nil, nil
	}
	if v.kind == cellBool && c.kind != kindText && c.kind != kindJSON {
		return bit(v), nil
	}
	switch c.kind {
	case kindInteger:
		return wholeNumber(v.text)
	case kindBinary:
		return bytesOf(v)
	case kindTime:
		return mysqlTime(v.text), nil
	case kindFloat:
		return v.text, asFloat(v)
	}
	return v.text, nil
}

// bind makes a value for SQLite, which keeps what it gets unless the column's
// affinity changes it.
func (s *sqliteDB) bind(c *column, v cell) (any, error) {
	switch v.kind {
	case cellNull:
		return nil, nil
	case cellBool:
		if c.kind == kindText {
			return v.text, nil
		}
		return bit(v), nil
	case cellNumber:
		if c.kind == kindText {
			return v.text, nil
		}
		if n, err := strconv.ParseInt(v.text, 10, 64); err == nil {
			if c.kind == kindFloat {
				return n, asFloat(v)
			}
			return n, nil
		}
		if f, err := strconv.ParseFloat(v.text, 64); err == nil && !isInteger(v.text) {
			return f, nil
		}
		return v.text, nil
	case cellText:
		switch {
		case c.kind == kindBinary:
			if b, err := bytesOf(v); err == nil {
				return b, nil
			}
		case c.kind == kindFloat && v.text == "Infinity":
			return math.Inf(1), nil
		case c.kind == kindFloat && v.text == "-Infinity":
			return math.Inf(-1), nil
		}
	}
	return v.text, nil
}

package shape

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/onewrite/onewrite"
)

// view is an event whose parts are parsed when they are first asked for.
type view struct {
	e      *onewrite.Event
	parsed bool
	data   any // numbers as json.Number
	err    error
}

// payload returns the parsed payload; nil if there is none. An error: it is not JSON.
func (v *view) payload() (any, error) {
	if !v.parsed {
		v.parsed = true
		switch {
		case v.e.Data == nil:
		case !strings.Contains(strings.ToLower(v.e.ContentType), "json"):
			v.err = errNotJSON(v.e)
		default:
			if v.data, v.err = parse(v.e.Data); v.err != nil {
				v.err = errNotJSON(v.e)
			}
		}
	}
	return v.data, v.err
}

// parse reads one JSON value, with its numbers as they are written.
func parse(data []byte) (value any, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value")
	}
	return value, nil
}

// plain turns the numbers of a parsed value into those of Go: int64 where they fit,
// big integers if large, else floats. large makes a number of an integer beyond int64.
func plain(value any, number func(json.Number) any) any {
	switch x := value.(type) {
	case json.Number:
		return number(x)
	case map[string]any:
		m := make(map[string]any, len(x))
		for k, e := range x {
			m[k] = plain(e, number)
		}
		return m
	case []any:
		l := make([]any, len(x))
		for i, e := range x {
			l[i] = plain(e, number)
		}
		return l
	}
	return value
}

// numberOfCEL is an int, or a uint where it has to be, or a double.
func numberOfCEL(n json.Number) any {
	if i, err := n.Int64(); err == nil {
		return i
	}
	if u, err := strconv.ParseUint(n.String(), 10, 64); err == nil {
		return u
	}
	return float(n)
}

// numberOfJQ is an integer of any size, or a float.
func numberOfJQ(n json.Number) any {
	text := n.String()
	if i, err := strconv.Atoi(text); err == nil {
		return i
	}
	if !strings.ContainsAny(text, ".eE") {
		if i, ok := new(big.Int).SetString(text, 10); ok {
			return i
		}
	}
	return float(n)
}

// float is the nearest float, of a number that is too large the largest.
func float(n json.Number) float64 {
	f, err := n.Float64()
	if err != nil && math.IsInf(f, 0) {
		return math.Copysign(math.MaxFloat64, f)
	}
	return f
}

package config

import (
	"errors"
	"io/fs"
	"strings"
)

// nearest returns the word that was probably meant, or nothing.
func nearest(got string, words []string) string {
	plain := func(s string) string {
		return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "").Replace(s))
	}
	g := plain(got)
	best, least := "", 1+max(1, len(g)/3)
	if len(g) > 40 {
		return ""
	}
	for _, w := range words {
		p := plain(w)
		n := distance(g, p)
		if len(g) > 2 && (strings.HasPrefix(p, g) || strings.HasPrefix(g, p)) {
			n = min(n, 1)
		}
		if n < least {
			best, least = w, n
		}
	}
	return best
}

// distance counts the letters to insert, delete, change or swap with their
// neighbour to make b of a.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			n := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				n = min(n, rows[i-2][j-2]+1)
			}
			rows[i][j] = n
		}
	}
	return rows[len(a)][len(b)]
}

// plainError is an operating system's reason without the path, which the
// message has already.
func plainError(err error) string {
	if errors.Is(err, fs.ErrNotExist) { // one wording on all systems
		return "no such file"
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// typesText joins types as a person would.
func typesText(types []string) string {
	if len(types) == 1 {
		return "type " + types[0]
	}
	return "types " + orList(types, "and")
}

// orList joins words with commas and a last "or".
func orList(words []string, last string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + last + " " + words[len(words)-1]
}

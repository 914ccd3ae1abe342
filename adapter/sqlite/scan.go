package sqlite

import (
	"regexp"
	"slices"
	"strings"
)

// partialWhere returns the condition of a CREATE INDEX statement: what follows
// WHERE behind the list of columns.
func partialWhere(text string) (string, bool) {
	depth := 0
	for i := 0; i < len(text); {
		if n := skip(text[i:]); n > 0 {
			i += n
			continue
		}
		switch text[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return afterWhere(text[i+1:])
			}
		}
		i++
	}
	return "", false
}

func afterWhere(text string) (string, bool) {
	for {
		text = strings.TrimLeft(text, " \t\r\n\f")
		n := 0
		if strings.HasPrefix(text, "--") || strings.HasPrefix(text, "/*") {
			n = skip(text)
		}
		if n == 0 {
			break
		}
		text = text[n:]
	}
	if len(text) < 6 || !strings.EqualFold(text[:5], "WHERE") {
		return "", false
	}
	if c := text[5]; c == '_' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c >= 0x80 {
		return "", false
	}
	return strings.TrimSpace(text[5:]), true
}

// skip returns the length of the quoted text or comment that s begins with, 0
// if it begins with neither.
func skip(s string) int {
	end := ""
	switch {
	case s[0] == '\'' || s[0] == '"' || s[0] == '`':
		end = s[:1] // a doubled quote ends one text and begins the next
	case s[0] == '[':
		end = "]"
	case strings.HasPrefix(s, "--"):
		end = "\n"
	case strings.HasPrefix(s, "/*"):
		if i := strings.Index(s[2:], "*/"); i >= 0 {
			return i + 4
		}
		return len(s)
	default:
		return 0
	}
	if i := strings.Index(s[1:], end); i >= 0 {
		return i + 1 + len(end)
	}
	return len(s)
}

// unquote returns the name or text within quotes that are all of s.
func unquote(s string) (string, bool) {
	if len(s) < 2 || !strings.ContainsAny(s[:1], "'\"`[") {
		return s, false
	}
	inner := s[1 : len(s)-1]
	if s[0] == '[' {
		return inner, true
	}
	return strings.ReplaceAll(inner, s[:1]+s[:1], s[:1]), true
}

var wordRule = regexp.MustCompile(`^[A-Za-z_\x{80}-\x{10ffff}][\w$\x{80}-\x{10ffff}]*$`)

// defaultValue makes an expression of what follows DEFAULT. There, a word that
// is bare or in the quotes of a name is text; as an expression it would be a
// column. All else is a literal, or an expression without its parentheses.
func defaultValue(text string) string {
	constants := []string{"NULL", "TRUE", "FALSE", "CURRENT_TIME", "CURRENT_DATE", "CURRENT_TIMESTAMP"}
	if wordRule.MatchString(text) && !slices.Contains(constants, strings.ToUpper(text)) {
		return literal(text)
	}
	if word, ok := unquote(text); ok && text[0] != '\'' {
		return literal(word)
	}
	return text
}

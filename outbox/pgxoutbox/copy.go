package pgxoutbox

import (
	"encoding/hex"
	"io"
	"strings"

	"github.com/onewrite/onewrite/outbox"
)

// copySQL is a COPY in the text format. CopyFrom of pgx would ask for a
// description of the table first, and in its default mode leave a named prepared
// statement behind on whatever server a pooler chose.
func copySQL(columns []string) string {
	return `COPY ` + outboxTable + ` ("` + strings.Join(columns, `", "`) + `") FROM STDIN WITH (ENCODING 'UTF8')`
}

// copyReader is the text format of the statements' arguments, made as it is read.
type copyReader struct {
	statements []outbox.Statement
	columns    int
	buf, rest  []byte // rest is the part of buf that is not read yet
}

func (r *copyReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		for len(r.statements) > 0 && len(r.statements[0].Args) == 0 {
			r.statements = r.statements[1:]
		}
		if len(r.statements) == 0 {
			return 0, io.EOF
		}
		s := &r.statements[0]
		r.buf = appendRow(r.buf[:0], s.Args[:r.columns])
		r.rest = r.buf
		s.Args = s.Args[r.columns:]
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func appendRow(b []byte, row []any) []byte {
	for i, v := range row {
		if i > 0 {
			b = append(b, '\t')
		}
		switch v := v.(type) {
		case string:
			b = appendText(b, v)
		case []byte:
			b = append(b, `\\x`...)
			b = hex.AppendEncode(b, v)
		default:
			b = append(b, `\N`...)
		}
	}
	return append(b, '\n')
}

// appendText escapes what the text format uses itself. Bytes do, as in UTF-8
// none of these characters is part of another one.
func appendText(b []byte, s string) []byte {
	from := 0
	for i := 0; i < len(s); i++ {
		var c byte
		switch s[i] {
		case '\\':
			c = '\\'
		case '\n':
			c = 'n'
		case '\r':
			c = 'r'
		case '\t':
			c = 't'
		default:
			continue
		}
		b = append(b, s[from:i]...)
		b = append(b, '\\', c)
		from = i + 1
	}
	return append(b, s[from:]...)
}

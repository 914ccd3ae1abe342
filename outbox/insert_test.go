package outbox

import (
	"context"
	"strings"
	"testing"
)

func TestInsertOfEachDialect(t *testing.T) {
	for d, want := range map[Dialect]string{
		Postgres: `INSERT INTO onewrite.outbox ("topic", "key", "payload", "payload_bytes", "id", "type", "content_type", "headers") VALUES ($1, $2, $3, $4, $5, $6, $7, $8), ($9, $10, $11, $12, $13, $14, $15, $16)`,
		SQLite:   `INSERT INTO onewrite_outbox ("topic", "key", "payload", "payload_bytes", "id", "type", "content_type", "headers") VALUES (?, ?, ?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?, ?, ?)`,
		MySQL:    "INSERT INTO onewrite_outbox (`topic`, `key`, `payload`, `payload_bytes`, `id`, `type`, `content_type`, `headers`) VALUES (?, ?, ?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?, ?, ?)",
	} {
		st, err := New(d).Statements(context.Background(), Event{Topic: "a"}, Event{Topic: "b"})
		if err != nil || len(st) != 1 || st[0].SQL != want || len(st[0].Args) != 16 {
			t.Errorf("dialect %d: %v %v", d, st, err)
		}
	}
	if _, err := New(0).Statements(context.Background(), Event{Topic: "a"}); err == nil {
		t.Error("an unknown dialect passed")
	}
	if st, err := New(0).Statements(context.Background()); st != nil || err != nil {
		t.Errorf("no events: %v %v", st, err)
	}
}

func TestStatementsKeepTheLimits(t *testing.T) {
	count := func(d Dialect, events []Event) (rows []int) {
		st, err := New(d).Statements(context.Background(), events...)
		if err != nil {
			t.Fatal(err)
		}
		i := 0
		for _, s := range st {
			n := len(s.Args) / len(columns)
			rows = append(rows, n)
			for r := range n {
				if s.Args[r*len(columns)] != events[i].Topic {
					t.Fatalf("row %d of the statement is not event %d", r, i)
				}
				i++
			}
		}
		return rows
	}
	few := make([]Event, 8192)
	for i := range few {
		few[i].Topic = strings.Repeat("a", 1+i%200)
	}
	if got := count(Postgres, few); len(got) != 2 || got[0] != 8191 || got[1] != 1 {
		t.Errorf("postgres: %v", got)
	}
	if got := count(SQLite, few); len(got) != 3 || got[0] != 4095 || got[2] != 2 {
		t.Errorf("sqlite: %v", got)
	}
	large := make([]Event, 20)
	for i := range large {
		large[i] = Event{Topic: "a", Payload: make([]byte, 1<<19)}
	}
	if got := count(Postgres, large); len(got) != 2 || got[0] != 15 {
		t.Errorf("by bytes: %v", got)
	}
}

func TestColumnOfThePayload(t *testing.T) {
	for name, c := range map[string]struct {
		payload           []byte
		contentType       string
		text, binary, typ any
	}{
		"none":            {nil, "", nil, nil, nil},
		"none, typed":     {nil, "text/plain", nil, nil, nil},
		"empty":           {[]byte{}, "", "", nil, nil},
		"empty, binary":   {[]byte{}, "image/png", "", nil, "image/png"},
		"text":            {[]byte("ä"), "", "ä", nil, nil},
		"json":            {[]byte("{}"), "application/json", "{}", nil, "application/json"},
		"bytes":           {[]byte{0}, "", nil, "\x00", nil},
		"ascii, protobuf": {[]byte("abc"), "application/x-protobuf", nil, "abc", "application/x-protobuf"},
		"latin1":          {[]byte("abc"), "text/plain; charset=latin1", nil, "abc", "text/plain; charset=latin1"},
	} {
		st, err := New(SQLite).Statements(context.Background(), Event{Topic: "a", Payload: c.payload, ContentType: c.contentType})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		a := st[0].Args
		if b, ok := a[3].([]byte); ok {
			a[3] = string(b)
		}
		if a[2] != c.text || a[3] != c.binary || a[6] != c.typ {
			t.Errorf("%s: payload %v, payload_bytes %v, content_type %v", name, a[2], a[3], a[6])
		}
	}
}

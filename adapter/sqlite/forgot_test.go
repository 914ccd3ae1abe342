package sqlite

import (
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
)

// A bus that knows less than it had confirmed has lost what was deleted for it.
func TestBusThatForgot(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	db := app(t, path)
	s := opened(t, path, "")
	exec1(t, db, three)
	_, older, _ := read(t, s, 3)
	exec1(t, db, three)
	_, pos, _ := read(t, s, 3)
	if err := s.Ack(t.Context(), pos); err != nil {
		t.Fatal(err)
	}
	until(t, "what is confirmed is deleted", func() bool { return value[int](t, db, "SELECT count(*) FROM onewrite_outbox") == 0 })
	_ = s.Close()
	exec1(t, db, three)
	for _, c := range []struct {
		pos  onewrite.Pos
		from string
	}{{pos, ""}, {older, "seq 4"}, {"", "seq 1"}} {
		s := opened(t, path, c.pos)
		b, err := s.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if (b.Gap != nil) != (c.from != "") || b.Gap != nil && (b.Gap.From != c.from || b.Gap.To != "seq 6" || !strings.Contains(b.Gap.Reason, "deleted from the outbox") || !strings.Contains(b.Gap.Cure, "onewrite status")) {
			t.Errorf("from %q: gap %v", c.from, b.Gap)
		}
		events := b.Events
		for len(events) < 3 {
			more, err := s.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			events, b.Pos = append(events, more.Events...), more.Pos
		}
		_ = s.Close()
		s = opened(t, path, b.Pos)
		quiet(t, s)
		_ = s.Close()
	}
}

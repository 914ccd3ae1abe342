package outbox

import (
	"strings"
	"testing"
	"time"
)

// Events that are to be sent later go to their table after those of now, each in the
// order given, and never before their time.
func TestDeliverAt(t *testing.T) {
	at := time.Now().Add(time.Hour).Truncate(time.Second).Add(1234567 * time.Nanosecond)
	events := []Event{{Topic: "a", DeliverAt: at}, {Topic: "b"}, {Topic: "c", DeliverAt: time.Now().Add(-time.Hour)}, {Topic: "d", DeliverAt: at.In(time.FixedZone("", 3600))}}
	for d, tables := range map[Dialect][2]string{Postgres: {"onewrite.outbox", "onewrite.scheduled"}, SQLite: {"onewrite_outbox", "onewrite_scheduled"}} {
		st, err := New(d).Statements(t.Context(), events...)
		if err != nil {
			t.Fatal(err)
		}
		if len(st) != 2 || st[0].Table != tables[0] || st[1].Table != tables[1] || !strings.Contains(st[1].SQL, "deliver_at") || strings.Contains(st[0].SQL, "deliver_at") {
			t.Fatalf("%+v", st)
		}
		n := len(columns)
		if len(st[0].Args) != 2*n || st[0].Args[0] != "b" || st[0].Args[n] != "c" {
			t.Errorf("now: %v", st[0].Args)
		}
		if len(st[1].Args) != 2*(n+1) || st[1].Args[0] != "a" || st[1].Args[n+1] != "d" {
			t.Errorf("later: %v", st[1].Args)
		}
		want := at.UTC().Truncate(time.Millisecond).Add(time.Millisecond).Format("2006-01-02T15:04:05.000Z")
		if st[1].Args[n] != want || st[1].Args[2*n+1] != want {
			t.Errorf("at %v and %v, want %v", st[1].Args[n], st[1].Args[2*n+1], want)
		}
	}
	if _, err := New(MySQL).Statements(t.Context(), events...); err == nil || !strings.Contains(err.Error(), "event 0: DeliverAt") || !strings.Contains(err.Error(), "event 3") {
		t.Errorf("MySQL has no scheduled events: %v", err)
	}
	if _, err := New(MySQL).Cancel(t.Context(), nil, NewID()); err == nil {
		t.Error("and no cancel")
	}
}

package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/outbox"
)

type order struct {
	ID       string `json:"id"`
	Customer string `json:"customer"`
}

var orderPlaced = outbox.Topic[order]{Name: "order.placed", Key: func(o order) string { return o.Customer }}

// recorder is a transaction that remembers what it was asked for.
type recorder struct {
	statements int
	args       []any
}

func (r *recorder) ExecContext(_ context.Context, _ string, args ...any) (sql.Result, error) {
	r.statements++
	r.args = append(r.args, args...)
	return nil, nil
}

func TestTopic(t *testing.T) {
	tx := &recorder{}
	want := []order{{"o-1", "alice"}, {"o-2", "bob"}}
	if err := orderPlaced.Publish(t.Context(), outbox.New(outbox.Postgres), tx, want...); err != nil {
		t.Fatal(err)
	}
	columns := len(outbox.Columns())
	if tx.statements != 1 || len(tx.args) != 2*columns {
		t.Fatalf("%d statements, %d arguments", tx.statements, len(tx.args))
	}
	for i, o := range want {
		row := tx.args[i*columns:]
		if row[0] != "order.placed" || row[1] != o.Customer || row[6] != "application/json" {
			t.Errorf("row %d: %v", i, row[:columns])
		}
		got, err := orderPlaced.Decode(onewrite.Event{Topic: "order.placed", Data: []byte(row[2].(string))})
		if err != nil || got != o {
			t.Errorf("%v came back as %v (%v)", o, got, err)
		}
	}
}

func TestTopicRefuses(t *testing.T) {
	for name, e := range map[string]onewrite.Event{
		"another topic": {ID: "e", Topic: "order.paid", Data: []byte(`{}`)},
		"a tombstone":   {ID: "e", Topic: "order.placed"},
		"no JSON":       {ID: "e", Topic: "order.placed", Data: []byte(`{`)},
		"another type":  {ID: "e", Topic: "order.placed", Data: []byte(`{"id":7}`)},
	} {
		if v, err := orderPlaced.Decode(e); !errors.Is(err, onewrite.ErrRejected) || v != (order{}) {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	tx := &recorder{}
	bad := outbox.Topic[any]{Name: "t"}
	if err := bad.Publish(t.Context(), outbox.New(outbox.SQLite), tx, 1, func() {}); err == nil || !strings.Contains(err.Error(), "topic t") || tx.statements != 0 {
		t.Errorf("%v, %d statements", err, tx.statements)
	}
	var invalid *outbox.InvalidError
	if err := (outbox.Topic[any]{Name: "no good"}).Publish(t.Context(), outbox.New(outbox.SQLite), tx, 1); !errors.As(err, &invalid) {
		t.Error(err)
	}
}

// A codec may make no bytes at all; that is data, and no tombstone.
func TestTopicWithoutBytes(t *testing.T) {
	e, err := outbox.Topic[string]{Name: "t", Codec: text{}}.Event("")
	if err != nil || e.Payload == nil {
		t.Errorf("%+v, %v", e, err)
	}
}

type text struct{}

func (text) ContentType() string                { return "text/plain" }
func (text) Marshal(v string) ([]byte, error)   { return append([]byte(nil), v...), nil }
func (text) Unmarshal(b []byte) (string, error) { return string(b), nil }

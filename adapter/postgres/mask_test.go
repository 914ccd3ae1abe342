package postgres

import (
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/masking"
	"github.com/onewrite/onewrite/internal/servers"
)

// What is masked is in no event: not in a snapshot, not in old images, not in keys.
func TestMasks(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE customers (email text PRIMARY KEY, name text, secret text, big text); ALTER TABLE customers REPLICA IDENTITY FULL;
			ALTER TABLE customers ALTER COLUMN big SET STORAGE EXTERNAL;
			CREATE TABLE cards (id int PRIMARY KEY, brand text, number text, secrets text); ALTER TABLE cards ALTER COLUMN secrets SET STORAGE EXTERNAL;
			INSERT INTO customers VALUES ('ann@example.org', 'Annabel', 'hidden-1', repeat('hidden-2', 1000)); INSERT INTO cards VALUES (1, 'visa', 'hidden-3', repeat('hidden-5', 1000))`, "customers", "cards")
		rules, err := masking.Parse([]string{"public.customers.secret drop", "*.big drop", "public.customers.email hash", "public.customers.name truncate 3", "public.cards only id, brand"})
		if err != nil {
			t.Fatal(err)
		}
		r.cfg.Masks, r.cfg.MaskKey = rules, "k"
		r.open()
		events := r.events(2)
		if events[1].Topic != "public.customers" { // two tables are read at a time
			events[0], events[1] = events[1], events[0]
		}
		sql(t, r.conn, `UPDATE customers SET name = NULL`, `UPDATE customers SET email = 'bob@example.org'`, `DELETE FROM customers`, `UPDATE cards SET number = 'hidden-4'`)
		events = append(events, r.events(5)...)
		hashed := masking.NewHasher("k").Sum([]byte("ann@example.org"))
		for i, e := range events {
			for _, word := range []string{"hidden", "secret", "big", "number", "example.org", "Annabel"} {
				if strings.Contains(string(e.Data), word) || strings.Contains(e.Key, word) {
					t.Errorf("event %d shows %q: %s %s", i, word, e.Key, e.Data)
				}
			}
		}
		if got := told(rowOf(t, events[1])); got.Key != `{"email":"`+hashed+`"}` || got.After != `{"email":"`+hashed+`","name":"Ann"}` {
			t.Errorf("%+v", got)
		}
		if got := rowOf(t, events[2]); got.Before != `{"email":"`+hashed+`","name":"Ann"}` || got.After != `{"email":"`+hashed+`","name":null}` {
			t.Errorf("%+v", got)
		}
		r.cfg.Masks, err = masking.Parse([]string{"*.id drop"})
		if err != nil {
			t.Fatal(err)
		}
		r.open()
		sql(t, r.conn, `UPDATE cards SET brand = 'x'`)
		if _, err := r.src.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "in its key") {
			t.Errorf("a key that is left out: %v", err)
		}
	})
}

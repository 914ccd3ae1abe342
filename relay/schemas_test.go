package relay_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/relay"
)

// decodeAvro reads want records of a topic, by the schemas that they name.
func decodeAvro(t *testing.T, k *servers.KafkaServer, cl *sr.Client, topic string, want int) (rows []map[string]any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	reader, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	byID := map[int]*avro.Schema{}
	for len(rows) < want {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%d of %d rows: %v", len(rows), want, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			var h sr.ConfluentHeader
			id, rest, err := h.DecodeID(r.Value)
			if err != nil {
				t.Fatalf("%q: %v", r.Value, err)
			}
			if byID[id] == nil {
				s, err := cl.SchemaByID(ctx, id)
				if err != nil {
					t.Fatal(err)
				}
				byID[id] = avro.MustParse(s.Schema)
			}
			var v map[string]any
			if _, err := byID[id].Decode(rest, &v); err != nil {
				t.Fatal(err)
			}
			rows = append(rows, v)
		})
	}
	return rows
}

// TestRowsByRegistry: the row changes of real tables go to Kafka as Avro, through new
// columns, lost ones and one of another type: that row is parked with what the registry
// says, the rows of other keys go on, and it is delivered when the table is mended.
func TestRowsByRegistry(t *testing.T) {
	k, a := servers.Kafka(t), servers.NewApicurio(t)
	cl, err := sr.NewClient(sr.URLs(a.URL()))
	if err != nil {
		t.Fatal(err)
	}
	if r := cl.SetCompatibility(t.Context(), sr.SetCompatibility{Level: sr.CompatBackward}); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	pg, exec := newPostgres(t)
	exec(`CREATE TABLE orders (id bigint PRIMARY KEY, total numeric, note text, weight float8, tags int[], doc jsonb, raw bytea, at timestamptz, ok boolean, u uuid, price real);
		INSERT INTO orders VALUES (9007199254740993, 12345678901234567890.10, NULL, 1, '{1,NULL}', '{"a": 1}', '\x00ff', now(), true, '00000000-0000-4000-8000-000000000001', 0.1)`)
	g := newRig(t, "")
	g.head = "sources:\n  shop: {type: postgres, url: '" + pg + "', tables: [public.orders]}\nbus: {dir: bus}\nlisten: 127.0.0.1:0\n"
	stream := fmt.Sprintf("stream: {type: kafka, brokers: ['%s'], format: avro, registry: {url: '%s'}, retry: {attempts: 2, first: 5ms, max: 20ms}}", k.Addr(), a.URL())
	g.write(stream)
	if err := relay.Migrate(t.Context(), t.Output(), g.load(), relay.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	g.start()
	g.untilCounts("stream", 1, 0, 0)
	exec(`INSERT INTO orders (id, weight) VALUES (2, 1.5)`)
	exec(`ALTER TABLE orders ADD size int; UPDATE orders SET note = 'x', size = 3 WHERE id = 2`)
	exec(`ALTER TABLE orders DROP price; DELETE FROM orders WHERE id = 2; TRUNCATE orders`)
	exec(`INSERT INTO orders (id, ok) VALUES (4, true)`)
	g.untilCounts("stream", 6, 0, 0)
	exec(`ALTER TABLE orders ALTER ok TYPE text USING ok::text; INSERT INTO orders (id, ok) VALUES (5, 'maybe'), (6, NULL), (5000000000, NULL); UPDATE orders SET size = 1 WHERE id = 5`)
	g.untilCounts("stream", 8, 0, 2)
	list, err := g.relay.Parked(t.Context(), "stream", 0, 10)
	if err != nil || len(list) != 2 || !strings.Contains(list[0].Reason, "column ok was boolean and is string") || !strings.Contains(list[0].Reason, "409") || !strings.Contains(list[0].Reason, "NONE") {
		t.Fatalf("%+v, %v", list, err)
	}
	// As the cure says: any version, once. Apicurio takes that for all subjects only.
	if r := cl.SetCompatibility(t.Context(), sr.SetCompatibility{Level: sr.CompatNone}); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	if err := g.relay.Retry(t.Context(), "stream", 0, nil); err != nil {
		t.Fatal(err)
	}
	g.untilCounts("stream", 10, 0, 0)

	rows := decodeAvro(t, k, cl, "public.orders", 10)
	first := slices.IndexFunc(rows, func(r map[string]any) bool { return r["op"] == "r" })
	after := rows[first]["after"].(map[string]any)
	if after["id"] != int64(9007199254740993) || after["total"] != "12345678901234567890.10" || after["note"] != nil || after["doc"] != `{"a": 1}` || after["raw"] != "AP8=" || fmt.Sprint(after["tags"]) != "[1 <nil>]" {
		t.Errorf("%v", after)
	}
	g.stop()

	g = newRig(t, "")
	for _, sql := range []string{"CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT, score REAL)", "INSERT INTO notes VALUES (1, 'ü', 1.5), (2, NULL, NULL)"} {
		if _, err := g.db.Exec(sql); err != nil {
			t.Fatal(err)
		}
	}
	g.head = strings.Replace(g.head, "path: app.db", "path: app.db, tables: [notes]", 1)
	g.write(strings.Replace(stream, "stream", "rows", 1))
	if err := relay.Migrate(t.Context(), t.Output(), g.load(), relay.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	g.start()
	g.untilCounts("rows", 2, 0, 0)
	for _, r := range decodeAvro(t, k, cl, "notes", 2) {
		if s := r["source"].(map[string]any); s["connector"] != "sqlite" || r["after"].(map[string]any)["id"] == nil {
			t.Errorf("%v", r)
		}
	}
}

// TestLookBySchema: what is told of an event without asking a registry.
func TestLookBySchema(t *testing.T) {
	cfg, _, err := config.Parse([]byte("sources: {shop: {type: sqlite, path: x}}\ndestinations: {stream: {type: kafka, brokers: ['localhost:1'], topic: 'x.{topic}', format: avro, registry: {url: 'http://localhost:1'}}}\n"), "x", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	row := onewrite.Event{ID: "1", Source: "shop", Topic: "orders", Type: "insert", ContentType: "application/json", Data: []byte(`{"before":null,"after":{"id":1},"source":{"name":"shop","table":"orders"},"op":"c"}`)}
	if p := relay.Look(cfg, row)[0]; p.Subject != "x.orders-value" || !strings.Contains(p.Schema, `"onewrite.shop.orders.Value"`) || p.Event == nil {
		t.Errorf("%+v", p)
	}
	order := row
	order.Type, order.Data = "order.placed", []byte(`{"n":1}`)
	if p := relay.Look(cfg, order)[0]; p.Subject != "x.orders-value" || p.Schema != "" || p.Parked {
		t.Errorf("%+v", p)
	}
	order.Data = []byte("x")
	if p := relay.Look(cfg, order)[0]; !p.Parked || p.Event != nil || !strings.Contains(p.Reason, "not JSON") {
		t.Errorf("%+v", p)
	}
}

package relay_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/relay"
)

// TestRowsByProtobuf: the row changes of a real table go to Kafka as Protobuf, through
// what migrations do to it: each column keeps its number, what the registry refuses is
// parked with its words, and is delivered when the table is mended.
func TestRowsByProtobuf(t *testing.T) {
	k, a := servers.Kafka(t), servers.NewApicurio(t)
	cl, err := sr.NewClient(sr.URLs(a.URL()))
	if err != nil {
		t.Fatal(err)
	}
	level := func(to sr.CompatibilityLevel) {
		t.Helper()
		if r := cl.SetCompatibility(t.Context(), sr.SetCompatibility{Level: to}); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
	}
	level(sr.CompatBackward)
	pg, exec := newPostgres(t)
	exec(`CREATE TABLE proto_orders (id bigint PRIMARY KEY, total numeric, note text, weight float8, tags int[], ok boolean);
		INSERT INTO proto_orders VALUES (9007199254740993, 12345678901234567890.10, NULL, 1, '{1,NULL}', true)`)
	g := newRig(t, "")
	g.head = "sources:\n  shop: {type: postgres, url: '" + pg + "', tables: [public.proto_orders]}\nbus: {dir: bus}\nlisten: 127.0.0.1:0\n"
	g.write(fmt.Sprintf("stream: {type: kafka, brokers: ['%s'], format: protobuf, registry: {url: '%s'}, retry: {attempts: 2, first: 5ms, max: 20ms}}", k.Addr(), a.URL()))
	if err := relay.Migrate(t.Context(), t.Output(), g.load(), relay.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	g.start()
	g.untilCounts("stream", 1, 0, 0)
	exec(`INSERT INTO proto_orders (id, weight) VALUES (2, 1.5)`)
	exec(`ALTER TABLE proto_orders ADD "größe" int; UPDATE proto_orders SET note = 'x', "größe" = 3 WHERE id = 2`)
	exec(`ALTER TABLE proto_orders DROP total; UPDATE proto_orders SET note = 'y' WHERE id = 2`)
	exec(`ALTER TABLE proto_orders ADD total numeric; ALTER TABLE proto_orders ADD late text; UPDATE proto_orders SET total = 3, late = 'z' WHERE id = 2; DELETE FROM proto_orders WHERE id = 2; TRUNCATE proto_orders`)
	g.untilCounts("stream", 7, 0, 0)
	exec(`ALTER TABLE proto_orders ALTER ok TYPE text USING ok::text; INSERT INTO proto_orders (id, ok) VALUES (5, 'maybe'), (6, NULL)`)
	g.untilCounts("stream", 8, 0, 1)
	list, err := g.relay.Parked(t.Context(), "stream", 0, 10)
	if err != nil || len(list) != 1 || !strings.Contains(list[0].Reason, "column ok was boolean and is string") || !strings.Contains(list[0].Reason, "409") {
		t.Fatalf("%+v, %v", list, err)
	}
	level(sr.CompatNone)
	if err := g.relay.Retry(t.Context(), "stream", 0, nil); err != nil {
		t.Fatal(err)
	}
	g.untilCounts("stream", 9, 0, 0)
	ss, err := cl.SchemaByVersion(t.Context(), "public.proto_orders-value", -1)
	if err != nil {
		t.Fatal(err)
	}
	const want = `message Value {
  optional int64 id = 1;
  optional string total = 2;
  optional int64 weight = 3;
  optional Array tags = 4;
  optional string ok = 5;
  optional double weight_double = 6 [json_name = "weight.double"];
  optional string note = 7;
  optional int64 gr_xc3__xb6__xc3__x9f_e = 8 [json_name = "größe"];
  optional string late = 9;
}`
	if ss.Type != sr.TypeProtobuf || !strings.Contains(ss.Schema.Schema, want) {
		t.Errorf("%v: %s", ss.Type, ss.Schema.Schema)
	}
}

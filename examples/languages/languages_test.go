package languages

import (
	"bytes"
	"errors"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/internal/faultnet"
)

func TestLanguages(t *testing.T) {
	for _, lang := range languages {
		t.Run(lang.name, func(t *testing.T) {
			g := newRig(t, lang)
			t.Run("relayed", g.relayed)
			t.Run("forged", g.forged)
			t.Run("stale", g.stale)
			t.Run("cut off", g.cutOff)
			t.Run("repeated", g.repeated)
			t.Run("at fault", g.atFault)
			t.Run("without database", g.withoutDatabase)
			t.Run("without secret", g.withoutSecret)
		})
	}
}

// relayed: each order that the producer committed arrives with its effect once,
// none that it rolled back does, although some answers are lost.
func (g *rig) relayed(t *testing.T) {
	wire, err := faultnet.Listen(g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { wire.Close() })
	var requests atomic.Int32 // of the first twelve, every third gets no answer
	wire.Set(faultnet.Fault{Swallow: func(piece []byte) bool {
		if !bytes.HasPrefix(piece, []byte("POST ")) {
			return false
		}
		n := requests.Add(1)
		return n <= 12 && n%3 == 1
	}})
	_, port, err := net.SplitHostPort(wire.Addr())
	if err != nil {
		t.Fatal(err)
	}
	r := g.migrateAndRelay(t, port)
	committed, rolledBack := g.produce(t)

	// What was in the outbox before the last order was read before it.
	last := g.insertLast(t)
	until(t, "the last order to be shipped", func() bool { return g.shipped(t)[last] > 0 })
	until(t, "nothing to be pending", func() bool {
		d := r.Status(t.Context()).Destinations["warehouse"]
		return d.Pending == 0 && d.Delivered >= uint64(len(committed)+1)
	})
	g.wantShipped(t, append(committed, last))
	for _, order := range rolledBack {
		if n := g.shipped(t)[order]; n != 0 {
			t.Errorf("order %s was rolled back and shipped %d times", order, n)
		}
	}
	if got, want := customers(t, g.warehouse, "order_id, customer FROM shipments"), customers(t, g.shop, "id, customer FROM orders"); !maps.Equal(got, want) {
		t.Errorf("the customers arrive as %q, want %q", got, want)
	}
	if d := r.Status(t.Context()).Destinations["warehouse"]; d.Parked != 0 {
		t.Errorf("%d events are parked: %s", d.Parked, d.LastError)
	}
	if n := wire.Counts().Swallowed; n < 2 {
		t.Errorf("vacuous: %d answers were lost", n)
	}
}

// produce runs the producer, as a role that may insert, and returns what it says
// it did. The orders have to agree.
func (g *rig) produce(t *testing.T) (committed, rolledBack []string) {
	t.Helper()
	app := connect(t, g.appURL)
	var refused *pgconn.PgError
	if _, err := app.Exec(t.Context(), "SELECT FROM onewrite.outbox"); !errors.As(err, &refused) || refused.Code != "42501" {
		t.Fatalf("the application's role may read the outbox: %v", err)
	}
	cmd := g.command(g.lang.producer, "DATABASE_URL="+g.lang.url(t, g.appURL))
	cmd.Args = append(cmd.Args, "18")
	out := g.finish(t, cmd)
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if order, ok := strings.CutPrefix(line, "committed "); ok {
			committed = append(committed, order)
		} else if order, ok := strings.CutPrefix(line, "rolled back "); ok {
			rolledBack = append(rolledBack, order)
		} else {
			t.Errorf("the producer says %q", line)
		}
	}
	if len(committed) != 12 || len(rolledBack) != 6 {
		t.Fatalf("the producer says that it committed %d and rolled back %d", len(committed), len(rolledBack))
	}
	stored := slices.Sorted(maps.Keys(customers(t, g.shop, "id, customer FROM orders")))
	if want := slices.Sorted(slices.Values(committed)); !slices.Equal(stored, want) {
		t.Fatalf("the orders are %v, but the producer says %v", stored, want)
	}
	return committed, rolledBack
}

// finish runs a program to its good end and returns its output.
func (g *rig) finish(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(soon, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(cmd.Path), err, stderr.Bytes())
	}
	return stdout.String()
}

// insertLast places an order without a producer.
func (g *rig) insertLast(t *testing.T) string {
	t.Helper()
	const last = "the last order"
	for _, statement := range []string{
		`INSERT INTO orders (id, customer) VALUES ('` + last + `', 'carol')`,
		`INSERT INTO onewrite.outbox (topic, key, payload) VALUES ('order.placed', 'carol', '{"order":"` + last + `","customer":"carol"}')`,
	} {
		if _, err := g.shop.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	return last
}

func customers(t *testing.T, db *pgx.Conn, what string) map[string]string {
	t.Helper()
	rows, err := db.Query(t.Context(), "SELECT "+what)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	var order, customer string
	if _, err := pgx.ForEachRow(rows, []any{&order, &customer}, func() error {
		found[order] = customer
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// shipped counts the consumer's effects by order.
func (g *rig) shipped(t *testing.T) map[string]int {
	t.Helper()
	rows, err := g.warehouse.Query(t.Context(), "SELECT order_id, count(*) FROM shipments GROUP BY 1")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int)
	var order string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&order, &n}, func() error {
		found[order] = n
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// wantShipped wants these orders, each once, and nothing else.
func (g *rig) wantShipped(t *testing.T, orders []string) {
	t.Helper()
	want := make(map[string]int)
	for _, order := range orders {
		want[order]++
	}
	if got := g.shipped(t); !maps.Equal(got, want) {
		t.Errorf("shipped: %v\nwant, once each: %v", got, orders)
	}
}

// TestExamplesAreShort: they are read as documentation.
func TestExamplesAreShort(t *testing.T) {
	for _, lang := range languages {
		for _, file := range []string{lang.producer, lang.consumer} {
			text, err := os.ReadFile(filepath.Join("..", lang.name, file))
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(text, []byte("\n")); n > 60 {
				t.Errorf("%s has %d lines, 60 are allowed", file, n)
			}
		}
	}
}

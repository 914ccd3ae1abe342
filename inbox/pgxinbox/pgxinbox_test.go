package pgxinbox_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/inbox/pgxinbox"
	"github.com/onewrite/onewrite/internal/servers"
)

// pools are a consumer's pools of one database: direct and through a transaction
// pooler.
func pools(t *testing.T) map[string]*pgxpool.Pool {
	t.Helper()
	pg := servers.Postgres(t, 15)
	base := pg.NewDatabase(t)
	role := pg.NewRole(t)
	owner, err := pgx.Connect(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(t.Context())
	if _, err := owner.Exec(t.Context(), inbox.Schema(inbox.Postgres, role.Name)+fmt.Sprintf(`CREATE TABLE effect (id text); GRANT SELECT, INSERT ON effect TO %q`, role.Name)); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	bouncer := servers.PgBouncer(t, pg)
	out := map[string]*pgxpool.Pool{}
	for name, dsn := range map[string]string{"direct": role.URL(base), "pooled": role.URL(bouncer(strings.TrimPrefix(u.Path, "/")))} {
		pool, err := pgxpool.New(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		out[name] = pool
	}
	return out
}

func message(n int) inbox.Message {
	return inbox.Message{Event: onewrite.Event{ID: fmt.Sprint("id-", n), Source: "shop", Key: "k", Seq: fmt.Sprintf("%05d", n)}}
}

func effect(ctx context.Context, tx pgx.Tx, e onewrite.Event) error {
	_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1)`, pgx.QueryExecModeExec, e.ID)
	return err
}

func TestApply(t *testing.T) {
	for name, pool := range pools(t) {
		t.Run(name, func(t *testing.T) {
			in := inbox.New(inbox.Postgres, name, inbox.Ordered())
			receive := pgxinbox.Receiver(in, pool, effect)
			for _, want := range []inbox.Outcome{inbox.Applied, inbox.Duplicate} {
				got, err := receive(t.Context(), []inbox.Message{message(1), message(2)})
				if err != nil || len(got) != 2 || got[0] != want || got[1] != want {
					t.Fatalf("%v (%v), want %v", got, err, want)
				}
			}
			boom := errors.New("boom")
			_, err := pgxinbox.Apply(t.Context(), in, pool, message(3), func(ctx context.Context, tx pgx.Tx) error {
				return errors.Join(effect(ctx, tx, message(3).Event), boom)
			})
			var failed *inbox.EffectError
			if !errors.Is(err, boom) || !errors.As(err, &failed) {
				t.Fatal(err)
			}
			after := message(9)
			after.After = message(8).Seq
			if got, err := pgxinbox.Apply(t.Context(), in, pool, after, nil); got != inbox.Gap || !errors.Is(err, onewrite.ErrGap) {
				t.Fatalf("%v %v", got, err)
			}
			var applied atomic.Int64
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					for range 10 {
						o, err := pgxinbox.Apply(context.Background(), in, pool, message(3), func(ctx context.Context, tx pgx.Tx) error { return effect(ctx, tx, message(3).Event) })
						if err != nil {
							t.Error(err)
						} else if o == inbox.Applied {
							applied.Add(1)
						}
					}
				})
			}
			wg.Wait()
			if applied.Load() != 1 {
				t.Errorf("applied %d times", applied.Load())
			}
		})
	}
}

// Old ids are forgotten through pgx too.
func TestTrim(t *testing.T) {
	pool := pools(t)["direct"]
	in := inbox.New(inbox.Postgres, "c", inbox.Keep(80))
	for n := range 500 {
		if _, err := pgxinbox.Apply(t.Context(), in, pool, message(n), func(context.Context, pgx.Tx) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	var n int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM onewrite_inbox.seen`).Scan(&n); err != nil || n < 80 || n > 90 {
		t.Errorf("%d ids of 80 are kept (%v)", n, err)
	}
}

// tracer counts the statements that go to the server.
type tracer struct{ statements []string }

func (t *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	t.statements = append(t.statements, d.SQL)
	return ctx
}

func (*tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// The mark is one round trip, for an event and for a batch.
func TestOneRoundTrip(t *testing.T) {
	cfg := pools(t)["direct"].Config().ConnConfig.Copy()
	seen := &tracer{}
	cfg.Tracer = seen
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for name, in := range map[string]*inbox.Inbox{"ids": inbox.New(inbox.Postgres, "ids"), "ordered": inbox.New(inbox.Postgres, "ordered", inbox.Ordered())} {
		// The first commit of a process also forgets what those before it left.
		if _, err := pgxinbox.Apply(t.Context(), in, conn, message(0), func(context.Context, pgx.Tx) error { return nil }); err != nil {
			t.Fatal(err)
		}
		for from, n := range map[int]int{1: 1, 100: 500} {
			seen.statements = nil
			batch := make([]inbox.Message, n)
			for i := range batch {
				batch[i] = message(from + i)
			}
			outcomes, err := pgxinbox.ApplyAll(t.Context(), in, conn, batch, func(context.Context, pgx.Tx, onewrite.Event) error { return nil })
			if err != nil || len(outcomes) != n {
				t.Fatal(outcomes, err)
			}
			if len(seen.statements) != 3 { // begin, the mark, commit
				t.Errorf("%s, %d events: %q", name, n, seen.statements)
			}
		}
	}
}

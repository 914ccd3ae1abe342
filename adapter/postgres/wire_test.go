package postgres

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/faultnet"
	"github.com/onewrite/onewrite/internal/servers"
)

// network is a proxy to a server.
func network(t *testing.T, to string) *faultnet.Proxy {
	t.Helper()
	p, err := faultnet.Listen(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// dark is a network that takes everything, gives nothing and keeps all
// connections open.
var dark = faultnet.Fault{Up: faultnet.Stream{Hold: true}, Down: faultnet.Stream{Hold: true}}

// through returns the URL with another address.
func through(t *testing.T, base, addr string) string {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = addr
	return u.String()
}

// A network that goes silent is noticed within 15 seconds: asleep, and in the
// middle of an answer.
func TestSilentNetwork(t *testing.T) {
	for _, backlog := range []int{0, 100_000} {
		t.Run(map[bool]string{true: "asleep", false: "reading"}[backlog == 0], func(t *testing.T) {
			t.Parallel()
			pg := servers.Postgres(t, 15)
			base := newOutbox(t, pg, MigrateOptions{})
			fill(t, dial(t, base), backlog+1, 500)
			net := network(t, pg.Addr())
			s := open(t, through(t, base, net.Addr()), "")
			read(t, s)
			net.Set(dark)
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			start := time.Now()
			for {
				if _, err := s.Read(ctx); err != nil {
					t.Logf("%v after %v", err, time.Since(start))
					break
				}
			}
			if d := time.Since(start); d > 30*time.Second {
				t.Errorf("noticed after %v", d)
			}
			start = time.Now()
			_ = s.Close()
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("Close took %v", d)
			}
		})
	}
}

// A statement that takes long on the server is no silence.
func TestLongStatementIsNoSilence(t *testing.T) {
	t.Parallel()
	url := newOutbox(t, servers.Postgres(t, 15), MigrateOptions{})
	s := open(t, url, "")
	s.session.Lock()
	_, err := s.conn.Exec(t.Context(), `SELECT pg_sleep(12)`)
	s.session.Unlock()
	if err != nil {
		t.Errorf("a session at work was cut: %v", err)
	}
}

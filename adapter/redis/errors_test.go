package redis_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/internal/faultnet"
	"github.com/onewrite/onewrite/internal/servers"
)

// kind says how the pipeline reads an error.
func kind(err error) string {
	var a interface{ Answered() bool }
	var r interface{ RetryAfter() time.Duration }
	switch {
	case err == nil:
		return "none"
	case errors.Is(err, onewrite.ErrRejected):
		return "rejected"
	case errors.Is(err, onewrite.ErrFenced):
		return "fenced"
	case errors.As(err, &a) && a.Answered():
		return "answered"
	case errors.As(err, &r) && r.RetryAfter() > 0:
		return "later"
	}
	return "outage"
}

// wants checks how an error is read, that it has the texts, and tells no password.
func wants(t *testing.T, srv *servers.RedisServer, err error, want string, texts ...string) {
	t.Helper()
	if got := kind(err); got != want {
		t.Errorf("read as %s, want %s: %v", got, want, err)
	}
	for _, text := range texts {
		if err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("no %q in: %v", text, err)
		}
	}
	if err != nil && (strings.Contains(err.Error(), srv.Password()) || strings.Contains(err.Error(), "\n")) {
		t.Errorf("a password, or more than a line, in: %v", err)
	}
}

// do runs a command that has to succeed.
func do(t *testing.T, c *goredis.Client, args ...any) {
	t.Helper()
	if err := c.Do(t.Context(), args...).Err(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
}

// both writes one event with a place and one without.
func both(t *testing.T, s onewrite.Placed, topic string) (placed, write error) {
	t.Helper()
	_, placed = s.WriteAt(t.Context(), messages(1, events(topic, 0, 1, "k")...), []byte("r"))
	_, write = s.Write(t.Context(), events(topic, 1, 1, "k"))
	return placed, write
}

func TestServerErrors(t *testing.T) {
	srv := servers.NewRedis(t)
	c := plain(t, srv)
	conf := redis.Config{URL: srv.URL(), Destination: "d", Stream: "s:{topic}"}
	s := openPlaced(t, conf)
	cache := open(t, redis.Config{URL: srv.URL(), Commands: []string{"SET c:{key} {data}", "EXPIRE c:{key} 1000"}})
	place(t, s)
	check := func(name, want string, texts ...string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			placed, write := both(t, s, "t")
			wants(t, srv, placed, want, texts...)
			wants(t, srv, write, want, texts...)
			_, err := cache.Write(t.Context(), events("t", 0, 1, "k"))
			wants(t, srv, err, want, texts...)
		})
	}
	check("all well", "none")
	do(t, c, "CONFIG", "SET", "maxmemory", "1")
	check("OOM", "outage", "OOM", "CONFIG SET maxmemory")
	do(t, c, "CONFIG", "SET", "maxmemory", "0")
	do(t, c, "CONFIG", "SET", "min-replicas-to-write", "1")
	check("NOREPLICAS", "outage", "NOREPLICAS", "min-replicas-to-write")
	do(t, c, "CONFIG", "SET", "min-replicas-to-write", "0")
	do(t, c, "REPLICAOF", "127.0.0.1", "1")
	check("READONLY", "outage", "READONLY", "set url to the primary")
	if _, err := redis.Open(t.Context(), conf); err == nil || kind(err) != "outage" || !strings.Contains(err.Error(), "replica of 127.0.0.1:1") {
		t.Errorf("a replica is opened: %v", err)
	}
	do(t, c, "REPLICAOF", "NO", "ONE")
	check("well again", "none") // none of it broke a sink
	if n := c.XLen(t.Context(), "s:t").Val(); n != 4 {
		t.Errorf("%d entries, want 4: refused writes left a trace", n)
	}
}

func TestMisconf(t *testing.T) {
	srv := servers.NewRedis(t, "stop-writes-on-bgsave-error yes", "save 3600 1")
	c := plain(t, srv)
	s := openPlaced(t, redis.Config{URL: srv.URL(), Destination: "d", Stream: "s"})
	place(t, s)
	// A folder in the place of the snapshot's file: it cannot be written.
	if err := os.MkdirAll(filepath.Join(srv.Data(), "dump.rdb", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Join(srv.Data(), "dump.rdb")) }) // the server's user cannot
	do(t, c, "SET", "a", "b")
	do(t, c, "BGSAVE")
	for deadline := time.Now().Add(patience); ; {
		if strings.Contains(c.Info(t.Context(), "persistence").Val(), "rdb_last_bgsave_status:err") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the snapshot did not fail")
		}
	}
	placed, write := both(t, s, "t")
	wants(t, srv, placed, "outage", "MISCONF", " INFO persistence")
	wants(t, srv, write, "outage", "MISCONF")
}

// TestBusy: a server that runs a script of somebody's asks for time.
func TestBusy(t *testing.T) {
	srv := servers.NewRedis(t, "busy-reply-threshold 50")
	s := openPlaced(t, redis.Config{URL: srv.URL(), Destination: "d", Stream: "s"})
	place(t, s)
	c := plain(t, srv)
	ended := make(chan error, 1)
	go func() { ended <- c.Eval(context.Background(), "while true do end", nil).Err() }()
	other := plain(t, srv)
	for deadline := time.Now().Add(patience); !goredis.HasErrorPrefix(other.Ping(t.Context()).Err(), "BUSY"); {
		if time.Now().After(deadline) {
			t.Fatal("the server is not busy")
		}
	}
	placed, write := both(t, s, "t")
	wants(t, srv, placed, "later", "SCRIPT KILL")
	wants(t, srv, write, "later", "SCRIPT KILL")
	do(t, other, "SCRIPT", "KILL")
	if err := <-ended; err == nil {
		t.Error("the script was not killed")
	}
	placed, write = both(t, s, "t")
	wants(t, srv, errors.Join(placed, write), "none")
}

func TestLogin(t *testing.T) {
	srv := servers.Redis(t)
	u, err := url.Parse(srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct{ user, word, text string }{
		"wrong": {"default", "wrong-" + srv.Password()[:4], "WRONGPASS"}, "no user": {"nobody", srv.Password(), "WRONGPASS"}, "none": {"", "", "NOAUTH"},
	} {
		c := redis.Config{URL: "redis://" + u.Host, User: x.user, Password: x.word, Destination: "d"}
		_, err := redis.Open(t.Context(), c)
		wants(t, srv, err, "outage", x.text, "user")
		c.Commands = []string{"DEL a"}
		_, err = redis.Open(t.Context(), c)
		wants(t, srv, err, "outage", x.text)
		if x.word != "" && strings.Contains(fmt.Sprint(err), x.word) {
			t.Errorf("%s: a password in %v", name, err)
		}
	}
	open(t, redis.Config{URL: "redis://" + u.Host, User: "default", Password: srv.Password(), Destination: "d"})
	open(t, redis.Config{URL: "redis://" + u.Host + "/3", Password: srv.Password(), Destination: "d"})
}

// TestPermissions: what a user may not write is an answer about the events that go
// there, and about none else; nothing of them is written.
func TestPermissions(t *testing.T) {
	srv := servers.NewRedis(t)
	c := plain(t, srv)
	user := func(name string, rules ...any) redis.Config {
		do(t, c, append([]any{"ACL", "SETUSER", name, "on", ">" + name, "resetkeys", "-@all"}, rules...)...)
		return redis.Config{URL: "redis://" + name + ":" + name + "@" + srv.Addr(), Destination: "d", Stream: "{topic}"}
	}
	enough := []any{"~order*", "~onewrite:*", "+@connection", "+info", "+config|get", "+evalsha", "+eval", "+xadd", "+xdel", "+xinfo", "+type", "+hset", "+hget", "+hmget", "+multi", "+exec"}
	s := openPlaced(t, user("some", enough...))
	place(t, s)
	list := append(events("order.a", 0, 2, "k"), events("stock", 2, 1, "k")...)
	list = append(list, events("order.b", 3, 1, "k")...)
	bad, err := s.WriteAt(t.Context(), messages(1, list...), []byte("r"))
	if bad != 2 {
		t.Errorf("bad is %d", bad)
	}
	wants(t, srv, err, "answered", "stock", "ACL SETUSER")
	n, err := s.Write(t.Context(), list)
	if n != 2 {
		t.Errorf("Write = %d", n)
	}
	wants(t, srv, err, "answered", "stock", "ACL SETUSER")
	if got := c.XLen(t.Context(), "order.a").Val(); got != 2 {
		t.Errorf("%d entries, want 2", got)
	}
	writeAt(t, s, "r", messages(1, list[:2]...)...)
	for _, less := range []string{"-xadd", "-xdel", "-xinfo", "-type", "-hset", "-evalsha"} {
		user("some", append(enough, less)...)
		_, err := s.WriteAt(t.Context(), messages(3, list[:2]...), []byte("no"))
		if k := kind(err); k != "outage" && k != "answered" {
			t.Errorf("%s: %s, %v", less, k, err)
		}
		if got := c.XLen(t.Context(), "order.a").Val(); got != 4 {
			t.Fatalf("%s: %d entries, want 4", less, got)
		}
		if got := c.HGet(t.Context(), "onewrite:{d}:place", "record").Val(); got != "r" {
			t.Fatalf("%s: the record is %q", less, got)
		}
	}
	user("some", enough...)
	writeAt(t, s, "again", messages(3, list[:2]...)...)
	// Without INFO it works, blindly and aloud; without the place it does not.
	open(t, user("blind", append(enough, "-info", "-config|get")...))
	placeless := user("placeless", append([]any{"~order*"}, enough[2:]...)...)
	_, err = redis.Open(t.Context(), placeless)
	wants(t, srv, err, "outage", "NOPERM", "ACL SETUSER")
}

// TestRefusedServers: what would lose events is refused aloud, or warned of.
func TestRefusedServers(t *testing.T) {
	srv := servers.NewRedis(t)
	c := plain(t, srv)
	conf := redis.Config{URL: srv.URL(), Destination: "d"}
	for policy, refused := range map[string]bool{"allkeys-lru": true, "allkeys-random": true, "allkeys-lfu": true, "volatile-lru": false, "volatile-ttl": false, "noeviction": false} {
		do(t, c, "CONFIG", "SET", "maxmemory-policy", policy)
		s, err := redis.Open(t.Context(), conf)
		if (err != nil) != refused || refused && !strings.Contains(err.Error(), "maxmemory-policy noeviction") {
			t.Errorf("%s: %v", policy, err)
		}
		if err == nil {
			_ = s.Close()
		}
		open(t, redis.Config{URL: srv.URL(), Commands: []string{"DEL a"}}) // a cache may be evicted
	}
	if _, err := redis.Open(t.Context(), redis.Config{URL: srv.URL() + "," + srv.Addr(), Destination: "d"}); err == nil || !strings.Contains(err.Error(), "no cluster") {
		t.Errorf("two addresses of no cluster: %v", err)
	}
	for url, text := range map[string]string{"": "redis://", "http://a": "redis://", "redis://": "redis://", "redis://h/x": "database", "redis://a,rediss://b": "mixes", "redis://h?x=1": "redis://"} {
		if _, err := redis.Open(t.Context(), redis.Config{URL: url, Destination: "d"}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", url, err)
		}
	}
	if _, err := redis.Open(t.Context(), redis.Config{URL: "redis://127.0.0.1:1", Destination: "d"}); err == nil || kind(err) != "outage" {
		t.Errorf("connected to nothing: %v", err)
	}
}

// TestPolicyLater: a server that begins to evict is not written to any more, from the
// next connection on at the latest; nothing of the sink is broken by it.
func TestPolicyLater(t *testing.T) {
	srv := servers.NewRedis(t)
	s := openPlaced(t, redis.Config{URL: srv.URL(), Destination: "d", Stream: "s"})
	place(t, s)
	c := plain(t, srv)
	do(t, c, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
	do(t, c, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	for range 2 {
		placed, write := both(t, s, "t")
		wants(t, srv, placed, "outage", "maxmemory-policy noeviction")
		wants(t, srv, write, "outage", "maxmemory-policy noeviction")
	}
	do(t, c, "CONFIG", "SET", "maxmemory-policy", "noeviction")
	placed, write := both(t, s, "t")
	wants(t, srv, errors.Join(placed, write), "none")
}

// TestSwallowedAnswers: the server has it, and the answer never comes. The record
// says so to the next sink, and nothing comes twice.
func TestSwallowedAnswers(t *testing.T) {
	srv := servers.Redis(t)
	proxy, err := faultnet.Listen(srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	name := unique(t)
	conf := redis.Config{URL: strings.Replace(srv.URL(), srv.Addr(), proxy.Addr(), 1), Destination: name, Stream: name}
	const rounds = 60
	first := openPlaced(t, conf)
	place(t, first)
	writeAt(t, first, "0") // the server knows the script
	for i := range rounds {
		s := openPlaced(t, conf)
		if got := place(t, s); i > 0 && got != fmt.Sprint(i) {
			t.Fatalf("the record is %q, want %d", got, i)
		}
		proxy.Set(faultnet.Fault{Swallow: func(b []byte) bool { return bytes.Contains(b, []byte("evalsha")) }})
		_, err := s.WriteAt(t.Context(), messages(uint64(i+1), events("t", i, 1)...), fmt.Append(nil, i+1))
		wants(t, srv, err, "outage")
		proxy.Set(faultnet.Fault{})
		if i == 0 { // the sink itself cannot know
			_, err := s.WriteAt(t.Context(), messages(1, events("t", 0, 1)...), []byte("1"))
			wants(t, srv, err, "outage", "its outcome has to be read first", "open the destination again")
		}
		_ = s.Close()
	}
	if _, ids := stored(t, plain(t, srv), name); len(ids) != rounds || ids[rounds-1] != fmt.Sprint(rounds, "-0") {
		t.Errorf("%d entries, want %d", len(ids), rounds)
	}
	if got := proxy.Counts(); got.Swallowed < rounds {
		t.Errorf("%d answers were swallowed", got.Swallowed)
	}
}

// TestCancelled: the end of the context ends a call that waits for an answer, long
// before the client itself gives up.
func TestCancelled(t *testing.T) {
	srv := servers.Redis(t)
	proxy, err := faultnet.Listen(srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	url := strings.Replace(srv.URL(), srv.Addr(), proxy.Addr(), 1)
	name := unique(t)
	s := openPlaced(t, redis.Config{URL: url, Destination: name, Stream: name})
	cache := open(t, redis.Config{URL: url, Commands: []string{"SET " + name + ":c {data}"}})
	for what, call := range map[string]func(ctx context.Context) error{
		"Place": func(ctx context.Context) error { _, err := s.Place(ctx); return err },
		"Write": func(ctx context.Context) error { _, err := s.Write(ctx, events("t", 0, 1)); return err },
		"cache": func(ctx context.Context) error { _, err := cache.Write(ctx, events("t", 0, 1)); return err },
		"WriteAt": func(ctx context.Context) error {
			_, err := s.WriteAt(ctx, messages(1, events("t", 0, 1)...), nil)
			return err
		},
		"Open": func(ctx context.Context) error {
			s, err := redis.Open(ctx, redis.Config{URL: url, Destination: name})
			if err == nil {
				_ = s.Close()
			}
			return err
		},
	} {
		proxy.Set(faultnet.Fault{Down: faultnet.Stream{Hold: true}})
		before := proxy.Counts().Held
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- call(ctx) }()
		for deadline := time.Now().Add(patience); proxy.Counts().Held == before; {
			if time.Now().After(deadline) {
				t.Fatalf("%s: no answer is held back", what)
			}
		}
		cancel()
		select {
		case err := <-ended:
			wants(t, srv, err, "outage", "canceled")
		case <-time.After(patience * 2 / 3):
			t.Errorf("%s waits on after the end of its context", what)
		}
		proxy.Set(faultnet.Fault{})
	}
}

// TestClosedWhileIdle: a connection that ended unused is made again, without an error.
func TestClosedWhileIdle(t *testing.T) {
	srv := servers.Redis(t)
	c := plain(t, srv)
	name := unique(t)
	s := openPlaced(t, redis.Config{URL: srv.URL(), Destination: name, Stream: name})
	place(t, s)
	for i := range 5 {
		for line := range strings.Lines(c.Do(t.Context(), "CLIENT", "LIST").String()) {
			id, _, _ := strings.Cut(strings.TrimPrefix(line[strings.Index(line, "id="):], "id="), " ")
			if strings.Contains(line, "name=onewrite") {
				do(t, c, "CLIENT", "KILL", "ID", id)
			}
		}
		if _, err := s.WriteAt(t.Context(), messages(uint64(i+1), events("t", i, 1)...), []byte("r")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConsumers reads a stream with clients of other families.
func TestConsumers(t *testing.T) {
	srv := servers.Redis(t)
	name := unique(t)
	s := openPlaced(t, redis.Config{URL: srv.URL(), Destination: name, Stream: name + ":{topic}"})
	place(t, s)
	list := events("t", 0, 2, "k")
	list[0].Data, list[0].Key, list[0].ContentType = []byte("Grüße\n\x00\"x\" \xff"), "鍵 {1}", "application/octet-stream"
	list[0].Header = map[string]string{"traceparent": "00-1", "X-Shop": "a b"}
	list[1].Data, list[1].ContentType = nil, ""
	writeAt(t, s, "r", messages(41, list...)...)
	out, err := srv.CLI(t, "--raw", "XRANGE", name+":t", "-", "+").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"41-0\n", "ce_id\ne00000\n", "ce_partitionkey\n鍵 {1}\n", "ce_traceparent\n00-1\n", "X-Shop\na b\n", "content-type\napplication/octet-stream\n", "data\n" + string(list[0].Data) + "\n", "42-0\n", "ce_id\ne00001\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("redis-cli sees no %q in\n%q", want, out)
		}
	}
	if n := strings.Count(string(out), "\ndata\n"); n != 1 {
		t.Errorf("redis-cli sees %d fields named data, one event has none", n)
	}
	const program = `
import os, redis
r = redis.Redis.from_url(os.environ["URL"])
s = os.environ["STREAM"]
r.xgroup_create(s, "g", id="0")
[(name, entries)] = r.xreadgroup("g", "me", {s: ">"}, count=10)
for id, f in entries:
    print(id.decode(), f[b"ce_id"].decode(), f.get(b"ce_partitionkey", b"").hex(), f.get(b"data", b"none").hex())
    r.xack(s, "g", id)
print(r.xpending(s, "g")["pending"])
`
	file := filepath.Join(t.TempDir(), "consumer.py")
	if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(servers.Python(t, "redis"), file)
	cmd.Env = append(cmd.Environ(), "URL="+srv.URL(), "STREAM="+name+":t")
	if out, err = cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := fmt.Sprintf("41-0 e00000 %x %x\n42-0 e00001 %x %x\n0\n", list[0].Key, list[0].Data, list[1].Key, "none")
	if string(out) != want {
		t.Errorf("Python sees\n%swant\n%s", out, want)
	}
}

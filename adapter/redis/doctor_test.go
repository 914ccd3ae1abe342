package redis_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// examined examines a server; every finding must be whole and tell no password.
func examined(t *testing.T, c redis.Config, secret string) []diagnosis.Finding {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if c.Destination == "" {
		c.Destination = "doc"
	}
	found := redis.Examine(ctx, c)
	for _, f := range found {
		if f.Check == "" || f.Text == "" || strings.Contains(f.Text+f.Cure, "\n") || f.Severity > diagnosis.OK && f.Cure == "" {
			t.Errorf("not a whole finding of one line: %+v", f)
		}
	}
	if strings.Contains(fmt.Sprintf("%+v", found), secret) {
		t.Errorf("a password is told: %+v", found)
	}
	return found
}

func finds(t *testing.T, found []diagnosis.Finding, s diagnosis.Severity, check, holds string) {
	t.Helper()
	for _, f := range found {
		if f.Severity == s && f.Check == check && strings.Contains(f.Text+"\x00"+f.Cure, holds) {
			return
		}
	}
	t.Errorf("no %v of %q with %q in\n%+v", s, check, holds, found)
}

func TestExamine(t *testing.T) {
	srv := servers.NewRedis(t)
	c := plain(t, srv)
	conf := redis.Config{URL: srv.URL(), Stream: "events:{topic}"}
	found := examined(t, conf, srv.Password())
	for check, holds := range map[string]string{"connection": srv.Addr(), "version": "7.", "primary": "yes", "tls": "none needed", "eviction": "noeviction", "durability": "on its disk", "replicas": "none", "rights": "onewrite:{doc}:place", "place": "none yet"} {
		finds(t, found, diagnosis.OK, check, holds)
	}
	for _, f := range found {
		if f.Severity != diagnosis.OK {
			t.Errorf("%+v", f)
		}
	}
	if n := c.DBSize(t.Context()).Val(); n != 0 {
		t.Errorf("%d keys were made", n)
	}
	s := openPlaced(t, redis.Config{URL: srv.URL(), Destination: "doc"})
	place(t, s)
	finds(t, examined(t, conf, srv.Password()), diagnosis.OK, "place", "kept in")

	for _, x := range []struct {
		set      [2]string
		severity diagnosis.Severity
		check    string
		holds    string
	}{
		{[2]string{"maxmemory-policy", "allkeys-lru"}, diagnosis.Problem, "eviction", "maxmemory-policy noeviction"},
		{[2]string{"maxmemory-policy", "volatile-lru"}, diagnosis.OK, "eviction", "streams stay"},
		{[2]string{"appendfsync", "everysec"}, diagnosis.Warning, "durability", "second or two"},
		{[2]string{"appendfsync", "no"}, diagnosis.Warning, "durability", "30 seconds"},
		{[2]string{"appendonly", "no"}, diagnosis.Warning, "durability", "last snapshot"},
		{[2]string{"maxmemory", "1200000"}, diagnosis.Warning, "memory", "CONFIG SET maxmemory"},
	} {
		do(t, c, "CONFIG", "SET", x.set[0], x.set[1])
		finds(t, examined(t, conf, srv.Password()), x.severity, x.check, x.holds)
	}
	do(t, c, "CONFIG", "SET", "maxmemory", "0")
	do(t, c, "REPLICAOF", "127.0.0.1", "1")
	finds(t, examined(t, conf, srv.Password()), diagnosis.Problem, "primary", "url: redis://127.0.0.1:1/0")
	do(t, c, "REPLICAOF", "NO", "ONE")
	replica := servers.NewRedis(t, fmt.Sprintf("replicaof %s", strings.Replace(srv.Addr(), ":", " ", 1)), "masterauth "+srv.Password())
	r := plain(t, replica)
	for deadline := time.Now().Add(patience); !strings.Contains(r.Info(t.Context(), "replication").Val(), "master_link_status:up"); {
		if time.Now().After(deadline) {
			t.Fatal("the replica does not follow")
		}
	}
	finds(t, examined(t, conf, srv.Password()), diagnosis.Warning, "replicas", "min-replicas-to-write 1")
	do(t, c, "CONFIG", "SET", "min-replicas-to-write", "1")
	finds(t, examined(t, conf, srv.Password()), diagnosis.OK, "replicas", "have to follow")

	do(t, c, "ACL", "SETUSER", "poor", "on", ">poor-word", "~*", "+@connection", "+eval", "+hget", "+xadd")
	poor := redis.Config{URL: "redis://poor:poor-word@" + srv.Addr()}
	found = examined(t, poor, "poor-word")
	finds(t, found, diagnosis.Warning, "settings", "+info")
	finds(t, found, diagnosis.Problem, "rights", "[XDEL HSET HMGET TYPE]")
	poor.Commands = []string{"DEL a", "SET b {data}"}
	finds(t, examined(t, poor, "poor-word"), diagnosis.Warning, "rights", "[DEL SET]")

	cache := redis.Config{URL: srv.URL(), Commands: []string{"DEL a"}}
	finds(t, examined(t, cache, srv.Password()), diagnosis.OK, "guarantee", "run again")
	finds(t, examined(t, redis.Config{URL: "redis://127.0.0.1:1"}, "x-x"), diagnosis.Problem, "connection", "redis-cli -u redis://127.0.0.1:1 PING")
	beyond := strings.TrimSuffix(srv.URL(), "/0") + "/99"
	finds(t, examined(t, redis.Config{URL: beyond}, srv.Password()), diagnosis.Problem, "connection", "redis-cli -u redis://"+srv.Addr()+" CONFIG GET databases")
	finds(t, examined(t, redis.Config{URL: "redis://u:wrong-word@" + srv.Addr()}, "wrong-word"), diagnosis.Problem, "connection", "WRONGPASS")
	finds(t, examined(t, redis.Config{URL: srv.URL(), Commands: []string{"FLUSHALL"}}, srv.Password()), diagnosis.Problem, "configuration", "DEL order:{key}")
	finds(t, examined(t, redis.Config{URL: srv.URL(), Stream: "{nope}"}, srv.Password()), diagnosis.Problem, "configuration", "events:{topic}")
}

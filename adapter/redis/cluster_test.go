package redis_test

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// cluster starts two nodes that have one half of the slots each.
func cluster(t *testing.T) (nodes []*servers.RedisServer, clients []*goredis.Client) {
	t.Helper()
	for i := range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		bus := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		s := servers.NewRedis(t, "cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 2000", fmt.Sprint("cluster-port ", bus))
		c := plain(t, s)
		do(t, c, "CLUSTER", "ADDSLOTSRANGE", i*8192, i*8192+8191)
		nodes, clients = append(nodes, s), append(clients, c)
		if i == 1 {
			host, port, _ := net.SplitHostPort(nodes[0].Addr())
			first := clients[0].ConfigGet(t.Context(), "cluster-port").Val()["cluster-port"]
			do(t, c, "CONFIG", "SET", "masterauth", nodes[0].Password())
			do(t, c, "CLUSTER", "MEET", host, port, first)
		}
	}
	for _, c := range clients { // one login for all
		do(t, c, "ACL", "SETUSER", "relay", "on", ">relay-word", "~*", "+@all")
	}
	for deadline := time.Now().Add(patience); ; {
		up := 0
		for _, c := range clients {
			if info := c.ClusterInfo(t.Context()).Val(); strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:2") {
				up++
			}
		}
		if up == 2 {
			return nodes, clients
		}
		if time.Now().After(deadline) {
			t.Fatal("the cluster does not come up")
		}
	}
}

// TestCluster: with the destination's name as the hash tag all is in one slot, and the
// sink goes to its node from whichever it is given. Other names are refused, with the
// cure; so is a cache.
func TestCluster(t *testing.T) {
	nodes, clients := cluster(t)
	url := func(i int) string { return "redis://relay:relay-word@" + nodes[i].Addr() }
	for _, name := range []string{"a", "b", "c", "d"} {
		for i := range nodes {
			conf := redis.Config{URL: url(i) + "," + nodes[1-i].Addr(), Destination: name, Stream: "{{" + name + "}}:{topic}"}
			s := openPlaced(t, conf)
			if got := place(t, s); got != []string{"none", "1"}[i] {
				t.Fatalf("%s: the record is %q", name, got)
			}
			list := append(events("x", i, 1), events("y", 10+i, 1)...)
			writeAt(t, s, strconv.Itoa(i+1), messages(uint64(1+i*2), list...)...)
		}
	}
	cc := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: []string{nodes[0].Addr()}, Username: "relay", Password: "relay-word"})
	defer cc.Close()
	for _, name := range []string{"a", "b", "c", "d"} {
		for _, topic := range []string{"x", "y"} {
			if n, err := cc.XLen(t.Context(), "{"+name+"}:"+topic).Result(); n != 2 || err != nil {
				t.Errorf("%s:%s has %d entries, %v", name, topic, n, err)
			}
		}
	}
	for i, c := range clients {
		if n := c.DBSize(t.Context()).Val(); n == 0 {
			t.Errorf("node %d has no key: the names do not try both", i)
		}
	}
	_, err := redis.Open(t.Context(), redis.Config{URL: url(0), Destination: "a", Stream: "{topic}"})
	wants(t, nodes[0], err, "outage", `stream: "{{a}}:{topic}"`)
	_, err = redis.Open(t.Context(), redis.Config{URL: url(0), Commands: []string{"DEL a"}})
	wants(t, nodes[0], err, "outage", "no cluster")
	finds(t, examined(t, redis.Config{URL: url(0), Destination: "a", Stream: "{topic}"}, "relay-word"), diagnosis.Problem, "cluster", `stream: "{{a}}:{topic}"`)
	finds(t, examined(t, redis.Config{URL: url(0), Commands: []string{"DEL a"}}, "relay-word"), diagnosis.Problem, "cluster", "single server")
	for i := range nodes {
		found := examined(t, redis.Config{URL: url(i), Destination: "a", Stream: "{{a}}"}, "relay-word")
		for _, f := range found {
			if f.Severity == diagnosis.Problem {
				t.Errorf("%+v", f)
			}
		}
	}
	// A node that is down takes the cluster with it, which says nothing about events.
	conf := redis.Config{URL: url(0) + "," + nodes[1].Addr(), Destination: "a", Stream: "{{a}}"}
	s := openPlaced(t, conf)
	place(t, s)
	home := 0
	if clients[1].Exists(t.Context(), "onewrite:{a}:place").Val() == 1 {
		home = 1
	}
	nodes[1-home].Kill(t)
	for deadline := time.Now().Add(patience); !strings.Contains(clients[home].ClusterInfo(t.Context()).Val(), "cluster_state:fail"); {
		if time.Now().After(deadline) {
			t.Fatal("the cluster does not fail")
		}
	}
	placed, write := both(t, s, "t")
	wants(t, nodes[0], placed, "outage", "CLUSTERDOWN")
	wants(t, nodes[0], write, "outage", "CLUSTERDOWN")
	nodes[1-home].Start(t)
	for deadline := time.Now().Add(patience); ; {
		if _, err = s.WriteAt(t.Context(), messages(9, events("t", 0, 1)...), []byte("9")); err == nil {
			break
		}
		wants(t, nodes[0], err, "outage")
		if time.Now().After(deadline) {
			t.Fatal("the cluster does not come back")
		}
	}
	// The next sink finds the node again.
	_ = s.Close()
	if got := place(t, openPlaced(t, conf)); got != "9" {
		t.Errorf("the record is %q", got)
	}
}

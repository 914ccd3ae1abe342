package nats_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/internal/faultnet"
	"github.com/onewrite/onewrite/onewritetest"
)

// TestTwoCopies lets two copies write to one log: the stale one gets ErrFenced,
// whatever it appends, and leaves no trace.
func TestTwoCopies(t *testing.T) {
	url := natsServer(t, t.TempDir(), nil).ClientURL()
	a, b := open(t, nats.Config{URL: url}), open(t, nats.Config{URL: url})
	if a.ID() != b.ID() || !a.Durable() {
		t.Fatalf("identities %s and %s of one bus, durable %v", a.ID(), b.ID(), a.Durable())
	}
	n := 0
	prev := onewrite.Pos("")
	for _, ahead := range []int{1, 2, 5, 13} {
		for _, stale := range []int{1, 2, 5, 12, 13, 100} {
			x := batch(n+1, 1)
			appendAll(t, a, prev, x)
			n, prev = n+1, x.Pos
			if pos, _, err := b.Position(t.Context(), "shop"); err != nil || pos != prev {
				t.Fatalf("position %s, %v", pos, err)
			}
			x = batch(n+1, ahead)
			appendAll(t, a, prev, x)
			n += ahead
			old := batch(90000, stale)
			for i := range old.Events {
				old.Events[i].ID = "stale"
			}
			if _, err := b.Append(t.Context(), "shop", prev, old); !errors.Is(err, onewrite.ErrFenced) {
				t.Fatalf("%d events, stale by %d: %v, want ErrFenced", stale, ahead, err)
			}
			prev = x.Pos
			if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != prev || last != uint64(n) {
				t.Fatalf("position %s at %d, %v; want %s at %d", pos, last, err, prev, n)
			}
		}
	}
	sub := subscribe(t, b, onewrite.Interest{Name: "d"})
	defer sub.Close()
	for i, m := range read(t, sub, n) {
		if m.ID != batch(i+1, 1).Events[0].ID {
			t.Fatalf("message %d is %s", i+1, m.ID)
		}
	}
}

func TestLease(t *testing.T) { lasts(t, 3) }

func lasts(t *testing.T, tries int) {
	url := natsServer(t, t.TempDir(), nil).ClientURL()
	const lease = 300 * time.Millisecond
	config := nats.Config{URL: url}
	nats.SetLease(&config, lease)
	a, b := open(t, config), open(t, config)
	in := onewrite.Interest{Name: "d", Sources: []string{"shop"}}
	subA := subscribe(t, a, in)
	if subA.Lease() != lease {
		t.Fatalf("lease %v", subA.Lease())
	}
	_, epochA := subA.Cursor()
	// As long as the owner commits, the other stands by. A busy machine may keep the
	// owner from its next commit for as long as its lease: then it is another's place.
	for end := time.Now().Add(4 * lease); time.Now().Before(end); time.Sleep(lease / 10) {
		committed := time.Now()
		if err := subA.Commit(t.Context(), onewrite.Cursor{Delivered: 1}); err != nil {
			t.Fatal(err)
		}
		_, robbed := b.Subscribe(t.Context(), in)
		if errors.Is(robbed, onewrite.ErrStandby) {
			robbed = b.Rewind(t.Context(), "d", onewrite.From{})
		}
		if !errors.Is(robbed, onewrite.ErrStandby) {
			if time.Since(committed) < lease || tries == 0 {
				t.Fatalf("a live owner lost its place: %v", robbed)
			}
			a.Close()
			b.Close()
			lasts(t, tries-1)
			return
		}
	}
	// Then it falls silent.
	start := time.Now()
	var subB onewrite.Subscription
	until(t, "the takeover", func() bool {
		var err error
		if subB, err = b.Subscribe(t.Context(), in); err != nil && !errors.Is(err, onewrite.ErrStandby) {
			t.Fatal(err)
		}
		return err == nil
	})
	if took := time.Since(start); took < lease/2 {
		t.Errorf("taken over after %v", took)
	}
	if c, epoch := subB.Cursor(); epoch <= epochA || c.Delivered != 1 {
		t.Errorf("epoch %d after %d, cursor %+v", epoch, epochA, c)
	}
	if err := subA.Commit(t.Context(), onewrite.Cursor{Delivered: 2}); !errors.Is(err, onewrite.ErrFenced) {
		t.Errorf("commit of the old owner: %v", err)
	}
	if err := subA.Close(); err != nil {
		t.Error(err)
	}
	if err := subB.Commit(t.Context(), onewrite.Cursor{Delivered: 3}); err != nil {
		t.Fatal(err)
	}
	// A place that was given up is free at once.
	if err := subB.Close(); err != nil {
		t.Fatal(err)
	}
	subA = subscribe(t, a, in)
	if c, _ := subA.Cursor(); c.Delivered != 3 {
		t.Errorf("cursor %+v", c)
	}
	if err := subA.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOtherCopyIsHeard reads on one copy what another writes, a new log too, and
// at once.
func TestOtherCopyIsHeard(t *testing.T) {
	url := natsServer(t, t.TempDir(), nil).ClientURL()
	a, b := open(t, nats.Config{URL: url}), open(t, nats.Config{URL: url})
	sub := subscribe(t, b, onewrite.Interest{Name: "d"})
	defer sub.Close()
	got := make(chan time.Time, 100)
	go func() {
		for range 50 {
			msgs, _, err := sub.Read(t.Context())
			if err != nil {
				return
			}
			for range msgs {
				got <- time.Now()
			}
		}
	}()
	var took []time.Duration
	prev := onewrite.Pos("")
	for i := range 20 {
		x := batch(i+1, 1)
		appendAll(t, a, prev, x)
		prev = x.Pos
		start := time.Now()
		select {
		case at := <-got:
			took = append(took, at.Sub(start))
		case <-time.After(patience):
			t.Fatalf("event %d did not come", i)
		}
	}
	fast := 0
	for _, d := range took {
		if d < 700*time.Millisecond { // by asking each second it would be a second, one after the other
			fast++
		}
	}
	if fast < 15 {
		t.Errorf("only %d of 20 events came sooner than by asking each second: %v", fast, took)
	}
}

// TestLostLog deletes a log: the source is read again, and destinations miss
// nothing although their cursors are beyond.
func TestLostLog(t *testing.T) {
	url := natsServer(t, t.TempDir(), nil).ClientURL()
	var gone []string
	b := open(t, nats.Config{URL: url, Vanished: func(d, s string, from, to uint64) { gone = append(gone, fmt.Sprint(d, " ", s, " ", from, " ", to)) }})
	appendAll(t, b, "", batch(1, 30))
	sub := subscribe(t, b, onewrite.Interest{Name: "d"})
	read(t, sub, 30)
	c := onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": {Floor: 20, Done: []onewrite.Span{{From: 25, To: 30}}}}}
	if err := sub.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := sub.Close(); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), "onewrite-shop"); err != nil {
		t.Fatal(err)
	}
	if pos, _, err := b.Position(t.Context(), "shop"); pos != "" || err != nil {
		t.Fatalf("position %q, %v", pos, err)
	}
	if last := appendAll(t, b, "", batch(1, 30)); last != 60 {
		t.Errorf("the new log ends at %d, want 60: behind every cursor", last)
	}
	sub = subscribe(t, b, onewrite.Interest{Name: "d"})
	defer sub.Close()
	for i, m := range read(t, sub, 30) {
		if m.ID != batch(i+1, 1).Events[0].ID {
			t.Fatalf("message %d is %s", i, m.ID)
		}
	}
	if c, _ := sub.Cursor(); c.Skipped != 4 || !slices.Equal(gone, []string{"d shop 21 30"}) {
		t.Errorf("skipped %d, said %q; four events were not confirmed", c.Skipped, gone)
	}
}

// TestLostLogUndelivered deletes a log while a destination has delivered nothing: it is
// told at once what it misses, before anything new comes, and nothing that comes then is
// taken for what it has.
func TestLostLogUndelivered(t *testing.T) {
	url := natsServer(t, t.TempDir(), nil).ClientURL()
	var gone []string
	c := nats.Config{URL: url, Vanished: func(d, s string, from, to uint64) { gone = append(gone, fmt.Sprint(d, " ", s, " ", from, " ", to)) }}
	b := open(t, c)
	late := subscribe(t, b, onewrite.Interest{Name: "late"}) // before the log is there
	appendAll(t, b, "", batch(1, 5))
	read(t, late, 5)
	nothing := onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": {}}}
	if err := errors.Join(late.Commit(t.Context(), nothing), late.Close()); err != nil {
		t.Fatal(err)
	}
	b.Close()
	js, err := jetstream.New(connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), "onewrite-shop"); err != nil {
		t.Fatal(err)
	}
	b = open(t, c)
	late = subscribe(t, b, onewrite.Interest{Name: "late"})
	if !slices.Equal(gone, []string{"late shop 1 5"}) {
		t.Errorf("said %q before something new comes", gone)
	}
	if err := late.Close(); err != nil {
		t.Fatal(err)
	}
	if last := appendAll(t, b, "", batch(6, 3)); last != 8 {
		t.Errorf("the new log ends at %d, want 8: behind what was known of", last)
	}
	late = subscribe(t, b, onewrite.Interest{Name: "late"})
	defer late.Close()
	if cur, _ := late.Cursor(); cur.Skipped != 5 || cur.Logs["shop"].Floor != 5 {
		t.Errorf("the missing do not count: %+v", cur)
	}
	read(t, late, 3)
}

// TestVanishedEvents purges a log from outside: a destination that had not got
// the events is told so, whether it comes later or is reading.
func TestVanishedEvents(t *testing.T) {
	url := natsServer(t, t.TempDir(), nil).ClientURL()
	type lost struct {
		destination, source string
		from, to            uint64
	}
	gone := make(chan lost, 10)
	writer := open(t, nats.Config{URL: url})
	b := open(t, nats.Config{URL: url, Vanished: func(d, s string, from, to uint64) { gone <- lost{d, s, from, to} }})
	appendAll(t, writer, "", batch(1, 30))
	early := subscribe(t, b, onewrite.Interest{Name: "early"})
	defer early.Close()
	late := subscribe(t, b, onewrite.Interest{Name: "late"})
	if err := late.Commit(t.Context(), onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": {Floor: 5, Done: []onewrite.Span{{From: 8, To: 9}, {From: 20, To: 25}}}}}); err != nil {
		t.Fatal(err)
	}
	if err := late.Close(); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "onewrite-shop")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(22)); err != nil {
		t.Fatal(err)
	}
	if got := read(t, early, 9); got[0].Offset != 22 {
		t.Errorf("the first that is left is at %d", got[0].Offset)
	}
	if g := <-gone; g != (lost{"early", "shop", 1, 21}) {
		t.Errorf("said %+v", g)
	}
	late = subscribe(t, b, onewrite.Interest{Name: "late"})
	defer late.Close()
	c, _ := late.Cursor()
	if g := <-gone; g != (lost{"late", "shop", 6, 21}) || c.Skipped != 12 { // 6 to 21 but 8, 9, 20, 21
		t.Errorf("said %+v, skipped %d", g, c.Skipped)
	}
	if got := read(t, late, 5); got[0].Offset != 26 {
		t.Errorf("the first that is left for it is at %d", got[0].Offset)
	}
	// A new destination begins with what is there, and misses nothing.
	fresh := subscribe(t, b, onewrite.Interest{Name: "fresh"})
	defer fresh.Close()
	read(t, fresh, 9)
	select {
	case g := <-gone:
		t.Errorf("said of a new one: %+v", g)
	default:
	}
}

func TestForeignHands(t *testing.T) {
	url := natsServer(t, t.TempDir(), nil).ClientURL()
	b := open(t, nats.Config{URL: url})
	appendAll(t, b, "", batch(1, 2))
	js, err := jetstream.New(connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "onewrite.shop.order.placed", []byte("not ours")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Append(t.Context(), "shop", "2", batch(3, 1)); !errors.Is(err, onewrite.ErrFenced) {
		t.Fatalf("append behind a foreign message: %v", err)
	}
	if _, _, err := b.Position(t.Context(), "shop"); err == nil || !strings.Contains(err.Error(), "nats stream rmm onewrite-shop 3") {
		t.Fatalf("position behind a foreign message: %v", err)
	}
	s, err := js.Stream(t.Context(), "onewrite-shop")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteMsg(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if pos, _, err := b.Position(t.Context(), "shop"); pos != "2" || err != nil {
		t.Fatalf("position %q, %v", pos, err)
	}
	appendAll(t, b, "2", batch(3, 1))
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pos, _, err := b.Position(t.Context(), "shop"); err == nil || !strings.Contains(err.Error(), "nats stream rm onewrite-shop") {
		t.Fatalf("position of a purged log: %q, %v", pos, err)
	}
}

// TestUnsafeLimits opens a bus whose log an operator gave limits that drop.
func TestUnsafeLimits(t *testing.T) {
	url := natsServer(t, t.TempDir(), nil).ClientURL()
	js, err := jetstream.New(connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "onewrite-shop", Subjects: []string{"onewrite.shop.>"}, MaxAge: time.Hour, MaxMsgs: 10, Discard: jetstream.DiscardOld,
	}); err != nil {
		t.Fatal(err)
	}
	b := open(t, nats.Config{URL: url})
	appendAll(t, b, "", batch(1, 50))
	s, err := js.Stream(t.Context(), "onewrite-shop")
	if err != nil {
		t.Fatal(err)
	}
	if c := s.CachedInfo().Config; c.MaxAge != 0 || c.MaxMsgs > 0 || c.Discard != jetstream.DiscardNew || s.CachedInfo().State.Msgs != 50 {
		t.Errorf("limits %+v, %d messages", c, s.CachedInfo().State.Msgs)
	}
}

// TestServerComesBack breaks the connection: calls fail, and work again when the
// server is back, without a new bus.
func TestServerComesBack(t *testing.T) {
	dir := t.TempDir()
	port := 0
	start := func() *server.Server {
		s := natsServer(t, dir, func(o *server.Options) {
			if port != 0 {
				o.Port = port
			}
		})
		port = s.Addr().(*net.TCPAddr).Port
		return s
	}
	s := start()
	b := open(t, nats.Config{URL: s.ClientURL()})
	sub := subscribe(t, b, onewrite.Interest{Name: "d"})
	appendAll(t, b, "", batch(1, 3))
	read(t, sub, 3)
	s.Shutdown()
	s.WaitForShutdown()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := b.Append(ctx, "shop", "3", batch(4, 1)); err == nil {
		t.Fatal("an append without a server succeeded")
	}
	if _, _, err := sub.Read(ctx); err == nil || ctx.Err() != nil {
		t.Fatalf("a read without a server: %v", err)
	}
	start()
	until(t, "the position", func() bool {
		pos, _, err := b.Position(ctx, "shop")
		return err == nil && pos == "3"
	})
	appendAll(t, b, "3", batch(4, 2))
	read(t, sub, 2)
	if err := sub.Close(); err != nil {
		t.Error(err)
	}
}

// cluster starts three servers that replicate and returns their addresses.
func cluster(t *testing.T) string {
	t.Helper()
	url, _ := clusterServers(t)
	return url
}

// clusterServers is cluster with the servers themselves.
func clusterServers(t *testing.T) (url string, servers []*server.Server) {
	t.Helper()
	var routes, urls []string
	for range 3 {
		routes = append(routes, "nats-route://"+freePort(t))
	}
	for i := range routes {
		s := natsServer(t, t.TempDir(), func(o *server.Options) {
			o.ServerName = "n" + strconv.Itoa(i)
			o.Cluster.Name = "c"
			o.Cluster.Host = "127.0.0.1"
			o.Cluster.Port, _ = strconv.Atoi(routes[i][strings.LastIndexByte(routes[i], ':')+1:])
			o.Routes = server.RoutesFromStr(strings.Join(routes, ","))
		})
		servers, urls = append(servers, s), append(urls, s.ClientURL())
	}
	until(t, "the cluster to have a leader", func() bool {
		for _, s := range servers {
			if s.JetStreamIsLeader() {
				return len(s.JetStreamClusterPeers()) == 3
			}
		}
		return false
	})
	return strings.Join(urls, ","), servers
}

// TestCluster runs the suite on three servers, with three copies of everything.
func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("three servers")
	}
	url := cluster(t)
	names := map[string]string{}
	onewritetest.TestBus(t, func(t *testing.T, dir string) onewritetest.Bus {
		if names[dir] == "" {
			names[dir] = fmt.Sprintf("bus%d", len(names))
		}
		c := nats.Config{URL: url, Name: names[dir]}
		nats.StoreOnly(&c)
		return closer{open(t, c)}
	})
	js, err := jetstream.New(connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "bus2-shop")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().Config.Replicas; n != 3 {
		t.Errorf("%d replicas, want 3", n)
	}
}

// A copy that is cut off from the bus does not hold its source for as long as its
// caller would wait: another copy has to read it.
func TestAppendCutOff(t *testing.T) {
	url := natsServer(t, t.TempDir(), nil).ClientURL()
	proxy, err := faultnet.Listen(strings.TrimPrefix(url, "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	b := open(t, nats.Config{URL: "nats://" + proxy.Addr()})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := b.Append(ctx, "shop", "", onewrite.Batch{Events: []onewrite.Event{{ID: "1", Source: "shop", Topic: "t", Type: "t"}}, Pos: "1"}); err != nil {
		t.Fatal(err)
	}
	proxy.Set(faultnet.Fault{Up: faultnet.Stream{Hold: true}, Down: faultnet.Stream{Hold: true}})
	_, err = b.Append(ctx, "shop", "1", onewrite.Batch{Events: []onewrite.Event{{ID: "2", Source: "shop", Topic: "t", Type: "t"}}, Pos: "2"})
	if err == nil || ctx.Err() != nil {
		t.Errorf("%v, %v", err, ctx.Err())
	}
	proxy.Set(faultnet.Fault{})
}

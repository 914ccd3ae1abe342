package nats_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/internal/retention"
)

func TestFolderLock(t *testing.T) {
	dir := t.TempDir()
	b := open(t, nats.Config{Dir: dir})
	_, err := nats.Open(t.Context(), nats.Config{Dir: dir})
	if err == nil || runtime.GOOS != "windows" && !strings.Contains(err.Error(), "is in use by process "+strconv.Itoa(os.Getpid())) {
		t.Fatalf("a folder in use was opened, or not named: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	// The file that a dead process left behind says nothing.
	if err := os.WriteFile(filepath.Join(dir, "lock"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, nats.Config{Dir: dir})
}

func TestNewFolderIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "bus")
	open(t, nats.Config{Dir: dir})
	if info, err := os.Stat(dir); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the folder: %v, %v", info.Mode(), err)
	}
}

func TestFormat(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"3\n", "written by a newer onewrite"},
		{"soup", "does not hold a version number"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "format"), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the refusal lets go of the lock
			if _, err := nats.Open(t.Context(), nats.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("format %q: %v", c.text, err)
			}
		}
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	b := open(t, nats.Config{Dir: dir})
	id := b.ID()
	if b.Durable() || len(id) < 16 {
		t.Fatalf("identity %q, durable %v", id, b.Durable())
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if again := open(t, nats.Config{Dir: dir}).ID(); again != id {
		t.Errorf("identity %q after a restart, was %q", again, id)
	}
	if other := open(t, nats.Config{Dir: t.TempDir()}).ID(); other == id {
		t.Error("two stores have one identity")
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []struct {
		c    nats.Config
		want string
	}{
		{nats.Config{}, "bus.dir or bus.url"},
		{nats.Config{Dir: "x", Listen: "127.0.0.1:0"}, "bus.user and bus.password"},
		{nats.Config{Dir: "x", Listen: "nowhere", User: "u", Password: "p"}, "host:port"},
		{nats.Config{URL: "nats://127.0.0.1:1", Listen: "127.0.0.1:0"}, "remove bus.url"},
		{nats.Config{Dir: "x", Name: "a.b"}, "letters, digits"},
		{nats.Config{URL: "nats://127.0.0.1:1"}, "connect"},
		{nats.Config{URL: "nats://u:hidden%zz@127.0.0.1:1"}, "is not a URL"},
	} {
		_, err := nats.Open(t.Context(), c.c)
		if err != nil && strings.Contains(err.Error(), "hidden") {
			t.Errorf("the error shows a password: %v", err)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want one with %q", c.c, err, c.want)
		}
	}
}

// freePort returns a port of loopback that was free a moment ago.
func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestWire reads the bus with a plain client and the CloudEvents SDK, and checks
// that clients cannot write.
func TestWire(t *testing.T) {
	addr := freePort(t)
	password := strconv.FormatInt(time.Now().UnixNano(), 36)
	b := open(t, nats.Config{Dir: t.TempDir(), Listen: addr, User: "reader", Password: password})
	x := batch(1, 1)
	x.Events[0].Key = `{"id": 1}`
	x.Events[0].Header = map[string]string{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "X-Tenant": "one"}
	appendAll(t, b, "", x, batch(2, 20))

	if _, err := natsgo.Connect("nats://" + addr); err == nil {
		t.Error("a client without password was let in")
	}
	nc := connect(t, "nats://"+addr, natsgo.UserInfo("reader", password))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c, err := js.OrderedConsumer(t.Context(), "onewrite-shop", jetstream.OrderedConsumerConfig{FilterSubjects: []string{"onewrite.shop.order.>"}})
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := c.Fetch(21, jetstream.FetchMaxWait(patience))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for m := range msgs.Messages() {
		n++
		e := fromHeaders(t, m.Headers(), m.Data())
		if want := "6e9c2a40-0000-4000-8000-" + strconv.Itoa(n); e.ID() != want || e.Source() != "/shop" || e.Type() != "order.placed" || e.Extensions()["topic"] != "order.placed" {
			t.Errorf("message %d: %s", n, e)
		}
		if n > 1 {
			continue
		}
		if m.Subject() != "onewrite.shop.order.placed" || m.Headers().Get("ce-partitionkey") != "{%22id%22:%201}" || m.Headers().Get("X-Tenant") != "one" ||
			m.Headers().Get("ce-datacontenttype") != "application/json" || m.Headers().Get("content-type") != "application/json" ||
			m.Headers().Get("ce-sequence") != "1" || m.Headers().Get("ce-time") != "2024-05-06T07:08:09Z" || string(m.Data()) != `{"order":1}` ||
			e.Extensions()["traceparent"] != "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" {
			t.Errorf("subject %s, headers %v, data %s", m.Subject(), m.Headers(), m.Data())
		}
	}
	if n != 21 {
		t.Fatalf("%d messages, want 21: %v", n, msgs.Error())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := js.Publish(ctx, "onewrite.shop.order.placed", []byte("x")); err == nil {
		t.Error("a client could write an event")
	}
	if err := js.DeleteStream(ctx, "onewrite-shop"); err == nil {
		t.Error("a client could delete a log")
	}
	if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != "21" || last != 21 {
		t.Errorf("position %s at %d, %v", pos, last, err)
	}
}

// fromHeaders reads an event in binary mode as the CloudEvents SDK does.
func fromHeaders(t *testing.T, h natsgo.Header, data []byte) ce.Event {
	t.Helper()
	e := ce.New(h.Get("ce-specversion"))
	for name, v := range h {
		attr, ok := strings.CutPrefix(name, "ce-")
		if !ok {
			continue
		}
		switch attr {
		case "specversion":
		case "id":
			e.SetID(v[0])
		case "source":
			e.SetSource(v[0])
		case "type":
			e.SetType(v[0])
		case "time":
			at, err := time.Parse(time.RFC3339Nano, v[0])
			if err != nil {
				t.Fatal(err)
			}
			e.SetTime(at)
		case "datacontenttype":
			e.SetDataContentType(v[0])
		default:
			e.SetExtension(attr, v[0])
		}
	}
	if err := e.SetData(h.Get("content-type"), data); err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil {
		t.Fatalf("the CloudEvents SDK refuses the message: %v", err)
	}
	return e
}

func TestFull(t *testing.T) {
	b := open(t, nats.Config{Dir: t.TempDir(), MaxBytes: 300 << 10})
	sub := subscribe(t, b, onewrite.Interest{Name: "d", Sources: []string{"shop", "other"}})
	defer sub.Close()
	prev, n := onewrite.Pos(""), 0
	var last uint64
	for {
		x := batch(n+1, []int{1, 5, 50}[n%3])
		for i := range x.Events {
			x.Events[i].Data = make([]byte, 1000)
		}
		l, err := b.Append(t.Context(), "shop", prev, x)
		if errors.Is(err, onewrite.ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		prev, last, n = x.Pos, l, n+len(x.Events)
	}
	if n < 100 {
		t.Fatalf("full after %d events", n)
	}
	if pos, l, err := b.Position(t.Context(), "shop"); err != nil || pos != prev || l != last {
		t.Fatalf("after full: position %s at %d, %v; want %s at %d", pos, l, err, prev, last)
	}
	// The room is for all logs together, and cursors move all the same.
	big := batch(1, 50)
	for i := range big.Events {
		big.Events[i].Data = make([]byte, 1000)
	}
	if _, err := b.Append(t.Context(), "other", "", big); !errors.Is(err, onewrite.ErrFull) {
		t.Fatalf("another source found room: %v", err)
	}
	got := read(t, sub, n)
	for i, m := range got {
		if m.Offset != uint64(i+1) {
			t.Fatalf("message %d at offset %d", i, m.Offset)
		}
	}
	if err := sub.Commit(t.Context(), onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": {Floor: last}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Retain(t.Context(), "shop", last, retention.Keep{Size: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Append(t.Context(), "shop", prev, batch(n+1, 5)); err != nil {
		t.Fatalf("append after room was made: %v", err)
	}
	if _, err := b.Append(t.Context(), "other", "", big); err != nil {
		t.Fatalf("append of another source after room was made: %v", err)
	}
}

func TestTooLarge(t *testing.T) {
	b := open(t, nats.Config{Dir: t.TempDir(), MaxEvent: 64 << 10})
	fits := batch(1, 1)
	fits.Events[0].Data = make([]byte, 64<<10)
	fits.Events[0].Header = map[string]string{"wide": strings.Repeat("\x00", 30<<10)}
	for i, n := range []int{1, 5, 20} {
		x := batch(2, n)
		x.Events[n-1].Data = make([]byte, 1<<20)
		if _, err := b.Append(t.Context(), "shop", "", x); !errors.Is(err, onewrite.ErrRejected) {
			t.Errorf("case %d: %v, want ErrRejected", i, err)
		}
	}
	if pos, last, err := b.Position(t.Context(), "shop"); pos != "" || last != 0 || err != nil {
		t.Fatalf("position %q at %d, %v: something was stored", pos, last, err)
	}
	appendAll(t, b, "", fits)
	sub := subscribe(t, b, onewrite.Interest{Name: "d"})
	defer sub.Close()
	m := read(t, sub, 1)[0]
	if len(m.Data) != 64<<10 || m.Header["wide"] != fits.Events[0].Header["wide"] {
		t.Errorf("the large event came back with %d bytes", len(m.Data))
	}
	// Parked, it has more to carry.
	if _, err := sub.Park(t.Context(), onewrite.Parked{Message: m, Reason: strings.Repeat("\x01✓", 5000), At: time.Now()}); err != nil {
		t.Error(err)
	}
	list, err := sub.Parked(t.Context(), 0, 10, nil)
	if err != nil || len(list) != 1 || len(list[0].Message.Data) != 64<<10 || len(list[0].Reason) < 1000 {
		t.Errorf("parked: %d entries, %v", len(list), err)
	}
}

func TestRetain(t *testing.T) {
	dir := t.TempDir()
	b := open(t, nats.Config{Dir: dir, Listen: "127.0.0.1:0", User: "reader", Password: "made-up"})
	if u, err := b.Retain(t.Context(), "shop", 5, retention.Keep{Size: 1}); err != nil || u != (retention.Usage{}) {
		t.Fatalf("a log that is not there: %+v, %v", u, err)
	}
	appendAll(t, b, "", batch(1, 100))
	mark := time.Now()
	appendAll(t, b, "100", batch(101, 100))
	retain := func(confirmed uint64, k retention.Keep) retention.Usage {
		t.Helper()
		u, err := b.Retain(t.Context(), "shop", confirmed, k)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	all := retain(200, retention.Keep{Size: 1 << 30, Age: time.Hour})
	if all.First != 1 || all.Last != 200 || all.Messages != 200 || all.Bytes < 200*100 || all.Oldest.IsZero() {
		t.Fatalf("within keep: %+v", all)
	}
	if u := retain(0, retention.Keep{Size: 1, Age: time.Nanosecond}); u != all {
		t.Fatalf("nothing is confirmed, and it went from %+v to %+v", all, u)
	}
	if u := retain(40, retention.Keep{Size: 1, Age: time.Nanosecond}); u.First != 41 {
		t.Fatalf("40 are confirmed: %+v", u)
	}
	if u := retain(200, retention.Keep{Age: time.Since(mark)}); u.First != 101 {
		t.Fatalf("of 200, 100 are old: %+v", u)
	}
	if u := retain(200, retention.Keep{Size: all.Bytes / 4}); u.First < 145 || u.First > 155 {
		t.Fatalf("a quarter should stay: %+v", u)
	}
	if u := retain(1<<40, retention.Keep{Size: 1, Age: time.Nanosecond}); u.First != 200 || u.Messages != 1 {
		t.Fatalf("the newest should stay: %+v", u)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = open(t, nats.Config{Dir: dir})
	if pos, last, err := b.Position(t.Context(), "shop"); pos != "200" || last != 200 || err != nil {
		t.Fatalf("position %s at %d, %v", pos, last, err)
	}
	// A new destination begins at what is there, and counts nothing before it.
	sub := subscribe(t, b, onewrite.Interest{Name: "d"})
	if c, _ := sub.Cursor(); c.Logs["shop"].Floor != 199 {
		t.Errorf("cursor %+v", c)
	}
	if m := read(t, sub, 1); m[0].Offset != 200 {
		t.Errorf("read offset %d", m[0].Offset)
	}
}

func TestRewindAndForget(t *testing.T) {
	b := open(t, nats.Config{Dir: t.TempDir()})
	appendAll(t, b, "", batch(1, 10))
	mark := time.Now()
	appendAll(t, b, "10", batch(11, 10))
	in := onewrite.Interest{Name: "d"}
	sub := subscribe(t, b, in)
	msgs := read(t, sub, 20)
	c := onewrite.Cursor{Delivered: 18, Filtered: 1, Logs: map[string]onewrite.LogCursor{"shop": {Floor: 15, Done: []onewrite.Span{{From: 17, To: 20}}}}}
	if err := sub.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := sub.Park(t.Context(), onewrite.Parked{Message: msgs[15], At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	_, epoch := sub.Cursor()
	if err := sub.Close(); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		from  onewrite.From
		first uint64
	}{{onewrite.From{Time: mark}, 11}, {onewrite.From{}, 1}, {onewrite.From{Time: mark}, 1}} { // never forward
		if err := b.Rewind(t.Context(), "d", x.from); err != nil {
			t.Fatal(err)
		}
		sub = subscribe(t, b, in)
		got, e := sub.Cursor()
		if e <= epoch || got.Delivered != 18 || len(got.Logs["shop"].Done) > 0 {
			t.Errorf("after rewind: %+v, epoch %d", got, e)
		}
		epoch = e
		if m := read(t, sub, 21-int(x.first)); m[0].Offset != x.first {
			t.Errorf("rewound to %d, want %d", m[0].Offset, x.first)
		}
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Rewind(t.Context(), "unknown", onewrite.From{}); err == nil {
		t.Error("a destination without a place was rewound")
	}
	sub = subscribe(t, b, in)
	if got, _ := sub.Cursor(); got.Logs["shop"].Floor != 0 {
		t.Errorf("after the rewinds: %+v", got)
	}
	forget(t, b, sub, msgs)
}

// forget drops the destination d that sub delivers to, and not another one.
func forget(t *testing.T, b *nats.Bus, sub onewrite.Subscription, msgs []onewrite.Message) {
	t.Helper()
	keep := subscribe(t, b, onewrite.Interest{Name: "keep"})
	if names, err := b.Destinations(t.Context()); err != nil || fmt.Sprint(names) != "[d keep]" {
		t.Errorf("destinations %v, %v", names, err)
	}
	if _, err := keep.Park(t.Context(), onewrite.Parked{Message: msgs[1], At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := b.Forget(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	if err := sub.Commit(t.Context(), onewrite.Cursor{}); !errors.Is(err, onewrite.ErrFenced) {
		t.Errorf("commit of a forgotten destination: %v", err)
	}
	if names, err := b.Destinations(t.Context()); err != nil || fmt.Sprint(names) != "[keep]" {
		t.Errorf("destinations %v, %v", names, err)
	}
	sub = subscribe(t, b, onewrite.Interest{Name: "d"})
	if list, err := sub.Parked(t.Context(), 0, 10, nil); err != nil || len(list) != 0 {
		t.Errorf("parked after forget: %d, %v", len(list), err)
	}
	if list, err := keep.Parked(t.Context(), 0, 10, nil); err != nil || len(list) != 1 {
		t.Errorf("parked of another destination after forget: %d, %v", len(list), err)
	}
	read(t, sub, 20)
}

// TestNothingRemains looks for goroutines that outlive the bus.
func TestNothingRemains(t *testing.T) {
	count := func() int { return runtime.NumGoroutine() }
	warm := open(t, nats.Config{Dir: t.TempDir()}) // what libraries start once
	if err := warm.Close(); err != nil {
		t.Fatal(err)
	}
	before := count()
	for range 3 {
		b, err := nats.Open(t.Context(), nats.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		appendAll(t, b, "", batch(1, 50))
		sub := subscribe(t, b, onewrite.Interest{Name: "d"})
		read(t, sub, 50)
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Append(t.Context(), "shop", "50", batch(51, 1)); err == nil {
			t.Fatal("a closed bus took an event")
		}
	}
	until(t, "the goroutines to end", func() bool { return count() <= before })
}

func TestSourceNames(t *testing.T) {
	b := open(t, nats.Config{Dir: t.TempDir()})
	for _, name := range []string{"state", "parked", "", "a.b", "a b", "*"} {
		if _, _, err := b.Position(t.Context(), name); err == nil {
			t.Errorf("source name %q was taken", name)
		}
		if _, err := b.Append(t.Context(), name, "", batch(1, 1)); err == nil {
			t.Errorf("source name %q was taken", name)
		}
	}
}

// What the server says after each kill is nothing to act on.
func TestRebuiltIndexIsNoWarning(t *testing.T) {
	var said strings.Builder
	log := slog.New(slog.NewTextHandler(&said, nil))
	nats.ServerWarns(log, "Filestore [%s] Stream state outdated, last block has additional entries, will rebuild", "onewrite-shop")
	nats.ServerWarns(log, "%s", "something else")
	if text := said.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, `level=INFO msg="embedded bus: Filestore [onewrite-shop] Stream state outdated`) {
		t.Errorf("it says %s", text)
	}
}

// TestFolderRemoved: nothing is stored in files that are gone; a folder that is put back is
// written to again.
func TestFolderRemoved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a folder in use cannot be removed")
	}
	dir := filepath.Join(t.TempDir(), "bus")
	b := open(t, nats.Config{Dir: dir})
	n := 0
	add := func() error { // behind what is there: a refused one may be there when the folder is back
		prev, _, err := b.Position(t.Context(), "shop")
		if err != nil {
			return err
		}
		n++
		next := batch(n, 1)
		_, err = b.Append(t.Context(), "shop", prev, next)
		return err
	}
	if err := add(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "jetstream")} {
		if err := os.Rename(path, dir+"-away"); err != nil {
			t.Fatal(err)
		}
		if err := add(); err == nil || !strings.Contains(err.Error(), "deletes in the log of PostgreSQL that were not delivered are not told") {
			t.Errorf("without %s an append says %v", path, err)
		}
		if _, err := b.Floors(t.Context(), "shop"); err == nil || !strings.Contains(err.Error(), "was removed or put elsewhere") {
			t.Errorf("without %s it tells what it has: %v", path, err)
		}
		if err := os.Rename(dir+"-away", path); err != nil {
			t.Fatal(err)
		}
		until(t, "the bus goes on", func() bool { return add() == nil })
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := add(); err == nil || !strings.Contains(err.Error(), "was removed or put elsewhere") {
		t.Errorf("when all is gone an append says %v", err)
	}
}

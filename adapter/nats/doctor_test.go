package nats_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/internal/diagnosis"
)

const canary = "canary-secret-word"

type findings []diagnosis.Finding

// whole fails the test when a finding is not whole or tells a secret.
func whole(t *testing.T, found findings) findings {
	t.Helper()
	for _, f := range found {
		if f.Check == "" || f.Text == "" || strings.ContainsAny(f.Text+f.Cure, "\n") || f.Severity > diagnosis.OK && f.Cure == "" {
			t.Errorf("not a whole finding of one line: %+v", f)
		}
	}
	if strings.Contains(fmt.Sprintf("%+v", found), canary) {
		t.Errorf("a secret is told:%v", found)
	}
	return found
}

func (fs findings) String() string {
	var b strings.Builder
	for _, f := range fs {
		fmt.Fprintf(&b, "\n  %-8s %-12s %s | %s", f.Severity, f.Check, f.Text, f.Cure)
	}
	return b.String()
}

func (fs findings) has(s diagnosis.Severity, check, holds string) bool {
	return slices.ContainsFunc(fs, func(f diagnosis.Finding) bool {
		return f.Severity == s && f.Check == check && strings.Contains(f.Cure+"\x00"+f.Text, holds)
	})
}

func (fs findings) want(t *testing.T, s diagnosis.Severity, check, holds string) {
	t.Helper()
	if !fs.has(s, check, holds) {
		t.Errorf("no %v of %q with %q in%v", s, check, holds, fs)
	}
}

// bad are those that are worse than ok, but for the disk of this machine.
func (fs findings) bad() (out findings) {
	for _, f := range fs {
		if f.Severity > diagnosis.OK && f.Check != "disk" {
			out = append(out, f)
		}
	}
	return out
}

func examine(t *testing.T, c nats.Config, sources ...string) findings {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return whole(t, nats.Examine(ctx, c, sources))
}

func examineSink(t *testing.T, c nats.SinkConfig, topics ...string) findings {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return whole(t, nats.ExamineSink(ctx, c, topics))
}

func TestExamineFolder(t *testing.T) {
	dir := t.TempDir()
	small := func(path string) nats.Config { return nats.Config{Dir: path, MaxBytes: 64 << 20} }
	write := func(path, text string) string {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bus := filepath.Join(dir, "bus")
	found := examine(t, small(bus))
	found.want(t, diagnosis.OK, "folder", "is to be made")
	found.want(t, diagnosis.OK, "owner", "does not run")
	if len(found.bad()) > 0 {
		t.Error(found.bad())
	}
	if _, err := os.Stat(bus); err == nil {
		t.Error("the folder was made")
	}
	plain := write(filepath.Join(dir, "plain"), "")
	examine(t, small(plain)).want(t, diagnosis.Problem, "folder", "set bus.dir to a folder")
	examine(t, small(filepath.Join(plain, "bus"))).want(t, diagnosis.Problem, "folder", "set bus.dir to a folder")
	examine(t, nats.Config{Name: "a b", Dir: bus}).want(t, diagnosis.Problem, "configuration", "use letters")
	examine(t, nats.Config{Dir: bus, MaxBytes: 1 << 50}).want(t, diagnosis.Warning, "disk", "max_size: ")

	b := open(t, small(bus))
	appendAll(t, b, "", batch(1, 3))
	found = examine(t, small(bus), "shop")
	found.want(t, diagnosis.OK, "owner", fmt.Sprintf("process %d has the folder", os.Getpid()))
	found.want(t, diagnosis.OK, "folder", "can be written")
	if len(found.bad()) > 0 {
		t.Error(found.bad())
	}
	if err := b.Sole("shop", 3, 0, true); err != nil {
		t.Fatal(err)
	}
	examine(t, small(bus)).want(t, diagnosis.Warning, "only copy", "source shop")
	if err := os.Mkdir(filepath.Join(bus, "damaged-20260101"), 0o700); err != nil {
		t.Fatal(err)
	}
	examine(t, small(bus)).want(t, diagnosis.Warning, "damage", "rm -r "+filepath.Join(bus, "damaged-20260101"))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	examine(t, small(bus)).want(t, diagnosis.OK, "owner", "does not run")
	write(filepath.Join(bus, "format"), "3\n")
	examine(t, small(bus)).want(t, diagnosis.Problem, "format", "install the newer onewrite")
	write(filepath.Join(bus, "format"), "x\n")
	examine(t, small(bus)).want(t, diagnosis.Problem, "format", "mv "+bus+" "+bus+".damaged")
}

// TestExamineServer is about one server without a cluster.
func TestExamineServer(t *testing.T) {
	s := natsServer(t, t.TempDir(), func(o *server.Options) { o.MaxPayload = 2 << 20 })
	c := nats.Config{URL: s.ClientURL()}
	found := examine(t, c, "shop")
	found.want(t, diagnosis.OK, "version", server.VERSION)
	found.want(t, diagnosis.OK, "tls", "on this machine")
	found.want(t, diagnosis.OK, "streams", "3 of 3 are to be made")
	found.want(t, diagnosis.Warning, "replicas", "sync_interval: always")
	if len(found.bad()) != 1 {
		t.Errorf("more than the only copy:%v", found.bad())
	}
	js, err := jetstream.New(connect(t, c.URL))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := js.AccountInfo(t.Context()); err != nil || info.Streams != 0 {
		t.Errorf("streams were made: %+v, %v", info, err)
	}
	c.Replicas = 3
	examine(t, c).want(t, diagnosis.Problem, "replicas", "replicas: 1")
	c.Replicas, c.MaxEvent = 0, 2<<20
	examine(t, c).want(t, diagnosis.Warning, "max_payload", "max_payload: ")
	c.MaxEvent = 0

	b := open(t, c)
	appendAll(t, b, "", batch(1, 300))
	found = examine(t, c, "shop")
	found.want(t, diagnosis.OK, "streams", "onewrite-shop: 300 messages")
	found.want(t, diagnosis.OK, "clock", "within")
	if found.has(diagnosis.OK, "streams", "to be made") || len(found.bad()) != 1 {
		t.Error(found)
	}
	for off, way := range map[time.Duration]string{-time.Minute: "ahead of", time.Minute: "behind"} {
		whole(t, nats.ExamineAt(t.Context(), c, off, "shop")).want(t, diagnosis.Warning, "clock", way)
	}
	full := c
	full.MaxBytes = 50 << 10
	examine(t, full, "shop").want(t, diagnosis.Warning, "room", "onewrite status")

	// What would drop events is taken off by the next start.
	for i, change := range []func(*jetstream.StreamConfig){
		func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		func(c *jetstream.StreamConfig) { c.MaxMsgs = 1000 },
		func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1000 },
	} {
		stream, err := js.Stream(t.Context(), "onewrite-shop")
		if err != nil {
			t.Fatal(err)
		}
		config := stream.CachedInfo().Config
		change(&config)
		if _, err := js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		examine(t, c, "shop").want(t, diagnosis.Problem, "streams", []string{"max_age 1h", "max_msgs 1000", "discard old", "max_msgs_per_subject 1000"}[i])
		b.Close()
		b = open(t, c)
		if found := examine(t, c, "shop"); len(found.bad()) != 1 {
			t.Errorf("not taken off:%v", found.bad())
		}
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "onewrite-fast", Subjects: []string{"onewrite.fast.>"}, Storage: jetstream.MemoryStorage, Discard: jetstream.DiscardNew}); err != nil {
		t.Fatal(err)
	}
	examine(t, c, "fast").want(t, diagnosis.Problem, "streams", "nats stream rm onewrite-fast")
}

func TestExamineVersion(t *testing.T) {
	for text, want := range map[string]diagnosis.Severity{"1.4.1": diagnosis.Problem, "2.9.25": diagnosis.Problem, "2.11.8": diagnosis.Problem, "2.12.0": diagnosis.OK, "2.15.2-beta.1": diagnosis.OK, "3.0.0": diagnosis.OK, "dev": diagnosis.OK} {
		if f := nats.VersionOf(text); f.Severity != want || f.Check != "version" {
			t.Errorf("%s: %+v", text, f)
		}
	}
}

// TestExamineConnection is about servers that do not let us in, or hear everything.
func TestExamineConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	both := func(name string, c nats.Config, s diagnosis.Severity, check, holds string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			examine(t, c, "shop").want(t, s, check, holds)
			examineSink(t, nats.SinkConfig{URL: c.URL, User: c.User, Password: c.Password, Creds: c.Creds, NKey: c.NKey, TLS: c.TLS, Core: true}).want(t, s, check, holds)
		})
	}
	addr := l.Addr().String()
	both("nobody there", nats.Config{URL: "nats://user:" + canary + "@" + addr}, diagnosis.Problem, "connection", "nc -vz "+strings.Replace(addr, ":", " ", 1))
	locked := natsServer(t, t.TempDir(), func(o *server.Options) { o.Username, o.Password = "onewrite", "right" })
	host := locked.Addr().String()
	both("a wrong password", nats.Config{URL: "nats://" + host, User: "onewrite", Password: canary}, diagnosis.Problem, "connection", "set creds, nkey, or user and password")
	both("no credentials", nats.Config{URL: "nats://" + host, Creds: filepath.Join(t.TempDir(), "creds")}, diagnosis.Problem, "connection", "set creds")
	both("no nkey", nats.Config{URL: "nats://" + host, NKey: filepath.Join(t.TempDir(), "nkey")}, diagnosis.Problem, "connection", "give creds, nkey")
	both("the right password", nats.Config{URL: "nats://onewrite:right@" + host}, diagnosis.OK, "connection", host)

	plain := natsServer(t, t.TempDir(), nil)
	both("no TLS there", nats.Config{URL: "tls://" + plain.Addr().String()}, diagnosis.Problem, "connection", "url: tls://")
	month, old := encrypted(t, 31*24*time.Hour), encrypted(t, 13*24*time.Hour+time.Hour)
	both("an unknown authority", nats.Config{URL: month.url}, diagnosis.Problem, "connection", "tls: {ca: ca.pem}")
	both("TLS", nats.Config{URL: month.url, TLS: month.trust}, diagnosis.OK, "tls", "certificate good until")
	both("soon an old certificate", nats.Config{URL: old.url, TLS: old.trust}, diagnosis.Warning, "tls", "ends in 13 days")
	both("any certificate", nats.Config{URL: month.url, TLS: &tls.Config{InsecureSkipVerify: true}}, diagnosis.Warning, "tls", "tls: {ca: ca.pem}")

	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			s := natsServer(t, t.TempDir(), func(o *server.Options) { o.Host = n.IP.String() })
			both("in clear text", nats.Config{URL: s.ClientURL()}, diagnosis.Warning, "tls", "url: tls://"+n.IP.String())
			return
		}
	}
	t.Log("this machine has no address but the loopback")
}

type secured struct {
	url   string
	trust *tls.Config
}

// encrypted starts a server whose certificate ends after a time.
func encrypted(t *testing.T, lasts time.Duration) secured {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lasts),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	s := natsServer(t, t.TempDir(), func(o *server.Options) {
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
		o.TLSTimeout = patience.Seconds()
	})
	return secured{"tls://" + s.Addr().String(), &tls.Config{RootCAs: pool}}
}

// TestExamineAccount is about what the account may store.
func TestExamineAccount(t *testing.T) {
	none := natsServer(t, t.TempDir(), func(o *server.Options) { o.JetStream = false })
	examine(t, nats.Config{URL: none.ClientURL()}).want(t, diagnosis.Problem, "jetstream", "jetstream {}")
	examineSink(t, nats.SinkConfig{URL: none.ClientURL()}).want(t, diagnosis.Problem, "jetstream", "jetstream {}")
	examineSink(t, nats.SinkConfig{URL: none.ClientURL(), Core: true}).want(t, diagnosis.OK, "streams", "what nobody listens to is lost")
	examineSink(t, nats.SinkConfig{URL: none.ClientURL(), Core: true, MaxEvent: 16 << 20}).want(t, diagnosis.Warning, "max_payload", "max_payload: ")
	if found := examineSink(t, nats.SinkConfig{URL: none.ClientURL(), Core: true, MaxEvent: 1 << 20}); len(found.bad()) > 0 {
		t.Errorf("%v where the largest event fits", found)
	}

	account := server.NewAccount("shop")
	users := natsServer(t, t.TempDir(), func(o *server.Options) {
		o.Accounts = []*server.Account{account}
		o.Users = []*server.User{{Username: "a", Password: "a", Account: account},
			{Username: "b", Password: "b", Account: account, Permissions: &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{"events.>"}}}},
			{Username: "c", Password: "c", Account: account, Permissions: &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{"$JS.API.INFO"}}}}}
	})
	host := users.Addr().String()
	c := nats.Config{URL: "nats://a:a@" + host}
	examine(t, c).want(t, diagnosis.Problem, "jetstream", "jetstream: enabled")
	real, err := users.LookupAccount("shop")
	if err != nil {
		t.Fatal(err)
	}
	if err := real.EnableJetStream(map[string]server.JetStreamAccountLimits{"": {MaxMemory: 1 << 20, MaxStore: 1 << 20, MaxStreams: -1, MaxConsumers: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1}}, nil); err != nil {
		t.Fatal(err)
	}
	examine(t, c).want(t, diagnosis.Warning, "jetstream", "max_size: 1048576")
	c.MaxBytes = 1 << 20
	examine(t, c).want(t, diagnosis.OK, "jetstream", "0 B stored")
	js, err := jetstream.New(connect(t, c.URL))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "X", Subjects: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "x", make([]byte, 1000<<10)); err != nil {
		t.Fatal(err)
	}
	examine(t, c).want(t, diagnosis.Warning, "jetstream", "nats stream report")

	// A server says nothing to who may not ask. A bus has to, a destination has not.
	for _, c := range []struct{ user, check, bus string }{
		{"b", "jetstream", "$JS.API.>"}, {"c", "streams", "nats stream info onewrite-state"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		login := "nats://" + c.user + ":" + c.user + "@" + host
		whole(t, nats.Examine(ctx, nats.Config{URL: login}, nil)).want(t, diagnosis.Problem, c.check, c.bus)
		ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		whole(t, nats.ExamineSink(ctx, nats.SinkConfig{URL: login}, nil)).want(t, diagnosis.OK, "streams", "the user may not ask for them, and need not")
	}
}

// TestExamineSinkPermission is about what the user may publish to.
func TestExamineSinkPermission(t *testing.T) {
	account := server.NewAccount("shop")
	user := func(name string, allow, deny []string) *server.User {
		return &server.User{Username: name, Password: name, Account: account, Permissions: &server.Permissions{Publish: &server.SubjectPermission{Allow: allow, Deny: deny}}}
	}
	s := natsServer(t, t.TempDir(), func(o *server.Options) {
		o.Accounts = []*server.Account{account}
		o.Users = []*server.User{
			user("no", []string{"stock.>", "$SYS.REQ.USER.INFO"}, nil), user("part", []string{"order.placed", "$SYS.REQ.USER.INFO"}, nil),
			user("denied", nil, []string{"order.>"}), user("hole", nil, []string{"order.paid"}), user("yes", []string{">"}, nil), user("mute", []string{"order.>"}, nil),
		}
	})
	for _, c := range []struct {
		user  string
		s     diagnosis.Severity
		holds string
	}{
		{"no", diagnosis.Problem, `allow: ["order.>"]`}, {"part", diagnosis.Warning, "only to part of order.>"},
		{"denied", diagnosis.Problem, "every event would be refused"}, {"hole", diagnosis.Warning, "order.paid"}, {"yes", diagnosis.OK, "may publish to order.>"},
	} {
		examineSink(t, nats.SinkConfig{URL: "nats://" + c.user + ":" + c.user + "@" + s.Addr().String(), Core: true}, "order.>").want(t, c.s, "permission", c.holds)
	}
	if found := examineSink(t, nats.SinkConfig{URL: "nats://mute:mute@" + s.Addr().String(), Core: true}, "order.>"); len(found.bad()) > 0 {
		t.Errorf("%v of a user who may publish, and not ask", found)
	}
}

// TestExamineSinkLeastRights: with what docs/destinations/nats.md gives the user all is well, and
// at once; who cannot hear the streams' answers has a problem.
func TestExamineSinkLeastRights(t *testing.T) {
	user := func(name string, hears ...string) *server.User {
		return &server.User{Username: name, Password: name, Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{"order.>"}}, Subscribe: &server.SubjectPermission{Allow: hears}}}
	}
	s := natsServer(t, t.TempDir(), func(o *server.Options) {
		o.Users = []*server.User{user("least", "_INBOX.>"), user("deaf", "elsewhere")}
	})
	as := func(name string) nats.SinkConfig {
		return nats.SinkConfig{URL: "nats://" + name + ":" + name + "@" + s.Addr().String()}
	}
	found := examineSink(t, as("least"), "order.>")
	if found.want(t, diagnosis.OK, "streams", "order.> shows with the first event"); len(found.bad()) > 0 {
		t.Errorf("%v of the rights that the page names", found.bad())
	}
	found = examineSink(t, as("deaf"), "order.>")
	if found.want(t, diagnosis.Problem, "permission", `subscribe {allow: ["_INBOX.>"]}`); len(found.bad()) != 1 {
		t.Errorf("%v", found.bad())
	}
	core := as("deaf")
	core.Core = true
	if found = examineSink(t, core, "order.>"); len(found.bad()) > 0 {
		t.Errorf("%v of a user who needs no answer", found.bad())
	}
}

// TestExamineCluster is about copies.
func TestExamineCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("three servers")
	}
	url, _ := clusterServers(t)
	c := nats.Config{URL: url}
	examine(t, c, "shop").want(t, diagnosis.OK, "replicas", "it shows when the streams are made")
	c.Replicas = 1
	examine(t, c, "shop").want(t, diagnosis.Warning, "replicas", "replicas: 3")
	b := open(t, c)
	appendAll(t, b, "", batch(1, 3))
	c.Replicas = 0
	examine(t, c, "shop").want(t, diagnosis.Warning, "replicas", "nats stream edit -f onewrite-state --replicas 3 && ")

	c.Name = "three"
	b = open(t, c)
	appendAll(t, b, "", batch(1, 3))
	until(t, "three copies are there", func() bool { return len(examine(t, c, "shop").bad()) == 0 })
	examine(t, c, "shop").want(t, diagnosis.OK, "replicas", "three copies or more")
	b.Close()
	// What a cluster tells when a server is away: how soon it does is its own affair.
	away := &jetstream.StreamInfo{
		Config:  jetstream.StreamConfig{Name: "three-shop", Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Replicas: 3, Discard: jetstream.DiscardNew},
		Cluster: &jetstream.ClusterInfo{Replicas: []*jetstream.PeerInfo{{Name: "n2", Current: true}, {Name: "n3", Offline: true}}},
	}
	findings(nats.ExamineStream(away)).want(t, diagnosis.Warning, "streams", "nats server list")
	away.Cluster.Replicas[1] = &jetstream.PeerInfo{Name: "n3", Current: true}
	if bad := nats.ExamineStream(away); len(bad) > 0 {
		t.Errorf("%v of a stream with all its copies", bad)
	}
}

func TestSubjectsWanted(t *testing.T) {
	for _, c := range []struct {
		template, topics, want string
		exact                  bool
	}{
		{"{topic}", "", ">", true},
		{"shop.{topic}", "", "shop.>", true},
		{"shop.{topic}", "order.> stock.*", "shop.order.> shop.stock.*", true},
		{"shop.{topic}.v1", "order.* paid", "shop.order.*.v1 shop.paid.v1", true},
		{"shop.{topic}.v1", "order.>", "shop.>", false},
		{"shop.x-{topic}", "order.placed", "shop.x-order.placed", true},
		{"shop.x-{topic}", "order.*", "shop.>", false},
		{"x-{topic}", "", ">", false},
		{"{topic}.{topic}", "a b.*", "a.a >", false},
		{"all", "order.>", "all", true},
	} {
		got, exact := nats.SubjectsWanted(c.template, strings.Fields(c.topics))
		if strings.Join(got, " ") != c.want || exact != c.exact {
			t.Errorf("%s of %s: %v, %v; want %s, %v", c.template, c.topics, got, exact, c.want, c.exact)
		}
	}
}

func TestExamineSink(t *testing.T) {
	x := newTarget(t)
	js, err := jetstream.New(connect(t, x.url))
	if err != nil {
		t.Fatal(err)
	}
	stream := func(c jetstream.StreamConfig) {
		t.Helper()
		if _, err := js.CreateOrUpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	c := nats.SinkConfig{URL: x.url, Subject: "shop.{topic}"}
	examineSink(t, c, "order.>").want(t, diagnosis.Problem, "streams", "nats stream add EVENTS --subjects 'shop.order.>' --defaults")
	stream(jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"shop.order.placed", "other"}})
	examineSink(t, c, "order.>").want(t, diagnosis.Warning, "streams", "nats stream edit -f EVENTS --subjects 'other' --subjects 'shop.order.>'")
	stream(jetstream.StreamConfig{Name: "PAID", Subjects: []string{"shop.order.paid"}})
	examineSink(t, c, "order.>").want(t, diagnosis.Warning, "streams", "nats stream ls --subject 'shop.order.>'")
	examineSink(t, nats.SinkConfig{URL: x.url, Subject: "shop.{topic}.v1"}, "order.>").want(t, diagnosis.OK, "streams", "cannot be told")
	if err := js.DeleteStream(t.Context(), "PAID"); err != nil {
		t.Fatal(err)
	}
	stream(jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"shop.>"}})
	found := examineSink(t, c, "order.>", "stock.*")
	found.want(t, diagnosis.OK, "streams", "EVENTS listens on shop.stock.*")
	found.want(t, diagnosis.OK, "duplicates", "EVENTS drops repeats within 2m0s")
	if len(found.bad()) > 0 {
		t.Error(found.bad())
	}
	// What was found listening is what takes the events.
	if n, err := newSink(t, c).Write(t.Context(), []onewrite.Event{{ID: "1", Source: "s", Topic: "order.placed"}, {ID: "2", Source: "s", Topic: "stock.low"}}); n != 2 || err != nil {
		t.Errorf("%d written, %v", n, err)
	}
	stream(jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"shop.>"}, Duplicates: time.Minute})
	examineSink(t, c).want(t, diagnosis.Warning, "duplicates", "nats stream edit -f EVENTS --dupe-window 2m")
	stream(jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"shop.>"}, NoAck: true})
	examineSink(t, c).want(t, diagnosis.Problem, "acknowledgement", "--ack")

	c.Reserved = "onewrite"
	for subject, ours := range map[string]bool{"onewrite.{topic}": true, "onewrite-state.{topic}": true, "onewriter.{topic}": false, "{topic}": false} {
		c.Subject = subject
		if found := examineSink(t, c); found.has(diagnosis.Problem, "subject", "events.{topic}") != ours {
			t.Errorf("%s: %v", subject, found)
		}
	}
}

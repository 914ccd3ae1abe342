package webhook

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
)

// nameServer answers each question for an address with what next says.
func nameServer(next func(name string) []string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close() //nolint:errcheck // a test
			for {
				var size [2]byte
				if _, err := io.ReadFull(server, size[:]); err != nil {
					return
				}
				q := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(server, q); err != nil {
					return
				}
				r := dnsReply(q, next)
				if _, err := server.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(r))), r...)); err != nil {
					return
				}
			}
		}()
		return client, nil
	}}
}

// dnsReply answers the one question of q.
func dnsReply(q []byte, next func(string) []string) []byte {
	var labels []string
	at := 12
	for q[at] != 0 {
		labels = append(labels, string(q[at+1:at+1+int(q[at])]))
		at += 1 + int(q[at])
	}
	kind := binary.BigEndian.Uint16(q[at+1:])
	question := q[12 : at+5]
	var answers []byte
	n := 0
	for _, text := range next(strings.Join(labels, ".") + map[uint16]string{1: "", 28: "/6"}[kind]) {
		ip := netip.MustParseAddr(text)
		if ip.Is4() != (kind == 1) || kind != 1 && kind != 28 {
			continue
		}
		n++
		answers = append(answers, 0xc0, 12, byte(kind>>8), byte(kind), 0, 1, 0, 0, 0, 0, 0, byte(ip.BitLen()/8))
		answers = append(answers, ip.AsSlice()...)
	}
	r := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, byte(n), 0, 0, 0, 0}, question...)
	return append(r, answers...)
}

// inside are hosts that must not be called without AllowPrivate. Those after =
// are names, and what a name server says of them.
var inside = strings.Fields(`
	127.0.0.1 127.1.2.3 127.255.255.254 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255
	169.254.0.1 169.254.169.254 169.254.170.2 169.254.170.23 100.64.0.1 100.100.100.200 100.127.255.255 168.63.129.16
	192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.9
	0.0.0.0 0.1.2.3 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
	[::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:10.0.0.1] [::ffff:169.254.169.254] [::127.0.0.1] [::10.1.2.3]
	[::ffff:0:127.0.0.1] [64:ff9b::127.0.0.1] [64:ff9b::a9fe:a9fe] [64:ff9b::10.0.0.1] [64:ff9b:1::1] [2002:7f00:1::] [2002:a9fe:a9fe::1]
	[2002:c0a8:1::] [2001::1] [2001:0:7f00:1::] [2001:db8::1] [2001:10::1] [3fff::1] [100::1] [fc00::1] [fd00::1] [fd00:ec2::254] [fd00:ec2::23]
	[fd20:ce::254] [fe80::1] [fe80::1%25lo] [fec0::1] [ff02::1] [ff05::2] [5f00::1] [4000::1]
	localhost localhost. LOCALHOST 127.1 127.0.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 127.0.0.1. 10.1 ①②⑦.0.0.1
	a.example=127.0.0.1 b.example=10.0.0.1 c.example=169.254.169.254 d.example=::1 e.example=fd00:ec2::254 f.example=64:ff9b::7f00:1
	g.example=0.0.0.0 h.example=::ffff:10.0.0.1 i.example=127.0.0.1,10.0.0.1,::1 j.example=100.64.1.1 k.example=fe80::1
`)

// Without AllowPrivate nothing inside is called, however it is written.
func TestInsideIsNotCalled(t *testing.T) {
	if len(inside) < 60 {
		t.Fatal("the list is short")
	}
	var calls atomic.Int64
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ConnState = func(net.Conn, http.ConnState) { calls.Add(1) }
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	answers := map[string]string{}
	resolver := nameServer(func(name string) []string {
		name, _, _ = strings.Cut(name, "/")
		if ips, ok := answers[name]; ok {
			return strings.Split(ips, ",")
		}
		return []string{"127.0.0.1", "::1"} // as the systems' resolvers take 127.1 and its like
	})
	for _, entry := range inside {
		host, ips, _ := strings.Cut(entry, "=")
		answers[host] = ips
		if ips == "" {
			delete(answers, host)
		}
	}
	for _, entry := range inside {
		host, _, _ := strings.Cut(entry, "=")
		s, err := New(Config{URL: "https://" + host + ":" + port + "/hook", Timeout: 5 * time.Second, resolver: resolver})
		if err == nil {
			_, err = s.Write(context.Background(), []onewrite.Event{order("1")})
			_ = s.Close()
		}
		var blocked *blockedError
		var dns *net.DNSError
		switch {
		case errors.Is(err, onewrite.ErrRejected), err == nil:
			t.Errorf("%s: %v", entry, err)
			continue
		case errors.As(err, &dns) && strings.Trim(host, "0123456789.") == "":
			continue // this resolver takes no numbers for a name
		case !errors.As(err, &blocked):
			t.Errorf("%s: %v", entry, err)
			continue
		}
		if cure := map[reach]string{never: "set url", private: "allow_private: true"}[blocked.reach]; !strings.Contains(err.Error(), cure) {
			t.Errorf("%s: %v, want the cure %q", entry, err, cure)
		}
	}
	if n := calls.Load(); n != 0 {
		t.Errorf("the server inside was called %d times", n)
	}
}

func TestReach(t *testing.T) {
	for text, want := range map[string]reach{
		"1.1.1.1": public, "8.8.8.8": public, "93.184.216.34": public, "172.15.255.255": public, "172.32.0.0": public,
		"100.63.255.255": public, "100.128.0.0": public, "11.0.0.0": public, "9.255.255.255": public, "126.255.255.255": public,
		"128.0.0.0": public, "169.253.255.255": public, "169.255.0.0": public, "192.167.255.255": public, "198.17.255.255": public,
		"223.255.255.255": public, "192.0.1.0": public,
		"2606:4700:4700::1111": public, "2a00:1450:4001::1": public, "2001:4860:4860::8888": public, "2001:200::1": public,
		"::ffff:1.1.1.1": public, "64:ff9b::1.1.1.1": public, "2002:101:101::1": public, "2003::1": public,
		"127.0.0.1": private, "192.168.1.1": private, "fd12:3456::1": private, "::ffff:192.168.1.1": private, "fe80::1%eth0": private,
		"169.254.169.254": never, "::ffff:169.254.169.254": never, "64:ff9b::a9fe:a9fe": never, "2002:a9fe:a9fe::": never,
		"fd00:ec2::254": never, "0.0.0.0": never, "::": never, "224.0.0.1": never, "ff02::1": never, "255.255.255.255": never,
	} {
		if got := reachOf(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
	if reachOf(netip.Addr{}) != never {
		t.Error("no address at all may be called")
	}
}

// A name that points to the receiver when it is first asked for, and elsewhere
// later, does not get a connection there: every connection looks again, once.
func TestRebinding(t *testing.T) {
	r := newReceiver(t)
	_, port, _ := net.SplitHostPort(r.Listener.Addr().String())
	var asked atomic.Int64
	resolver := nameServer(func(name string) []string {
		if strings.HasSuffix(name, "/6") {
			return nil
		}
		if asked.Add(1) == 1 {
			return []string{"127.0.0.1"}
		}
		return []string{"169.254.169.254"}
	})
	s := open(t, Config{URL: "http://hook.example:" + port, AllowPrivate: true, Timeout: 5 * time.Second, resolver: resolver})
	write(t, s, order("1"), order("2"))
	if n := asked.Load(); n != 1 {
		t.Errorf("%d questions for one connection", n)
	}
	r.CloseClientConnections()
	_, err := s.Write(context.Background(), []onewrite.Event{order("3")})
	var blocked *blockedError
	if !errors.As(err, &blocked) || blocked.ip.String() != "169.254.169.254" {
		t.Errorf("after rebinding: %v", err)
	}
	if got := r.last().Host; got != "hook.example:"+port {
		t.Errorf("the request was for %q", got)
	}
}

// With AllowPrivate loopback is called, and the clouds' credentials are not.
func TestAllowPrivate(t *testing.T) {
	r := newReceiver(t)
	write(t, open(t, Config{URL: r.URL, AllowPrivate: true}), order("1"))
	for _, host := range []string{"169.254.169.254", "[fd00:ec2::254]", "[::ffff:a9fe:a9fe]", "0.0.0.0", "[::]", "224.0.0.1"} {
		if _, err := New(Config{URL: "http://" + host, AllowPrivate: true}); err == nil {
			t.Errorf("%s is called", host)
		}
	}
}

// A proxy of the environment is not used: it would look up the name itself.
func TestNoProxy(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the proxy was called") }))
	defer proxy.Close()
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		t.Setenv(name, proxy.URL)
	}
	r := newReceiver(t)
	_, port, _ := net.SplitHostPort(r.Listener.Addr().String())
	s := open(t, Config{URL: "http://hook.example:" + port, AllowPrivate: true,
		resolver: nameServer(func(string) []string { return []string{"127.0.0.1"} })})
	write(t, s, order("1"))
	if s.transport.Proxy != nil { // Go reads the environment once; an earlier test may have been first
		t.Error("there is a proxy")
	}
}

package relay

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/diagnosis"
)

// examineListen looks at who answers where the API is to be. Nothing is bound: a
// relay that starts at this moment needs the address.
func examineListen(ctx context.Context, cfg *Config, file string) []Finding {
	if cfg.Listen == "" || cfg.Listen == "off" {
		return []Finding{{Check: "address", Text: "off: no status, metrics or API"}}
	}
	conn, f := answers(ctx, cfg.Listen)
	if conn == nil {
		return []Finding{f}
	}
	_ = conn.Close()
	base := "http://" + conn.RemoteAddr().String()
	code, s, asks := ask(ctx, base, cfg)
	switch {
	case asks && code == http.StatusUnauthorized:
		which := "another token than the file's"
		if cfg.Token.Empty() {
			which = "a token, and the file has none"
		}
		return []Finding{{Severity: diagnosis.Warning, Check: "token", Text: "onewrite runs here with " + which + ": the commands that talk to it are refused", Cure: "restart onewrite, or write its token into the file"}}
	case code != http.StatusOK || s.PID == 0 || s.Started.IsZero():
		return []Finding{taken("address", cfg.Listen, "listen")}
	case !sameFile(file, s.Config):
		return []Finding{{Severity: diagnosis.Problem, Check: "address", Text: fmt.Sprintf("another onewrite has %s: process %d, with %s", cfg.Listen, s.PID, s.Config), Cure: "listen: 127.0.0.1:" + next(cfg.Listen)}}
	}
	return []Finding{{Check: "address", Text: fmt.Sprintf("onewrite %s runs here: process %d, up %v", cmp.Or(s.Version, "(embedded)"), s.PID, max(time.Since(s.Started), 0).Round(time.Second))}}
}

// instance is the status of the relay that runs with this configuration; nil: none is seen.
func instance(ctx context.Context, cfg *Config, file string) *dashboard.Status {
	if cfg.Listen == "" || cfg.Listen == "off" {
		return nil
	}
	conn, _ := answers(ctx, cfg.Listen)
	if conn == nil {
		return nil
	}
	_ = conn.Close()
	code, s, _ := ask(ctx, "http://"+conn.RemoteAddr().String(), cfg)
	if code != http.StatusOK || s.PID == 0 || !sameFile(file, s.Config) {
		return nil
	}
	return &s
}

// examineBusListen looks at who answers where the embedded bus is to be open.
func examineBusListen(ctx context.Context, b config.Bus) Finding {
	conn, f := answers(ctx, b.Listen)
	f.Check = "listen"
	if conn == nil {
		return f
	}
	defer conn.Close() //nolint:errcheck // it was only read
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	line, _ := bufio.NewReader(io.LimitReader(conn, 64<<10)).ReadString('\n')
	var info struct {
		Name string `json:"server_name"`
	}
	text, greets := strings.CutPrefix(line, "INFO ")
	if !greets || json.Unmarshal([]byte(text), &info) != nil || info.Name != b.Name {
		return taken("listen", b.Listen, "bus.listen")
	}
	return Finding{Check: "listen", Text: "the bus " + b.Name + " is open at " + b.Listen}
}

// answers connects to an address of this machine; without a connection the finding
// says that it is free, or why it never will be.
func answers(ctx context.Context, address string) (net.Conn, Finding) {
	host, port, err := net.SplitHostPort(address)
	if port == "0" {
		return nil, Finding{Check: "address", Text: "a free port at each start"}
	}
	var ips []net.IPAddr
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		ips = []net.IPAddr{{IP: net.IPv4(127, 0, 0, 1)}}
	} else if err == nil {
		ips, err = net.DefaultResolver.LookupIPAddr(ctx, host)
	}
	if err != nil || len(ips) == 0 || !ours(ips[0].IP) {
		return nil, Finding{Severity: diagnosis.Problem, Check: "address", Text: address + " is no address of this machine", Cure: "listen: 127.0.0.1:" + cmp.Or(port, "8484")}
	}
	d := net.Dialer{Timeout: 3 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(ips[0].String(), port))
	if err != nil {
		return nil, Finding{Check: "address", Text: address + " is free"}
	}
	return conn, Finding{}
}

// ours reports whether this machine has an address.
func ours(ip net.IP) bool {
	if ip.IsLoopback() {
		return true
	}
	all, err := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
			return true
		}
	}
	return err != nil // it cannot be told
}

func taken(check, address, key string) Finding {
	_, port, _ := net.SplitHostPort(address)
	return Finding{Severity: diagnosis.Problem, Check: check, Text: fmt.Sprintf("another program has %s: end it, or set %s to another address", address, key), Cure: "ss -ltnp 'sport = :" + port + "'"}
}

// next is the port after that of an address.
func next(address string) string {
	_, port, _ := net.SplitHostPort(address)
	var n int
	if _, err := fmt.Sscan(port, &n); err != nil || n >= 65535 {
		return "8485"
	}
	return fmt.Sprint(n + 1)
}

// status asks an instance for its status, and returns what it said if it gave none.
func status(ctx context.Context, base, token string) (code int, s dashboard.Status, said string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/api/status", nil)
	if err != nil {
		return 0, s, err.Error()
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	t := &http.Transport{DisableKeepAlives: true} // no proxy: it is this machine
	resp, err := t.RoundTrip(req)
	if err != nil {
		return 0, s, err.Error()
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil || json.Unmarshal(body, &s) != nil {
		return resp.StatusCode, dashboard.Status{}, string(body)
	}
	return resp.StatusCode, s, string(body)
}

// ask asks for the status. The token is for one that asks for it, as onewrite does: no
// stranger gets it.
func ask(ctx context.Context, base string, cfg *Config) (code int, s dashboard.Status, asks bool) {
	code, s, said := status(ctx, base, "")
	asks = code == http.StatusUnauthorized && strings.Contains(said, "the configured token is needed")
	if asks && !cfg.Token.Empty() {
		code, s, _ = status(ctx, base, cfg.Token.Reveal())
	}
	return code, s, asks
}

// sameFile reports whether two paths lead to one file; an empty one leads anywhere.
func sameFile(a, b string) bool {
	if a == "" || b == "" || absolute(a) == b {
		return true
	}
	one, err1 := os.Stat(a)
	two, err2 := os.Stat(b)
	return errors.Join(err1, err2) == nil && os.SameFile(one, two)
}

package webhook

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// reach says who may be called at an address.
type reach int

const (
	public  reach = iota // everybody
	private              // with AllowPrivate
	never                // nobody: clouds keep credentials there, or it is no single host
)

func prefixes(texts ...string) []netip.Prefix {
	ps := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		ps[i] = netip.MustParsePrefix(text)
	}
	return ps
}

var (
	// neverCalled are the metadata services of clouds, and what is no host.
	neverCalled = prefixes(
		"169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32", // AWS and most others; ECS; EKS
		"100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", // Alibaba; Azure; Oracle
		"fd00:ec2::254/128", "fd00:ec2::23/128", "fd20:ce::254/128", // AWS, EKS, Google
		"0.0.0.0/8", "::/128", "224.0.0.0/4", "255.255.255.255/32", "ff00::/8")
	// privateV4 is what the IANA registry does not call globally reachable.
	privateV4 = prefixes(
		"10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4")
	// publicV6 is all that is in use; within it privateV6 is not.
	publicV6  = netip.MustParsePrefix("2000::/3")
	privateV6 = prefixes("2001::/23", "2001:db8::/32", "3fff::/20")
	// These carry an IPv4 address, from the byte given, that decides.
	embedding = []struct {
		prefix netip.Prefix
		at     int
	}{
		{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64
		{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // SIIT
		{netip.MustParsePrefix("::/96"), 12},           // IPv4-compatible
		{netip.MustParsePrefix("2002::/16"), 2},        // 6to4
	}
)

func within(ps []netip.Prefix, ip netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// reachOf says who may be called at ip.
func reachOf(ip netip.Addr) reach {
	ip = ip.Unmap().WithZone("")
	if !ip.IsValid() || within(neverCalled, ip) {
		return never
	}
	if ip.Is4() {
		if within(privateV4, ip) {
			return private
		}
		return public
	}
	if ip.IsLoopback() {
		return private
	}
	for _, e := range embedding {
		if e.prefix.Contains(ip) {
			b := ip.As16()
			return reachOf(netip.AddrFrom4([4]byte(b[e.at : e.at+4])))
		}
	}
	if !publicV6.Contains(ip) || within(privateV6, ip) {
		return private
	}
	return public
}

// blockedError is the refusal to call an address.
type blockedError struct {
	ip    netip.Addr
	reach reach
}

func (e *blockedError) Error() string { return "the address " + e.ip.String() + " " + e.reach.reason() }

// reason says why an address is not called, and what to do.
func (r reach) reason() string {
	if r == never {
		return "is never called; set url to the receiver"
	}
	return "is not public; set allow_private: true if the receiver is on your own network"
}

// check returns an error if ip may not be called.
func check(ip netip.Addr, allowPrivate bool) error {
	if r := reachOf(ip); r == never || r == private && !allowPrivate {
		return &blockedError{ip, r}
	}
	return nil
}

// CheckHost returns an error if the host of a URL is an address that a [Sink] with this
// setting never calls; the error does not show it. What a name stands for shows when it
// is called.
func CheckHost(host string, allowPrivate bool) error {
	ip, err := netip.ParseAddr(host)
	var blocked *blockedError
	if err == nil && errors.As(check(ip, allowPrivate), &blocked) {
		return errors.New("its address " + blocked.reach.reason())
	}
	return nil
}

// control is asked before each connection with the very address that will be
// connected to: there is no time between the look and the call.
func control(allowPrivate bool) func(network, address string, c syscall.RawConn) error {
	return func(network, address string, _ syscall.RawConn) error {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return err
		}
		return check(ip, allowPrivate)
	}
}

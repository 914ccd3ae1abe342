package nats

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/onewrite/onewrite/internal/places"
)

// Config says which bus to open.
type Config struct {
	// Dir is the folder of the embedded store; it is created with mode 0700.
	// Required when URL is empty, unused otherwise.
	Dir string
	// URL is the address of an external cluster, nats://... or tls://..., several
	// with commas.
	URL string
	// Name is the first part of the names of streams and subjects; letters,
	// digits, _ and -; default "onewrite".
	Name string
	// Creds and NKey are paths of a credentials file and of a file with an NKey
	// seed, for an external cluster.
	Creds, NKey string
	// User and Password are for an external cluster, or what clients of Listen
	// have to show.
	User, Password string
	// TLS is the client's configuration for an external cluster; nil lets the
	// URL decide.
	TLS *tls.Config
	// Listen opens the embedded bus to NATS clients at host:port. They may read
	// and make consumers; they cannot write events. Needs User and Password.
	Listen string
	// Replicas is the number of copies of every stream on an external cluster;
	// 0 means 3 where the cluster has at least 3 servers, else 1.
	Replicas int
	// MaxBytes is the room for events, all logs together; when it is used up,
	// Append returns ErrFull. Default 10 GiB.
	MaxBytes int64
	// MaxEvent is the largest event in bytes; default 1 MiB.
	MaxEvent int
	// Vanished is told of events that left the bus from outside before a
	// destination had got them: offsets from to to of a source's log. It may be
	// nil, and is called by any goroutine.
	Vanished func(destination, source string, from, to uint64)
	// Damaged is told what the embedded bus found wrong with its folder at Open
	// and what it did about it. It may be nil.
	Damaged func(what string)
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger

	lease  time.Duration // of an external bus; tests shorten it
	recent int           // bytes of recent events in memory; tests turn it off
}

const (
	defaultName     = "onewrite"
	defaultMaxBytes = 10 << 30
	defaultMaxEvent = 1 << 20
	defaultLease    = 6 * time.Second

	// answerTimeout bounds an append to an external bus. Who is cut off from it has
	// to let go of the source soon, so that another copy can go on: well within the
	// ten seconds that a takeover may last.
	answerTimeout = 4 * time.Second
	// callTimeout bounds a call whose ctx has no end of its own.
	callTimeout = 10 * time.Second
)

// complete fills in the defaults and refuses what cannot work.
func (c *Config) complete() error {
	if c.Name == "" {
		c.Name = defaultName
	}
	if c.MaxBytes <= 0 {
		c.MaxBytes = defaultMaxBytes
	}
	if c.MaxEvent <= 0 {
		c.MaxEvent = defaultMaxEvent
	}
	if c.lease <= 0 {
		c.lease = defaultLease
	}
	if c.recent == 0 {
		c.recent = recentBytes
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if !validName(c.Name) {
		return fmt.Errorf("nats: bus name %q: use letters, digits, _ and - only", c.Name)
	}
	if c.URL != "" {
		if c.Listen != "" {
			return errors.New("nats: bus.listen opens the embedded bus; remove it, or remove bus.url")
		}
		return nil
	}
	if c.Dir == "" {
		return errors.New("nats: the bus needs a folder or the address of a cluster; set bus.dir or bus.url")
	}
	if c.Listen == "" {
		return nil
	}
	if c.User == "" || c.Password == "" {
		return errors.New("nats: bus.listen opens the events to everyone who can reach the port; set bus.user and bus.password")
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("nats: bus.listen: %w; write it as host:port", err)
	}
	return nil
}

// say tells of damage.
func (c *Config) say(what string) {
	c.Logger.Error(what)
	if c.Damaged != nil {
		c.Damaged(what)
	}
}

// validName reports whether s can be part of stream names and subjects.
func validName(s string) bool { return places.ValidName(s, 128) }

// SameServer reports whether two addresses, each maybe a list with commas, have
// a host and port in common.
func SameServer(a, b string) bool {
	seen := map[string]bool{}
	for _, h := range hosts(a) {
		seen[h] = true
	}
	return slices.ContainsFunc(hosts(b), func(h string) bool { return seen[h] })
}

// hosts returns the host:port pairs of a list of addresses.
func hosts(list string) (out []string) {
	for _, text := range strings.Split(list, ",") {
		if !strings.Contains(text, "://") {
			text = "nats://" + text
		}
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil || u.Hostname() == "" {
			continue
		}
		port := u.Port()
		if port == "" {
			port = "4222"
		}
		host := strings.ToLower(u.Hostname())
		if host == "localhost" {
			host = "127.0.0.1"
		}
		out = append(out, net.JoinHostPort(host, port))
	}
	return out
}

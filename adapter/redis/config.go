package redis

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/onewrite/onewrite/internal/rediscmd"
)

// Config says where and what a [Sink] or a [Cache] writes.
type Config struct {
	// URL is redis://user:password@host:6379/0, or rediss://... for TLS; several
	// with commas are nodes of one cluster.
	URL string
	// User and Password log in, where URL does not say it.
	User, Password string
	// TLS is the client's configuration; nil takes the system's authorities. It is
	// used with rediss only.
	TLS *tls.Config
	// Destination is the destination's name; the key of its place has it.
	Destination string
	// Stream is the template of a stream's key: {topic} {source} {key} {type}.
	// Default "{topic}", unless there are Commands.
	Stream string
	// MaxLen bounds each stream to about this many entries, read or not: the oldest
	// are dropped. 0 drops nothing.
	MaxLen int64
	// Commands keep a cache, in place of a stream; see package rediscmd.
	Commands []string
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
}

const (
	defaultStream = "{topic}"
	clientName    = "onewrite"
	// longestWait is for an answer, where the caller sets no end.
	longestWait = 30 * time.Second
	dialWait    = 10 * time.Second
)

// settings are a configuration that was read.
type settings struct {
	addrs    []string // host:port
	tls      *tls.Config
	user     string
	password string
	db       int
	name     string
	stream   rediscmd.Template
	maxLen   int64
	commands []rediscmd.Command
	log      *slog.Logger
}

// read checks a configuration.
func read(c Config) (*settings, error) {
	s := &settings{user: c.User, password: c.Password, name: c.Destination, maxLen: c.MaxLen, log: c.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.address(c); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	if c.MaxLen < 0 {
		return nil, errors.New("redis: max_len is below 0; set it to 0 for no bound")
	}
	if len(c.Commands) > 0 {
		if c.Stream != "" || c.MaxLen > 0 {
			return nil, errors.New("redis: commands keep a cache, stream and max_len are of streams; set one of the two")
		}
		for _, text := range c.Commands {
			cmd, err := rediscmd.ParseCommand(text)
			if err != nil {
				return nil, fmt.Errorf("redis: command %q: %w; write for instance \"DEL order:{key}\"", text, err)
			}
			s.commands = append(s.commands, cmd)
		}
		return s, nil
	}
	if c.Stream == "" {
		c.Stream = defaultStream
	}
	var err error
	if s.stream, err = rediscmd.ParseKey(c.Stream); err != nil {
		return nil, fmt.Errorf("redis: stream %q: %w; write for instance \"events:{topic}\"", c.Stream, err)
	}
	return s, nil
}

var errURL = errors.New("the url is not redis://user:password@host:6379/0, or rediss://...; several nodes of a cluster stand with commas; correct url")

// address reads URL. Nothing of it is shown: it may hold a password anywhere.
func (s *settings) address(c Config) error {
	secure, first := false, true
	for _, part := range strings.Split(c.URL, ",") {
		part = strings.TrimSpace(part)
		if scheme, _, ok := strings.Cut(c.URL, "://"); ok && !strings.Contains(part, "://") {
			part = scheme + "://" + part
		}
		u, err := url.Parse(part)
		if err != nil || u.Hostname() == "" || (u.Scheme != "redis" && u.Scheme != "rediss") || u.RawQuery != "" || u.Fragment != "" {
			return errURL
		}
		if !first && secure != (u.Scheme == "rediss") {
			return errors.New("the url mixes redis and rediss; write one of the two everywhere")
		}
		secure, first = u.Scheme == "rediss", false
		port := u.Port()
		if port == "" {
			port = "6379"
		}
		s.addrs = append(s.addrs, net.JoinHostPort(u.Hostname(), port))
		if u.User != nil {
			s.user = u.User.Username()
			if word, ok := u.User.Password(); ok {
				s.password = word
			}
		}
		if path := strings.Trim(u.Path, "/"); path != "" {
			if s.db, err = strconv.Atoi(path); err != nil || s.db < 0 {
				return errors.New("the path of the url is not the number of a database; write redis://host:6379/0")
			}
		}
	}
	if !secure {
		return nil
	}
	if s.tls = c.TLS; s.tls == nil {
		s.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return nil
}

// placeKey is where a destination's place is. Its name is the hash tag: in a cluster
// the streams have to be in the same slot.
func (s *settings) placeKey() string { return "onewrite:{" + s.name + "}:place" }

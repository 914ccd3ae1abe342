package search

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"
)

// Values of [Config.Document].
const (
	// Data makes a document of what the event is about: the row, or the payload.
	Data = "data"
	// Event makes a document of the whole event.
	Event = "event"
)

const (
	defaultTimeout = 15 * time.Second
	// maxRequest bounds the bytes of one request; a single larger document goes
	// alone. Makers advise a few megabytes.
	maxRequest = 8 << 20
	// stateIndex holds what [Sink] remembers of its sources.
	stateIndex = "onewrite-state"
)

// Config says where a [Sink] writes, and what.
type Config struct {
	// URL is the address, https://user:password@host:9200, several with commas: the
	// first that answers is taken.
	URL string
	// User and Password log in, where URL does not say it.
	User, Password string
	// APIKey logs in instead: as the server gave it, encoded, or as id:key.
	APIKey string
	// TLS is the client's configuration; nil is the system's.
	TLS *tls.Config
	// Timeout bounds a request; default 15 s.
	Timeout time.Duration
	// Index is the template of the index's name; {topic}, {source} and {type} stand
	// for the event's. Default "{topic}".
	Index string
	// ID is the template of the document's id; {key}, {id}, {topic}, {source} and
	// {type} stand for the event's. Default "{key}".
	ID string
	// Document is [Data], the default, or [Event].
	Document string
	// Destination is the name that what is remembered of the sources is kept under.
	Destination string
	// Sources is how many sources deliver here; 0 is one. With several, a TRUNCATE
	// is refused where the index holds documents of all of them.
	Sources int
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger

	now   func() time.Time // for tests
	meili bool             // it is for a Meilisearch
}

// address is one server, without what logs in.
type address struct {
	url  *url.URL
	auth string // the Authorization header
}

// prepare fills defaults in and checks what New cannot do without.
func (c *Config) prepare() ([]address, error) {
	if c.Index == "" {
		c.Index = "{topic}"
	}
	if c.ID == "" {
		c.ID = "{key}"
	}
	if c.Document == "" {
		c.Document = Data
	}
	if c.Destination == "" {
		c.Destination = "onewrite"
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.Document != Data && c.Document != Event {
		return nil, fmt.Errorf("search: document is %q; write data or event", c.Document)
	}
	return c.addresses()
}

func (c *Config) addresses() (list []address, err error) {
	for part := range strings.SplitSeq(c.URL, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		u, err := url.Parse(part)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" { // the error would show the password
			return nil, errors.New("search: an address in url is no http or https URL; write https://host:9200, several with commas")
		}
		a := address{auth: c.authorization(u.User)}
		if u.Port() == "" {
			u.Host += map[bool]string{false: ":9200", true: ":7700"}[c.meili]
		}
		a.url = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(u.Path, "/")}
		list = append(list, a)
	}
	if len(list) == 0 {
		return nil, errors.New("search: the destination has no address; write url: https://host:9200")
	}
	return list, nil
}

func (c *Config) authorization(in *url.Userinfo) string {
	if c.APIKey != "" && c.meili {
		return "Bearer " + c.APIKey
	}
	if c.APIKey != "" {
		key := c.APIKey
		if strings.Contains(key, ":") {
			key = base64.StdEncoding.EncodeToString([]byte(key))
		}
		return "ApiKey " + key
	}
	user, password := c.User, c.Password
	if user == "" && in != nil {
		user = in.Username()
		password, _ = in.Password()
	}
	if user == "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

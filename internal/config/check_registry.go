package config

import (
	"net/url"
	"slices"
	"strings"
)

// Schemas reports whether payloads are written by schemas of a registry.
func (d Destination) Schemas() bool { return d.Type == Kafka && d.Format != "" && d.Format != "json" }

// registry checks the format of a Kafka destination, and what it needs.
func (c *checker) registry(path string, d Destination) {
	at := path + ".format"
	switch {
	case c.broken(at) || c.broken(path+".registry"):
		return
	case d.Schemas() && !slices.Contains(root.at("destinations").find("format").of(Kafka).enum, d.Format):
		return // that is a problem already
	case d.Schemas() && d.Registry == nil:
		c.bad(at, d.Format+" needs a schema registry", "write registry: {url: https://registry:8081}")
		return
	case d.Registry == nil:
		return
	case !d.Schemas():
		c.bad(path+".registry", "does nothing with format: json", "write format: avro, or remove it")
		return
	}
	r, at := *d.Registry, path+".registry"
	c.registryURL(at, r)
	if r.TLS != nil {
		c.tls(at+".tls", r.TLS)
	}
	switch {
	case r.User == "" && !r.Password.Empty() && !c.broken(at+".user"):
		c.bad(at+".password", "has no user", "write user: NAME")
	case r.User != "" && r.Password.Empty() && !c.broken(at+".password"):
		c.bad(at+".user", "has no password", "write password: ${env:REGISTRY_PASSWORD}")
	}
}

func (c *checker) registryURL(path string, r Registry) {
	at := path + ".url"
	if r.URL == "" || c.broken(at) {
		return
	}
	for _, part := range strings.Split(r.URL, ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() != "" && !goodPort(u.Port(), 1) || u.RawQuery != "" || u.Fragment != "":
			c.bad(at, "is not the address of a schema registry", "write url: https://registry:8081; several with commas")
			return
		case u.User != nil:
			c.bad(at, "has a user in it", "write user: and password: beside url")
			return
		case u.Scheme == "http" && r.TLS != nil:
			c.bad(path+".tls", "does not go with an http URL", "write https in url, or remove tls")
			return
		case u.Scheme == "http" && !loopback(u.Hostname()):
			c.warn(at, "the connection to another machine is in clear text", "write https://registry:8081")
		}
	}
}

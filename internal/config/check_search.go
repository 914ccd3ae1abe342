package config

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// search checks a destination of type elasticsearch, opensearch or meilisearch.
func (c *checker) search(path string, d Destination) {
	inURL := c.searchURL(path, d)
	if d.Type == Meilisearch && inURL && !c.broken(path+".url") {
		c.bad(path+".url", "has a user, and a Meilisearch knows keys only", "write api_key: ${env:MEILI_KEY}, and take the user out")
	}
	ways := 0
	for _, set := range []bool{inURL, d.User != "", !d.APIKey.Empty()} {
		if set {
			ways++
		}
	}
	if ways > 1 {
		c.bad(path, "says in several ways who connects", "keep one of api_key, user with password, and a user in url")
	}
	switch {
	case d.User != "" && d.Password.Empty() && !c.broken(path+".password"):
		c.bad(path+".user", "has no password", "write password: ${env:SEARCH_PASSWORD}")
	case d.User == "" && !d.Password.Empty() && !c.broken(path+".user"):
		c.bad(path+".password", "has no user", "write user: NAME")
	}
	c.placeholders(path+".index", d.Index, "topic", "source", "type")
	c.placeholders(path+".id", d.ID, "key", "id", "topic", "source", "type")
	if strings.ContainsAny(d.Index, ` ,*?"<>|\/#:`) && !c.broken(path+".index") {
		c.bad(path+".index", c.show(path+".index", d.Index)+" has characters that no index may have", "write lower-case letters, digits, -, _ and the placeholders: shop-{topic}")
	}
	if d.Document == "data" && strings.Contains(d.Index+d.ID, "{type}") {
		c.warn(path+".index", "has {type}, or id has it: updates and deletes of rows would not find the document of their insert, and are refused", "take {type} out, or write document: event")
	}
}

// searchURL reports whether an address has a user.
func (c *checker) searchURL(path string, d Destination) (user bool) {
	at := path + ".url"
	if d.URL.Empty() || c.broken(at) {
		return false
	}
	for _, part := range strings.Split(d.URL.Reveal(), ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || (u.Port() != "" && !goodPort(u.Port(), 1)) || u.RawQuery != "" || u.Fragment != "" {
			c.bad(at, "is not the address of a search server", "write url: https://host:9200; several with commas")
			return false
		}
		user = user || u.User != nil
		if u.Scheme == "http" && d.TLS != nil {
			c.bad(path+".tls", "does not go with an http URL", "write https in url, or remove tls")
		}
		if u.Scheme == "http" && !loopback(u.Hostname()) {
			c.warn(at, "the connection to another machine is in clear text", "write https://host:9200")
		}
	}
	return user
}

var templatePlace = regexp.MustCompile(`\{([^{}]*)\}|[{}]`)

// placeholders checks the placeholders of a template.
func (c *checker) placeholders(at, template string, known ...string) {
	if c.broken(at) {
		return
	}
	for _, m := range templatePlace.FindAllStringSubmatch(template, -1) {
		if !slices.Contains(known, m[1]) {
			c.bad(at, c.show(at, m[0])+" stands for nothing", "write {"+strings.Join(known, "}, {")+"}")
			return
		}
	}
}

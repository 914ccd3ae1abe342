package config

import (
	"net/url"
	"regexp"
	"strings"
)

// shortString is the longest name or routing key of AMQP, in bytes.
const shortString = 255

func (c *checker) rabbitDestination(path string, d Destination) {
	c.rabbitURL(path, d)
	if at := path + ".exchange"; len(d.Exchange) > shortString {
		c.bad(at, "is longer than the 255 bytes of AMQP", "write a shorter name")
	}
	c.routingKey(path+".routing_key", d.RoutingKey)
	if d.Optional {
		c.warn(path+".mandatory", "an event that no queue takes is lost, and counted as delivered", "write mandatory: true")
	}
	if d.Declare == nil || c.broken(path+".declare") {
		return
	}
	at := path + ".declare"
	switch {
	case d.Declare.Exchange != "" && d.Exchange == "" && !c.broken(path+".exchange"):
		c.bad(at+".exchange", "is the type of an exchange that has no name", "write exchange: NAME beside declare, or take it out to publish to queues by their names")
	case d.Declare.Exchange != "" && strings.HasPrefix(d.Exchange, "amq."):
		c.bad(at+".exchange", "cannot be declared: names that begin with amq. are the broker's own", "take it out: such an exchange is there, or write another name")
	}
	for _, name := range sorted(d.Declare.Queues) {
		c.rabbitQueue(at+".queues."+name, name, d)
	}
}

func (c *checker) rabbitQueue(at, name string, d Destination) {
	if name == "" || len(name) > shortString || strings.HasPrefix(name, "amq.") {
		c.bad(at, "is not the name of a queue", "use 1 to 255 bytes that do not begin with amq.")
	}
	q := d.Declare.Queues[name]
	if len(q.Bind) > 0 && d.Exchange == "" {
		c.bad(at+".bind", "does not go with the default exchange, where each queue gets what has its name as routing key", "write exchange: NAME, or take bind out")
	}
	if q.SingleActive && q.Type == "stream" {
		c.bad(at+".single_active_consumer", "does not go with a stream, whose readers each have a place of their own", "take it out, or write type: quorum")
	}
	for _, key := range q.Bind {
		if len(key) > shortString {
			c.bad(at+".bind", "has a key that is longer than the 255 bytes of AMQP", "write a shorter one")
		}
	}
}

// rabbitURL checks the addresses of brokers. Nothing of them is shown.
func (c *checker) rabbitURL(path string, d Destination) {
	at := path + ".url"
	if d.URL.Empty() || c.broken(at) {
		return
	}
	const form = "write url: amqp://user:password@host:5672/vhost, or amqps://...; several with commas, and what is special in a password percent-encoded"
	clear := false
	for _, part := range strings.Split(d.URL.Reveal(), ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil || (u.Scheme != "amqp" && u.Scheme != "amqps") || u.Hostname() == "" || (u.Port() != "" && !goodPort(u.Port(), 1)) ||
			strings.Contains(strings.TrimPrefix(u.EscapedPath(), "/"), "/") {
			c.bad(at, "is not the address of a RabbitMQ broker", form)
			return
		}
		for key, values := range u.Query() {
			if key == "auth_mechanism" && len(values) == 1 && (values[0] == "external" || values[0] == "plain") {
				continue
			}
			c.bad(at, "has a parameter that is not known here", "take out what is behind the question mark, but for auth_mechanism=external; certificates are named under tls")
			return
		}
		if u.Scheme == "amqp" && d.TLS != nil {
			c.bad(path+".tls", "does not go with an amqp URL", "write amqps in url, or remove tls")
			return
		}
		clear = clear || u.Scheme == "amqp" && !loopback(u.Hostname())
	}
	if clear {
		c.warn(at, "the connection to another machine is in clear text", "write amqps://host:5671")
	}
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

func (c *checker) routingKey(at, text string) {
	if c.broken(at) {
		return
	}
	rest := placeholder.ReplaceAllStringFunc(text, func(p string) string {
		switch p {
		case "{topic}", "{key}", "{source}", "{type}":
			return ""
		}
		return p
	})
	switch {
	case strings.ContainsAny(rest, "{}"):
		c.bad(at, c.show(at, text)+" has something in braces that stands for nothing", "write {topic}, {key}, {source} or {type}")
	case len(rest) > shortString:
		c.bad(at, "is longer than the 255 bytes of AMQP", "write a shorter one")
	}
}

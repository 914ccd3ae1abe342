package config

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// redis checks a destination of type redis. What a template is to be exactly says the
// adapter, which reads it; here is what a slip of the pen looks like.
func (c *checker) redis(path string, d Destination) {
	c.redisURL(path, d)
	if d.User != "" && d.Password.Empty() && !c.broken(path+".password") {
		c.bad(path+".user", "has no password", "write password: ${env:REDIS_PASSWORD}")
	}
	if len(d.Commands) == 0 && !c.broken(path+".commands") {
		at := path + ".stream"
		if reason := badTemplate(d.Stream, redisKeyWords); reason != "" && !c.broken(at) {
			c.bad(at, c.show(at, d.Stream)+" is no key of a stream: "+reason, `write text with {topic}, {source}, {key} or {type} in it, {{ and }} for braces: "events:{topic}"`)
		}
		if d.MaxLen > 0 {
			c.warn(path+".max_len", "drops the oldest entries, those that nobody has read too", "write max_len: 0, and trim what was read: redis-cli XTRIM STREAM MINID ID")
		}
		return
	}
	for key, set := range map[string]bool{"stream": c.present(path+".stream", d.Stream) && d.Stream != "", "max_len": d.MaxLen != 0} {
		if set {
			c.bad(path+"."+key, "does not go with commands: they keep a cache, in place of a stream", "keep commands or "+key)
		}
	}
	for i, text := range d.Commands {
		at := fmt.Sprintf("%s.commands[%d]", path, i)
		if c.broken(at) {
			continue
		}
		if reason := badCommand(text); reason != "" {
			c.bad(at, c.show(at, text)+" is no command: "+reason, `write DEL, UNLINK, SET, HSET, HDEL, EXPIRE or PUBLISH with their arguments: "DEL order:{key}"`)
		}
	}
}

// redisURL checks the addresses. Nothing of them is shown.
func (c *checker) redisURL(path string, d Destination) {
	at := path + ".url"
	if d.URL.Empty() || c.broken(at) {
		return
	}
	text, secure, clear := d.URL.Reveal(), false, false
	scheme, _, _ := strings.Cut(text, "://")
	for _, part := range strings.Split(text, ",") {
		if part = strings.TrimSpace(part); !strings.Contains(part, "://") {
			part = scheme + "://" + part
		}
		u, err := url.Parse(part)
		if err != nil || (u.Scheme != "redis" && u.Scheme != "rediss") || u.Hostname() == "" || u.RawQuery != "" || (u.Port() != "" && !goodPort(u.Port(), 1)) ||
			!redisDatabase.MatchString(u.Path) {
			c.bad(at, "is not the address of a Redis server", "write url: redis://user:password@host:6379/0, or rediss://... for TLS; nodes of a cluster with commas")
			return
		}
		secure = secure || u.Scheme == "rediss"
		clear = clear || (u.Scheme == "redis" && !loopback(u.Hostname()))
	}
	switch {
	case d.TLS != nil && !secure:
		c.bad(path+".tls", "does not go with a redis:// url", "write rediss:// in url, or remove tls")
	case clear:
		c.warn(at, "the connection to another machine is in clear text", "write rediss://host:6379/0")
	}
}

var (
	redisDatabase = regexp.MustCompile(`^/?[0-9]*$`)
	redisKeyWords = regexp.MustCompile(`^\{(topic|source|key|type)\}$`)
	redisAllWords = regexp.MustCompile(`^\{(topic|source|key|type|id|data|(after|before|key)\.[^}]+)\}$`)
	redisCommand  = regexp.MustCompile(`(?i)^\s*([^\s{}"']+:\s+)?(DEL|UNLINK|SET|HSET|HDEL|EXPIRE|PUBLISH)\s+\S`)
)

// badTemplate says what is wrong with a text that has placeholders in it, or nothing.
func badTemplate(text string, words *regexp.Regexp) string {
	if text == "" {
		return "it is empty"
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c != '{' && c != '}':
		case i+1 < len(text) && text[i+1] == c: // stands for itself
			i++
		case c == '}':
			return "a } stands alone"
		default:
			end := strings.IndexByte(text[i:], '}')
			if end < 0 {
				return "a { is not closed"
			}
			if word := text[i : i+end+1]; !words.MatchString(word) {
				return word + " is no placeholder"
			}
			i += end
		}
	}
	return ""
}

func badCommand(text string) string {
	if !redisCommand.MatchString(text) {
		return "it does not begin with one of those that are allowed"
	}
	return badTemplate(text, redisAllWords)
}

package config

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// replica checks a destination whose tables follow those of the source.
func (c *checker) replica(path string, d Destination) {
	if !d.URL.Empty() && !c.broken(path+".url") {
		if d.Type == MySQL {
			c.mysqlURL(path, d)
		} else {
			c.postgres(path+".url", d.URL.Reveal(), ownWriter)
		}
	}
	if d.Type == SQLite && d.Path == "-" {
		c.bad(path+".path", "is standard output, and a database is a file", "write path: replica.db")
	}
	if !c.broken(path+".table") && badTable(d.Table) {
		c.bad(path+".table", c.show(path+".table", d.Table)+" is no name of tables", `write "{table}" or "replica.{table}"; {schema}, {table} and {topic} stand for the event's`)
	}
	if at := path + ".messages"; !c.broken(at) && (badTable(d.Messages) || strings.Contains(d.Messages, "{")) {
		c.bad(at, c.show(at, d.Messages)+" is no name of a table", "write onewrite_messages, or replica.onewrite_messages")
	}
	if schema, _, ok := strings.Cut(d.Table, "."); d.Type == SQLite && ok && schema != "main" && !strings.Contains(schema, "{") {
		c.bad(path+".table", "has a schema, and an SQLite file has none but main", `write table: "{table}"`)
	}
}

// badTable reports that a template makes no name of a table. The adapter reads it by
// the same rule: the first dot ends the schema.
func badTable(text string) bool {
	if text == "" {
		return false // the default
	}
	schema, table, ok := strings.Cut(text, ".")
	if !ok {
		schema, table = "", text
	}
	rest := placeholders("", "", "").Replace(schema + table)
	return table == "" || ok && schema == "" || strings.ContainsAny(rest, "{}.\x00")
}

func placeholders(schema, table, topic string) *strings.Replacer {
	return strings.NewReplacer("{schema}", schema, "{table}", table, "{topic}", topic)
}

func (c *checker) mysqlURL(path string, d Destination) {
	at := path + ".url"
	u, err := url.Parse(d.URL.Reveal())
	if err != nil || u.Scheme != "mysql" && u.Scheme != "mariadb" || strings.Trim(u.Path, "/") == "" || u.Port() != "" && !goodPort(u.Port(), 1) {
		c.bad(at, "is not the address of a MySQL database", "write mysql://user:password@host:3306/database?tls=true")
		return
	}
	switch secure := u.Query().Get("tls"); {
	case secure != "" && secure != "true" && secure != "false":
		c.bad(at, "has a tls that is neither true nor false", "write tls=true; certificates stand under tls: in the destination")
	case secure == "false" && d.TLS != nil:
		c.bad(path+".tls", "does not go with tls=false in url", "remove one of the two")
	case secure != "true" && d.TLS == nil && u.Query().Get("socket") == "" && !loopback(u.Hostname()):
		c.warn(at, "the connection to another machine is in clear text", "add ?tls=true")
	}
}

// loops refuses a destination that writes the very tables that a source reads: each
// event would make the next.
func (c *checker) loops(path string, d Destination) {
	if c.broken(path+".table") || c.broken(path+".url") || c.broken(path+".path") {
		return
	}
	for _, name := range sorted(c.cfg.Sources) {
		s := c.cfg.Sources[name]
		if s.Type != d.Type || !sameDatabase(s, d) {
			continue
		}
		home := "public"
		if s.Type == SQLite {
			home = "main"
		}
		for _, captured := range s.Tables {
			schema, table, ok := strings.Cut(captured, ".")
			if !ok {
				schema, table = home, captured
			}
			if target := d.target(schema, table, home); target != "" {
				c.bad(path+".table", fmt.Sprintf("writes %s of the database that source %s reads it from: each event would make the next", target, name),
					fmt.Sprintf("write table: \"copy.{table}\" (for SQLite \"copy_of_{table}\"), another database, or topics: without it; or take %s out of the source's tables", captured))
				return
			}
		}
	}
}

// target returns the table that a destination writes if it is the captured one, which
// may be * for all that a schema has or will have.
func (d Destination) target(schema, table, home string) string {
	name, messages := d.Table, d.Messages
	if name == "" {
		name = "{table}"
	}
	if messages == "" {
		messages = "onewrite_messages"
	}
	beside, _, ok := strings.Cut(name, ".")
	if ok && !strings.Contains(messages, ".") && !strings.Contains(beside, "{") {
		messages = beside + "." + messages
	}
	own := []string{messages, "onewrite_places"}
	topic := topicOf(schema, table, home)
	if table == "*" || wanted(d.Topics, topic) {
		own = append(own, name)
	}
	for _, text := range own {
		to, as, ok := strings.Cut(text, ".")
		if !ok {
			to, as = home, text
		}
		r := placeholders(schema, table, topic)
		to, as = r.Replace(to), r.Replace(as)
		if to == schema && (table == "*" || as == table || home == "main" && strings.EqualFold(as, table)) {
			return strings.TrimPrefix(to+"."+as, "main.")
		}
	}
	return ""
}

func topicOf(schema, table, home string) string {
	if home == "main" {
		return table
	}
	return schema + "." + table
}

// wanted reports whether a topic matches one of the patterns; none are all.
func wanted(patterns []string, topic string) bool {
	words := strings.Split(topic, ".")
	for _, p := range patterns {
		parts := strings.Split(p, ".")
		for i, part := range parts {
			if part == ">" && i < len(words) {
				return true
			}
			if i >= len(words) || part != "*" && part != words[i] {
				break
			}
			if i == len(parts)-1 && len(parts) == len(words) {
				return true
			}
		}
	}
	return len(patterns) == 0
}

// sameDatabase compares what can be compared without connecting.
func sameDatabase(s Source, d Destination) bool {
	if s.Type == SQLite {
		return s.Path != "" && clean(s.Path) == clean(d.Path)
	}
	a, ok := endpoint(s.URL.Reveal())
	b, too := endpoint(d.URL.Reveal())
	return ok && too && a == b || s.URL.Reveal() == d.URL.Reveal()
}

// endpoint is host, port and database of a PostgreSQL connection string.
func endpoint(text string) (string, bool) {
	words := map[string]string{}
	if u, err := url.Parse(text); err == nil && u.Scheme != "" {
		words["host"], words["port"], words["dbname"], words["user"] = u.Hostname(), u.Port(), strings.TrimPrefix(u.Path, "/"), u.User.Username()
		for _, k := range []string{"host", "port", "dbname", "user"} {
			if v := u.Query().Get(k); v != "" {
				words[k] = v
			}
		}
	} else {
		for _, m := range dsnWord.FindAllStringSubmatch(text, -1) {
			words[m[1]] = strings.Trim(m[2], "'")
		}
	}
	host := strings.ToLower(strings.TrimSuffix(words["host"], "."))
	if loopback(host) || host == "" || strings.HasPrefix(host, "/") {
		host = "here"
	}
	if words["port"] == "" {
		words["port"] = "5432"
	}
	if words["dbname"] == "" {
		words["dbname"] = words["user"]
	}
	return net.JoinHostPort(host, words["port"]) + "/" + words["dbname"], words["dbname"] != ""
}

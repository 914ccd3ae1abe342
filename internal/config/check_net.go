package config

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func clean(path string) string {
	if path == "" || path == "-" {
		return path
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return filepath.Clean(path)
}

func (c *checker) source(path string, s Source) {
	switch s.Type {
	case SQLite:
		c.sqlite(path, s)
	case Postgres:
		if !s.URL.Empty() {
			c.postgres(path+".url", s.URL.Reveal(), ownRelay)
		}
		if !s.LogURL.Empty() {
			c.postgres(path+".log_url", s.LogURL.Reveal(), ownRelay)
		}
		c.captured(path, s.Tables)
		c.masks(path, s)
		c.conditions(path, s)
		off := len(s.Tables) == 0 && !s.Messages && s.Outbox != "log"
		if len(s.Tables) == 0 && (s.Toast != "omit" && s.Toast != "" || !s.Messages && s.OnGap != "snapshot" && s.OnGap != "" || s.Origins == "local" || off && (s.FlushWithin > 0 || !s.LogURL.Empty())) {
			c.bad(path+".tables", "is missing: flush_within, log_url, on_gap, origins and toast are about row changes", "write tables: [public.orders], or take them out")
		}
		if len(s.Tables) == 0 && s.DDL {
			c.bad(path+".tables", "is missing: ddl is about captured tables", "write tables: [public.orders], or take ddl out")
		}
		for key, role := range map[string]string{"app": s.Roles.App, "relay": s.Roles.Relay} {
			if len(role) > 63 {
				c.bad(path+".roles."+key, "is longer than PostgreSQL's 63 bytes", "write the name of a role: SELECT rolname FROM pg_roles")
			}
		}
		for _, name := range sorted(s.Import) {
			at := path + ".import." + name
			c.name(at, name)
			if len(s.Import[name].Order) == 0 && !c.broken(at+".order") {
				c.bad(at+".order", "is missing: rows would come in any order", "write order: [id], or what else grows from row to row")
			}
		}
	}
}

func (c *checker) sqlite(path string, s Source) {
	base := filepath.Base(s.Path)
	if base == ":memory:" || strings.HasPrefix(base, "file:") || strings.Contains(s.Path, "file:") {
		c.bad(path+".path", "must be the path of a file, without file: and not :memory:", "write path: app.db")
	}
	seen := map[string]bool{}
	for i, table := range s.Tables {
		if low := strings.ToLower(table); seen[low] {
			c.bad(fmt.Sprintf("%s.tables[%d]", path, i), "is listed twice", "keep one")
		} else {
			seen[low] = true
		}
	}
}

// tableName is a table's name with its schema or without, or all of a schema.
var tableName = regexp.MustCompile(`^([A-Za-z0-9_-]+\.)?([A-Za-z0-9_-]+|\*)$`)

// maskRule is the form of a rule of columns; package masking reads it.
var maskRule = regexp.MustCompile(`^\s*((\*|[^.\s]+\.[^.\s]+)\.[^.\s]+ +(drop|hash|truncate +[0-9]+)|[^.*\s]+\.[^.*\s]+ +only +[^,\s]+( *, *[^,\s]+)*)\s*$`)

// masks checks the rules of columns.
func (c *checker) masks(path string, s Source) {
	if !s.MaskKey.Empty() && len(s.MaskKey.Reveal()) < 16 {
		c.warn(path+".mask_key", "is shorter than 16 bytes: who knows one value and its hash may find it by trying, and then every other value", "make one with: (umask 077; openssl rand -hex 32 > mask.key), and write mask_key: ${file:mask.key}")
	}
	for i, line := range s.Columns {
		at := fmt.Sprintf("%s.columns[%d]", path, i)
		if !maskRule.MatchString(line) {
			c.bad(at, "is no rule", "write schema.table.column (or *.column) and then drop, hash or truncate 20; or schema.table only a, b")
		} else if strings.HasSuffix(strings.TrimSpace(line), " hash") && s.MaskKey.Empty() && !c.broken(path+".mask_key") {
			c.bad(at, "hashes without a key, so that everybody could try values out", "write mask_key: ${file:mask.key}, made with: (umask 077; openssl rand -hex 32 > mask.key)")
		}
	}
}

// conditions checks that those of snapshots are of tables that are captured; what they
// say is for the server to understand.
func (c *checker) conditions(path string, s Source) {
	full := func(table string) string {
		if !strings.Contains(table, ".") {
			return "public." + table
		}
		return table
	}
	known, left := map[string]bool{}, map[string]bool{}
	for _, table := range s.Tables {
		if out, ok := strings.CutPrefix(table, "!"); ok {
			left[full(out)] = true
			continue
		}
		schema, _, _ := strings.Cut(full(table), ".")
		known[full(table)], known[schema+".*"] = true, true
	}
	for _, table := range sorted(s.SnapshotWhere) {
		schema, _, _ := strings.Cut(full(table), ".")
		at := path + ".snapshot_where." + table
		switch {
		case !tableName.MatchString(table) || table == "*":
			c.bad(at, "is no table, or pattern of tables", "write public.orders, or billing.* for all tables of a schema")
		case left[full(table)] || !known[full(table)] && !slices.Contains(s.Tables, schema+".*"):
			c.bad(at, "is not in tables, so there is no snapshot of it", "put it into tables:, or take it out here")
		case s.Snapshot == "never":
			c.warn(at, "counts only for snapshots that are asked for, and after a gap, as snapshot is never", "write snapshot: initial, if it is meant for the first one")
		}
	}
}

// captured checks the tables of a PostgreSQL source.
func (c *checker) captured(path string, tables []string) {
	seen := map[string]bool{}
	for i, table := range tables {
		at := fmt.Sprintf("%s.tables[%d]", path, i)
		name, out := strings.CutPrefix(table, "!")
		full := name
		if !strings.Contains(full, ".") {
			full = "public." + full
		}
		schema, _, _ := strings.Cut(full, ".")
		switch {
		case !tableName.MatchString(name) || name == "*":
			c.bad(at, "is no table that can be a topic: letters, digits, _ and -, with its schema", "write public.orders, or billing.* for all tables of a schema")
		case seen[full]:
			c.bad(at, "is listed twice", "keep one")
		case out && strings.HasSuffix(name, "*"):
			c.bad(at, "leaves out a pattern", "name one table, as in !billing.scratch")
		case out && !slices.Contains(tables, schema+".*"):
			c.bad(at, "leaves out a table that nothing takes in", "take it out, or write "+schema+".* as well")
		}
		seen[full] = true
	}
}

var dsnWord = regexp.MustCompile(`(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\S*)`)

// What a connection as superuser is cured with: a source's role gets its rights from
// migrate, a destination's from whoever owns the tables.
const (
	ownRelay  = "give onewrite a role of its own: CREATE ROLE onewrite_relay LOGIN; name it under roles: {relay: ...} and run onewrite migrate"
	ownWriter = "name a role of its own in url, and onewrite doctor says which rights it lacks: CREATE ROLE onewrite_writer LOGIN;"
)

// postgres checks a connection string as far as it can be without connecting; own is
// the cure of a superuser's. Nothing of it is shown: it may hold a password anywhere.
func (c *checker) postgres(path, text, own string) {
	words := map[string]string{}
	scheme, rest, isURL := strings.Cut(text, "://")
	switch {
	case isURL && scheme != "postgres" && scheme != "postgresql":
		c.bad(path, "is not a PostgreSQL connection string", "write postgres://user:password@host:5432/database?sslmode=verify-full")
		return
	case isURL:
		rest, query, _ := strings.Cut(rest, "?")
		if q, err := url.ParseQuery(query); err == nil {
			for k := range q {
				words[k] = q.Get(k)
			}
		}
		authority, _, _ := strings.Cut(rest, "/")
		if at := strings.LastIndexByte(authority, '@'); at >= 0 {
			user, _, _ := strings.Cut(authority[:at], ":")
			words["user"] = user
			authority = authority[at+1:]
		}
		if authority != "" {
			words["host"] = authority
		}
	case strings.Contains(text, "="):
		for _, m := range dsnWord.FindAllStringSubmatch(text, -1) {
			words[m[1]] = strings.Trim(m[2], "'")
		}
	default:
		c.bad(path, "is not a PostgreSQL connection string", "write postgres://user:password@host:5432/database?sslmode=verify-full")
		return
	}
	if words["user"] == "postgres" {
		c.warn(path, "connects as postgres, as a rule a superuser", own)
	}
	switch words["sslmode"] {
	case "", "disable", "allow", "prefer":
		for _, host := range strings.Split(words["host"], ",") {
			if !local(host) {
				c.warn(path, "the connection to another machine may be in clear text", "add sslmode=verify-full")
				return
			}
		}
	}
}

// local reports whether a host of a connection string, with or without a port,
// is this machine: empty, a socket's folder, localhost or a loopback address.
func local(host string) bool {
	host = strings.TrimSpace(host)
	if host == "" || strings.HasPrefix(host, "/") || strings.HasPrefix(host, "%2F") || strings.HasPrefix(host, "@") {
		return true
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return loopback(strings.Trim(host, "[]"))
}

func loopback(host string) bool {
	h := strings.ToLower(strings.TrimSuffix(host, "."))
	if h == "localhost" || strings.HasSuffix(h, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(h)
	return err == nil && ip.Unmap().IsLoopback()
}

// inside reports whether a host is plainly not on the public network. Names are
// resolved and checked when they are dialled.
func inside(host string) bool {
	if loopback(host) {
		return true
	}
	ip, err := netip.ParseAddr(strings.TrimSuffix(host, "."))
	if err != nil {
		return false
	}
	ip = ip.Unmap()
	return ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast() ||
		netip.MustParsePrefix("100.64.0.0/10").Contains(ip)
}

var (
	headerName     = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
	headerReserved = regexp.MustCompile(`(?i)^(ce-.*|webhook-(id|timestamp|signature)|content-(type|length|encoding)|host|connection|transfer-encoding|te|trailer|upgrade|expect|keep-alive|proxy-.*)$`)
	headerValue    = regexp.MustCompile(`^([!-~]([ -~]*[!-~])?)?$`)
)

// shortestSecret is what Standard Webhooks asks for, in bytes.
const shortestSecret = 24

func (c *checker) webhook(path string, d Destination) {
	c.webhookURL(path, d)
	if len(d.Secret) == 0 && !c.broken(path+".secret") {
		c.warn(path+".secret", "without a secret the receiver cannot tell who calls", "write secret: ${file:warehouse.key} and give the receiver the same")
	}
	for i, s := range d.Secret {
		at := path + ".secret"
		if _, ok := c.places[fmt.Sprintf("%s[%d]", at, i)]; ok {
			at = fmt.Sprintf("%s[%d]", at, i)
		}
		bytes := []byte(s.Reveal())
		if key, ok := strings.CutPrefix(s.Reveal(), "whsec_"); ok {
			var err error
			if bytes, err = base64.StdEncoding.DecodeString(key); err != nil {
				c.bad(at, "begins with whsec_, but no base64 follows", "make one with: openssl rand -base64 32, and write whsec_ before it")
				continue
			}
		}
		if len(bytes) < shortestSecret && len(bytes) > 0 {
			c.warn(at, "is shorter than 24 bytes: who has seen one request may find it by trying", "make one with: (umask 077; openssl rand -hex 32 > webhook.key), and give the receiver the same")
		}
	}
	for _, name := range sorted(d.Headers) {
		at := path + ".headers." + name
		switch value := d.Headers[name].Reveal(); {
		case !headerName.MatchString(name):
			c.bad(at, "is not a header name", "use letters, digits and -")
		case headerReserved.MatchString(name):
			c.bad(at, "is a header that onewrite sets itself", "remove it")
		case strings.ContainsAny(value, "\r\n\x00"):
			c.bad(at, "has a value of several lines", "write it on one line")
		case !headerValue.MatchString(value):
			c.bad(at, "has a value with characters other than those of ASCII, or blanks at an end", "remove them, or encode the value, as percent-encoding does")
		}
	}
}

func (c *checker) webhookURL(path string, d Destination) {
	at := path + ".url"
	if d.URL.Empty() || c.broken(at) {
		return
	}
	u, err := url.Parse(d.URL.Reveal())
	switch {
	case err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Hostname() == "":
		c.bad(at, "is not an http or https URL", "write url: https://warehouse.example/events")
		return
	case u.User != nil:
		c.bad(at, "holds a user name or password", "write it as a header: headers: {Authorization: \"Basic ${env:WAREHOUSE_BASIC}\"}")
	case u.Port() != "" && !goodPort(u.Port(), 1):
		c.bad(at, "has a port that is none", "write a port from 1 to 65535")
	}
	if u.Scheme == "http" && d.TLS != nil {
		c.bad(path+".tls", "does not go with an http URL", "write https in url, or remove tls")
	}
	if d.AllowPrivate || c.broken(path+".allow_private") {
		return
	}
	if u.Scheme == "http" {
		c.bad(at, "is http, which anyone between can read", "write https, or allow_private: true if the receiver is on your own network")
	} else if inside(u.Hostname()) {
		c.bad(at, "is a loopback or private address", "write allow_private: true if it is meant so")
	}
}

func goodPort(text string, least int) bool {
	n, err := strconv.Atoi(text)
	return err == nil && n >= least && n <= 65535
}

// natsURL checks the addresses of NATS servers.
func (c *checker) natsURL(at string, s Secret, t *TLS) {
	if s.Empty() || c.broken(at) {
		return
	}
	clear := false
	for _, part := range strings.Split(s.Reveal(), ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil || (u.Scheme != "nats" && u.Scheme != "tls") || u.Hostname() == "" ||
			(u.Port() != "" && !goodPort(u.Port(), 1)) {
			c.bad(at, "is not the address of a NATS server", "write url: nats://host:4222, or tls://host:4222; several with commas")
			return
		}
		clear = clear || (u.Scheme == "nats" && t == nil && !loopback(u.Hostname()))
	}
	if clear {
		c.warn(at, "the connection to another machine may be in clear text", "write tls://host:4222")
	}
}

// login checks the ways to say who connects to NATS.
func (c *checker) login(path, creds, nkey, user string, password Secret) {
	ways := 0
	for _, way := range []string{creds, nkey, user} {
		if way != "" {
			ways++
		}
	}
	if ways > 1 {
		c.bad(path, "says in several ways who connects", "keep one of creds, nkey, and user with password")
	}
	switch {
	case user != "" && password.Empty() && !c.broken(path+".password"):
		c.bad(path+".user", "has no password", "write password: ${env:NATS_PASSWORD}")
	case user == "" && !password.Empty() && !c.broken(path+".user"):
		c.bad(path+".password", "has no user", "write user: NAME")
	}
}

func (c *checker) natsDestination(path string, d Destination) {
	c.natsURL(path+".url", d.URL, d.TLS)
	c.login(path, d.Creds, d.NKey, d.User, d.Password)
	c.ownBus(path+".url", d.URL.Reveal())
	at := path + ".subject"
	if sample := strings.ReplaceAll(d.Subject, "{topic}", "topic"); badTopic(sample) != "" || strings.ContainsAny(sample, "*>") {
		c.bad(at, c.show(at, d.Subject)+" is not a subject", `write words with dots between; {topic} stands for the topic: "shop.{topic}"`)
	}
}

// ownBus refuses to deliver to the embedded bus: whoever comes in there only reads.
func (c *checker) ownBus(at, urls string) {
	b := c.cfg.Bus
	if b.Listen == "" || !b.URL.Empty() || c.broken("bus.listen") || c.broken(at) {
		return
	}
	listen, listenPort, err := net.SplitHostPort(b.Listen)
	if err != nil || listenPort == "0" {
		return
	}
	for _, part := range strings.Split(urls, ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil {
			continue
		}
		port := u.Port()
		if port == "" {
			port = "4222"
		}
		if port == listenPort && reaches(u.Hostname(), listen) {
			c.bad(at, "is onewrite's own bus, at bus.listen, which nobody else can write to",
				"write the url of another NATS server; or take this destination out, and read the stream "+b.Name+"-SOURCE there, as its consumer")
			return
		}
	}
}

// reaches reports whether who calls a host comes to what listens on this machine.
func reaches(host, listen string) bool {
	if strings.EqualFold(host, listen) {
		return true
	}
	if !loopback(host) {
		return false
	}
	ip, err := netip.ParseAddr(listen)
	if listen == "" || err == nil && ip.IsUnspecified() {
		return true
	}
	named := strings.EqualFold(host, "localhost") || strings.EqualFold(listen, "localhost")
	return named && loopback(listen)
}

func (c *checker) tls(path string, t *TLS) {
	if t.Insecure {
		c.warn(path+".insecure", "any certificate is accepted, so anyone between can read and change events", "name the authority instead: ca: ca.pem")
	}
	for _, key := range []string{"ca", "cert", "key", "insecure", "server_name"} {
		if c.broken(path + "." + key) {
			return
		}
	}
	if _, err := t.Build(); err != nil {
		c.bad(path, err.Error(), "give the path of PEM files that can be read")
	}
}

func (c *checker) bus(path string, b Bus) {
	external := !b.URL.Empty() || c.broken(path+".url")
	if external && c.present(path+".dir", b.Dir) && b.Dir != "" {
		c.bad(path+".dir", "does not go with url: the bus is either a folder or a cluster", "keep dir or url")
	}
	if !namePattern.MatchString(b.Name) && !c.broken(path+".name") {
		c.bad(path+".name", c.show(path+".name", b.Name)+" is not a good name", "use 1 to 64 letters, digits, _ and -")
	}
	if b.TLS != nil {
		c.tls(path+".tls", b.TLS)
	}
	if b.Type == Kafka {
		c.kafkaBus(path, b)
		return
	}
	c.natsURL(path+".url", b.URL, b.TLS)
	c.login(path, b.Creds, b.NKey, b.User, b.Password)
	if external {
		if b.Listen != "" {
			c.bad(path+".listen", "does not go with url: only the embedded bus listens", "remove it, clients use the cluster's own addresses")
		}
		return
	}
	for key, set := range map[string]bool{"creds": b.Creds != "", "nkey": b.NKey != "", "replicas": b.Replicas != 0, "tls": b.TLS != nil} {
		if set {
			c.bad(path+"."+key, "goes only with url: the embedded bus has no use for it", "remove it, or write url: nats://host:4222")
		}
	}
	open := b.Listen != "" || c.broken(path+".listen")
	if !open && (b.User != "" || !b.Password.Empty()) {
		c.bad(path+".user", "goes only with url or listen", "remove user and password, or write listen: 127.0.0.1:4222")
	}
	if b.Listen != "" {
		c.address(path+".listen", b.Listen)
		if b.User == "" && !c.broken(path+".user") {
			c.bad(path+".listen", "opens the bus to everyone who reaches it", "write user: NAME and password: ${env:NATS_PASSWORD} too")
		}
	}
}

// address checks host:port and returns the host.
func (c *checker) address(path, text string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || !goodPort(port, 0) || strings.ContainsAny(host, " /@") {
		c.bad(path, c.show(path, text)+" is not host:port", "write 127.0.0.1:PORT")
		return "", false
	}
	return host, true
}

func (c *checker) listen() {
	if c.cfg.Listen == "off" || c.cfg.Listen == "" || c.broken("listen") {
		return
	}
	host, ok := c.address("listen", c.cfg.Listen)
	if ok && !loopback(host) && c.cfg.Token.Empty() && !c.broken("token") {
		c.bad("listen", "can be reached from other machines and needs token", "write token: ${file:onewrite.token} (make it with: (umask 077; openssl rand -hex 32 > onewrite.token)), or listen on 127.0.0.1")
	}
}

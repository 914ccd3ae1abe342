package redis

import (
	"context"
	"fmt"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// Examine looks at a Redis that is delivered to, and says what it finds; the caller
// adds the Subject. It writes nothing.
func Examine(ctx context.Context, c Config) []diagnosis.Finding {
	e := &examiner{List: diagnosis.List{Prefix: "redis: ", Otherwise: "onewrite check"}}
	set, err := read(c)
	if err != nil {
		e.Failed("configuration", err)
		return e.Found
	}
	e.run(ctx, set)
	return e.Found
}

type examiner struct {
	diagnosis.List
	link *link
}

// Add adds a finding. Its commands get the server to ask.
func (e *examiner) Add(s diagnosis.Severity, check, cure, format string, args ...any) {
	e.List.Add(s, check, e.link.addressed(cure), format, args...)
}

func (e *examiner) run(ctx context.Context, set *settings) {
	l, s, err := reach(ctx, set)
	if err != nil {
		e.Failed("connection", err)
		return
	}
	defer l.close()
	e.link = l
	e.OK("connection", "%s answers", l.addr)
	e.encryption(set, l)
	if !s.known {
		e.Add(diagnosis.Warning, "settings", infoCure, "the user may not ask INFO, so that it cannot be seen whether the server evicts keys or forgets what it acknowledged")
	} else {
		e.settings(set, s)
	}
	if len(set.commands) > 0 {
		e.cache(ctx, set, l, s)
		return
	}
	e.stream(ctx, set, l, s)
}

func (e *examiner) encryption(set *settings, l *link) {
	host := l.addr[:strings.LastIndexByte(l.addr, ':')]
	switch local := host == "localhost" || host == "::1" || host == "[::1]" || strings.HasPrefix(host, "127."); {
	case set.tls != nil && set.tls.InsecureSkipVerify:
		e.Add(diagnosis.Warning, "tls", "tls: {ca: ca.pem}", "any certificate is accepted: whoever is on the way can read and change events")
	case set.tls != nil:
		e.OK("tls", "the server's certificate is good")
	case local:
		e.OK("tls", "none, and none needed: the server is on this machine")
	default:
		e.Add(diagnosis.Warning, "tls", "url: rediss://"+l.addr+"/0", "none: whoever is on the way can read and change events, and read the password")
	}
}

// settings looks at what may lose events that were acknowledged.
func (e *examiner) settings(set *settings, s server) {
	what := "Redis"
	if s.valkey {
		what = "Valkey, which calls itself Redis"
	}
	if s.old() && len(set.commands) == 0 {
		e.Add(diagnosis.Problem, "version", "install Redis 7.0 or newer, or Valkey", "%s %s, 7.0 or newer is needed", what, s.version)
	} else {
		e.OK("version", "%s %s", what, s.version)
	}
	if s.replica {
		e.Add(diagnosis.Problem, "primary", "url: redis://"+s.primary+"/0", "it is a replica of %s, and takes no writes", s.primary)
	} else {
		e.OK("primary", "yes")
	}
	if s.loading {
		e.Add(diagnosis.Warning, "loading", "redis-cli INFO persistence", "the server still reads its data after a start: events wait")
	}
	if s.limit > 0 && s.used > s.limit/10*8 {
		e.Add(diagnosis.Warning, "memory", fmt.Sprintf("redis-cli CONFIG SET maxmemory %d", 2*s.limit), "%d of %d bytes are in use: a full server takes nothing more", s.used, s.limit)
	}
	if len(set.commands) > 0 {
		return
	}
	switch {
	case strings.HasPrefix(s.policy, "allkeys-"):
		e.Add(diagnosis.Problem, "eviction", policyCure, "maxmemory-policy is %s: the server would drop whole streams, so it is not delivered to", s.policy)
	case s.policy == "":
		e.Add(diagnosis.Warning, "eviction", "redis-cli CONFIG GET maxmemory-policy", "the server does not tell its maxmemory-policy; allkeys-... would drop whole streams")
	default:
		e.OK("eviction", "maxmemory-policy is %s: streams stay", s.policy)
	}
	if w := s.warnings(); len(w) > 0 {
		text, cure, _ := strings.Cut(strings.TrimPrefix(w[0], "redis: "), "; ")
		e.Add(diagnosis.Warning, "durability", cure, "%s", text)
	} else if s.fsync == "" {
		e.Add(diagnosis.Warning, "durability", "redis-cli CONFIG GET appendfsync", "the server has an append only file and does not tell appendfsync; with everysec a server that dies forgets the last second or two")
	} else {
		e.OK("durability", "appendonly yes, appendfsync %s: what is acknowledged is on its disk", s.fsync)
	}
	switch {
	case s.replicas == 0:
		e.OK("replicas", "none: the disk of this server is all there is")
	case s.minReplicas == "0" || s.minReplicas == "":
		e.Add(diagnosis.Warning, "replicas", "redis-cli CONFIG SET min-replicas-to-write 1", "%d: they are sent events after these were acknowledged, so that a failover forgets the last ones; no WAIT is sent", s.replicas)
	default:
		e.OK("replicas", "%d, of which %s have to follow; a failover forgets no more than min-replicas-max-lag seconds", s.replicas, s.minReplicas)
	}
}

// rights asks the server what the user may do with a key, without doing it.
const rights = `local missing = {}
for i = 2, #ARGV do
  local ok, may = pcall(redis.acl_check_cmd, ARGV[i], KEYS[1], '0-1', 'f', 'v')
  if ok and not may then missing[#missing + 1] = ARGV[i] end
end
return missing`

// stream looks at the rights on the place and, in a cluster, where it is.
func (e *examiner) stream(ctx context.Context, set *settings, l *link, s server) {
	if s.cluster && set.stream.Tag() != set.name {
		e.Add(diagnosis.Problem, "cluster", fmt.Sprintf("stream: \"{{%s}}:{topic}\"", set.name), "in a cluster the streams have to be in one slot with the place of the destination")
		return
	}
	var found []any
	var owner string
	err := l.do(ctx, func(ctx context.Context, c *goredis.Client) error {
		var err error
		if found, err = c.Eval(ctx, rights, []string{set.placeKey()}, "", "XADD", "XDEL", "HSET", "HMGET", "TYPE").Slice(); err != nil {
			return err
		}
		owner, err = c.HGet(ctx, set.placeKey(), "owner").Result()
		if err == goredis.Nil {
			err = nil
		}
		return err
	})
	switch {
	case movedTo(err, l.addr) != "":
		e.OK("cluster", "the place is on %s", movedTo(err, l.addr))
	case err != nil:
		e.Failed("rights", l.explain("ask for "+set.placeKey(), err))
	case len(found) > 0:
		e.Add(diagnosis.Problem, "rights", rightsCure, "the user may not run %v: every event would wait", found)
	default:
		e.OK("rights", "the user may keep %s; whether each stream may be written shows with its first event", set.placeKey())
		if owner == "" {
			e.OK("place", "none yet")
		} else {
			e.OK("place", "kept in %s", set.placeKey())
		}
	}
}

// cache looks at the rights for the commands.
func (e *examiner) cache(ctx context.Context, set *settings, l *link, s server) {
	if s.cluster {
		e.Add(diagnosis.Problem, "cluster", "set url to a single server, or write a stream", "commands need a server that is no cluster")
		return
	}
	names := []any{""}
	for _, c := range set.commands {
		names = append(names, c.Name())
	}
	var found []any
	err := l.do(ctx, func(ctx context.Context, c *goredis.Client) error {
		var err error
		found, err = c.Eval(ctx, rights, []string{"onewrite:probe"}, names...).Slice()
		return err
	})
	switch {
	case err != nil && isAnswer(err):
		e.OK("rights", "the user may not run scripts, and need not: what it may run shows with the first event")
	case err != nil:
		e.Failed("rights", err)
	case len(found) > 0:
		e.Add(diagnosis.Warning, "rights", rightsCure, "the user may not run %v, on a key of any name at least", found)
	default:
		e.OK("rights", "the user may run the commands")
	}
	e.OK("guarantee", "a cache keeps no place: what a crash leaves unconfirmed is run again")
}

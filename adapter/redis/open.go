package redis

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/onewrite/onewrite"
)

// Open connects, looks whether the server can be delivered to, and returns a [Sink],
// or a [Cache] if the configuration has commands. The error says why not.
func Open(ctx context.Context, c Config) (onewrite.Sink, error) {
	set, err := read(c)
	if err != nil {
		return nil, err
	}
	if len(set.commands) > 0 {
		return openCache(ctx, set)
	}
	return openSink(ctx, set)
}

// openSink finds the server that holds the streams.
func openSink(ctx context.Context, set *settings) (_ *Sink, err error) {
	if set.name == "" {
		return nil, errors.New("redis: the destination has no name, which the key of its place needs; set Destination")
	}
	s := &Sink{set: set, writes: "0"}
	var info server
	if s.link, info, err = reach(ctx, set); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.link.close()
		}
	}()
	if info.cluster && set.stream.Tag() != set.name {
		return nil, fmt.Errorf("redis: in a cluster the streams have to be in one slot with the place of the destination: write stream: \"{{%s}}:{topic}\"", set.name)
	}
	for hop := 0; ; hop++ {
		err := s.look(ctx)
		addr := movedTo(err, s.link.addr)
		if addr == "" || hop == 3 {
			if err != nil {
				return nil, unanswered(s.link.explain("read "+set.placeKey(), err))
			}
			break
		}
		s.link.close()
		s.link = newLink(set, addr)
		if info, err = ask(ctx, s.link); err != nil {
			return nil, err
		}
	}
	if err := info.refuse(s.link); err != nil {
		return nil, err
	}
	for _, w := range info.warnings() {
		set.log.Warn(s.link.addressed(w))
	}
	s.link.check = func(ctx context.Context, c *goredis.Client) error {
		now, err := inspect(ctx, c)
		if err != nil {
			return s.link.explain("look at "+s.link.addr, err)
		}
		return now.refuse(s.link)
	}
	return s, nil
}

// look reads who owns the place, so that a sink that never takes it over is fenced by
// the next one that does.
func (s *Sink) look(ctx context.Context) error {
	return s.link.do(ctx, func(ctx context.Context, c *goredis.Client) error {
		now, err := c.HMGet(ctx, s.set.placeKey(), "owner", "writes").Result()
		s.owner, s.writes = textOf(now, 0, ""), textOf(now, 1, "0")
		return err
	})
}

// reach connects to the first address that answers.
func reach(ctx context.Context, set *settings) (*link, server, error) {
	var errs []error
	for _, addr := range set.addrs {
		l := newLink(set, addr)
		info, err := ask(ctx, l)
		if err == nil && len(set.addrs) > 1 && info.known && !info.cluster {
			l.close()
			return nil, info, errors.New("redis: the url has several addresses, and the server is no cluster: they would be different servers; keep one address in url")
		}
		if err == nil {
			return l, info, nil
		}
		l.close()
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) > 1 {
		return nil, server{}, fmt.Errorf("redis: none of %d addresses can be used: %w", len(errs), errs[0])
	}
	return nil, server{}, errs[0]
}

// movedTo returns the address that an error names as the place of a slot.
func movedTo(err error, from string) string {
	if !goredis.HasErrorPrefix(err, "MOVED ") {
		return ""
	}
	words := strings.Fields(err.Error())
	addr := words[len(words)-1]
	if strings.HasPrefix(addr, ":") { // the same host
		return from[:strings.LastIndexByte(from, ':')] + addr
	}
	return addr
}

func newOwner() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails, by its contract
	return hex.EncodeToString(b)
}

// server is what a server says of itself. Where known is false it may not be asked.
type server struct {
	known       bool
	version     string
	valkey      bool
	cluster     bool
	replica     bool
	primary     string // of a replica
	replicas    int
	policy      string
	used, limit int64
	aof         bool
	fsync       string // "" : not told
	minReplicas string // "": not told
	loading     bool
}

// ask reads what decides whether events are lost.
func ask(ctx context.Context, l *link) (s server, err error) {
	err = l.do(ctx, func(ctx context.Context, c *goredis.Client) error {
		if err := c.Ping(ctx).Err(); err != nil {
			return err
		}
		var err error
		s, err = inspect(ctx, c)
		return err
	})
	return s, unanswered(l.explain("connect to "+l.addr, err))
}

// inspect reads INFO and settings.
func inspect(ctx context.Context, c *goredis.Client) (s server, err error) {
	text, err := c.Info(ctx).Result()
	if isDenied(err) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	s.known = true
	conf := map[string]string{}
	for _, name := range []string{"appendfsync", "min-replicas-to-write", "maxmemory-policy"} {
		m, err := c.ConfigGet(ctx, name).Result()
		if err != nil && !isAnswer(err) { // managed servers have no CONFIG
			return s, err
		}
		conf[name] = m[name]
	}
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(info[name], 10, 64) // absent is 0
		return n
	}
	s.version, s.valkey = info["redis_version"], info["valkey_version"] != ""
	s.cluster = info["cluster_enabled"] == "1" || info["redis_mode"] == "cluster"
	s.replica, s.primary = info["role"] == "slave" || info["role"] == "replica", info["master_host"]+":"+info["master_port"]
	s.replicas = int(number("connected_slaves"))
	s.policy, s.used, s.limit = info["maxmemory_policy"], number("used_memory"), number("maxmemory")
	if s.policy == "" {
		s.policy = conf["maxmemory-policy"]
	}
	s.aof, s.fsync, s.minReplicas = info["aof_enabled"] == "1", conf["appendfsync"], conf["min-replicas-to-write"]
	s.loading = info["loading"] == "1"
	return s, nil
}

func isDenied(err error) bool {
	return goredis.HasErrorPrefix(err, "NOPERM") || goredis.HasErrorPrefix(err, "unknown command")
}

// The cures, which the doctor shows too.
const (
	policyCure  = "redis-cli CONFIG SET maxmemory-policy noeviction"
	fsyncCure   = "redis-cli CONFIG SET appendonly yes appendfsync always"
	replicaCure = "set url to the primary"
)

// old reports whether the server lacks what the script needs.
func (s server) old() bool {
	major, _, _ := strings.Cut(s.version, ".")
	n, err := strconv.Atoi(major)
	return s.known && err == nil && n < 7
}

// refuse is why a server may not get a stream; nil if it may.
func (s server) refuse(l *link) error {
	switch {
	case strings.HasPrefix(s.policy, "allkeys-"):
		return fmt.Errorf("redis: the server evicts keys by itself (maxmemory-policy %s) and would drop whole streams: %s, or deliver to a server of its own", s.policy, l.addressed(policyCure))
	case s.replica:
		return fmt.Errorf("redis: the server is a replica of %s and takes no writes; %s", s.primary, replicaCure)
	case s.old():
		return fmt.Errorf("redis: the server is version %s, 7.0 or newer is needed; %s", s.version, l.addressed("redis-cli INFO server"))
	}
	return nil
}

// warnings are what may lose events that were acknowledged.
func (s server) warnings() (list []string) {
	switch {
	case !s.known:
		list = append(list, "redis: the user may not ask INFO, so that it cannot be seen whether the server evicts keys or forgets what it acknowledged; "+infoCure)
	case !s.aof:
		list = append(list, "redis: the server has no append only file: a server that dies forgets all since its last snapshot; "+fsyncCure)
	case s.fsync == "everysec":
		list = append(list, "redis: appendfsync is everysec: a server that dies forgets what it acknowledged in the last second or two; "+fsyncCure)
	case s.fsync == "no":
		list = append(list, "redis: appendfsync is no: a machine that dies forgets what the system had not written, as a rule of the last 30 seconds; "+fsyncCure)
	}
	return list
}

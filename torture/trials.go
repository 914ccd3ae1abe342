package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/onewrite/onewrite/internal/sabotage"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/torture/storm"
)

// kills are the large storms.
func kills(plain string) []trial {
	return []trial{
		{Name: "kill-postgres", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 1_000_000, Kills: 100, Terms: 5, Freezes: 5, Crashes: 5}},
		{Name: "kill-pushed", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 400_000, Kills: 25, Terms: 5, Freezes: 5, Crashes: 5, Pushed: true}},
		{Name: "kill-sqlite", Storm: storm.Config{Binary: plain, Source: "sqlite", Events: 200_000, Kills: 100, Terms: 5, Freezes: 5}},
	}
}

// fences are the storms of several copies on one external bus, of its servers, of
// the network, and of lost answers.
func fences(plain string) []trial {
	return []trial{
		{Name: "fence-rounds", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 20_000, Rate: 200, Nodes: 1, Copies: 5, Rounds: 50, Wait: 2 * time.Minute}},
		{Name: "fence-pushed", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 30_000, Nodes: 1, Copies: 3, Kills: 15, Freezes: 5, Rounds: 5, Pushed: true, Wait: 2 * time.Minute}},
		{Name: "fence-kills", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 30_000, Nodes: 1, Copies: 3, Kills: 30, Freezes: 10, Terms: 5}},
		{Name: "cluster-deaths", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 20_000, Nodes: 3, Copies: 2, Deaths: 12, Kills: 5, Wait: 2 * time.Minute}},
		{Name: "network-postgres", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 20_000, Nodes: 1, Copies: 2, Nets: 60, Wait: 2 * time.Minute}},
		{Name: "network-sqlite", Storm: storm.Config{Binary: plain, Source: "sqlite", Events: 10_000, Nets: 30}},
		{Name: "lost-answers", Storm: storm.Config{Binary: plain, Source: "sqlite", Events: 30_000, Rate: 300, Lost: 1000, Wait: 5 * time.Minute}},
	}
}

// realSinks are the storms of the destinations on real servers, which are killed as
// onewrite is.
func realSinks(plain string) []trial {
	every := []string{"kafka", "kafka-plain", "redis", "rabbitmq", "postgres", "mysql", "sqlite"}
	return []trial{
		{Name: "sinks-kills", Storm: storm.Config{Binary: plain, Source: "sqlite", Events: 20_000, Sinks: every, Kills: 25, Terms: 3, Freezes: 3, Strikes: 20, Wait: 3 * time.Minute}},
		{Name: "sinks-pushed", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 20_000, Sinks: every, Kills: 10, Crashes: 3, Strikes: 5, Pushed: true, Wait: 3 * time.Minute}},
		{Name: "sinks-kafka", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 20_000, Kafka: true, Sinks: []string{"kafka", "kafka-plain", "sqlite"}, Kills: 15, Terms: 3, Freezes: 3, Crashes: 2, Strikes: 6, Wait: 3 * time.Minute}},
		{Name: "sinks-older", Storm: storm.Config{Binary: plain, Source: "sqlite", Events: 6_000, Sinks: every[2:], Olders: 5, Kills: 5, Refuse: true, Wait: 3 * time.Minute}},
		{Name: "sinks-network", Storm: storm.Config{Binary: plain, Source: "sqlite", Events: 30_000, Rate: 250, Sinks: []string{"redis", "rabbitmq", "postgres", "mysql"}, Nets: 20, Lost: 1000, Wait: 5 * time.Minute}},
		{Name: "sinks-copies", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 10_000, Rate: 150, Sinks: every[:6], Nodes: 1, Copies: 2, Rounds: 12, Strikes: 5, Kills: 3, Wait: 3 * time.Minute}},
	}
}

// traps are the storms in which the bus is lost, damaged or without room.
func traps(plain string) []trial {
	var list []trial
	for _, source := range []string{"sqlite", "postgres-18"} {
		list = append(list,
			trial{Name: "lost-bus-" + source, Storm: storm.Config{Binary: plain, Source: source, Events: 6000, Loses: 3, Kills: 3}},
			trial{Name: "older-bus-" + source, Storm: storm.Config{Binary: plain, Source: source, Events: 6000, Returns: 2, Kills: 2}},
			trial{Name: "changed-bytes-" + source, Storm: storm.Config{Binary: plain, Source: source, Events: 10_000, Rate: 500, Flips: 20, Refuse: true, Wait: 2 * time.Minute}},
			trial{Name: "full-disk-" + source, Storm: storm.Config{Binary: plain, Source: source, Events: 10_000, Fills: 3}},
		)
	}
	return list
}

// rows are the storms of row changes, with events of the outbox beside them: those
// that kill, an idle table, a transaction of many rows, and what PostgreSQL is silent
// about.
func rows(plain string) (list []trial) {
	for _, source := range []string{"postgres-15", "postgres-18"} {
		add := func(name string, c storm.Config) {
			c.Binary, c.Source, c.Wait = plain, source, 2*time.Minute
			list = append(list, trial{Name: "rows-" + name + source[len("postgres"):], Storm: c})
		}
		// Without W4: PostgreSQL 15 cannot always decode tables that were rewritten while
		// a slot was made ("could not map filenode").
		trap := func(name string, traps ...string) {
			add(name, storm.Config{Rows: "W5 W6", Events: 300, Rate: 40, Traps: traps})
		}
		add("kill", storm.Config{Rows: "W4 W5 W6", Events: 2000, Rate: 80, Kills: 8, Terms: 2, Freezes: 2, Crashes: 2})
		add("idle", storm.Config{Rows: "W7", Events: 400, Rate: 40})
		add("large", storm.Config{Rows: "W8", Events: 600, Rate: 40, Kills: 2})
		add("mixed", storm.Config{Rows: "W5 W6", Events: 1500, Rate: 100, Kills: 3, Crashes: 1, Traps: []string{"slot dropped", "slot dropped"}})
		trap("slot-dropped", "slot dropped")
		trap("slot-moved", "slot moved")
		trap("slot-lost", "slot lost")
		trap("publication", "publication dropped", "publication made anew", "table put back")
		add("identity", storm.Config{Rows: "W4 W5 W6", Events: 300, Rate: 40, Traps: []string{"identity full", "table made anew", "identity back"}})
		trap("restored", "restored")
		if source == "postgres-15" {
			trap("promoted", "promoted")
			trap("cluster", "another cluster")
			trap("cluster-18", "cluster of 18")
		} else {
			trap("promoted", "promoted with slot")
		}
	}
	return list
}

// small is a storm of a few seconds.
func small(bin, source string) storm.Config {
	c := storm.Config{Binary: bin, Source: source, Events: 1500, Writers: 4, Backlog: 1500, Refuse: true}
	if source != "sqlite" {
		c.Server = shared
	}
	return c
}

// shared is the PostgreSQL of the small storms.
var shared *servers.PG

// counts are the storms that show which fail points there are to visit: long ones, in
// which leaves of the outbox are emptied, and ones as short as those of the points.
func counts(planted string) []trial {
	var list []trial
	for _, source := range []string{"sqlite", "postgres-18"} {
		c := small(planted, source)
		c.Point = "count"
		list = append(list, trial{Name: "brief-" + source, Storm: c})
		c.Events, c.Rate = 8000, 500
		list = append(list, trial{Name: "count-" + source, Storm: c})
	}
	open := small(planted, "sqlite")
	open.Point, open.Open = "count", true
	list = append(list, trial{Name: "brief-open", Storm: open})
	c := small(planted, "sqlite")
	c.Point, c.Sinks, c.Olders = "count", []string{"kafka", "kafka-plain", "redis", "rabbitmq", "postgres", "sqlite"}, 1
	return append(list, trial{Name: "brief-sinks", Storm: c})
}

// points makes the storms of every fail point from how often each was visited in the
// storms of counts: killed at the first visit and at a later one, failing, and
// stalling.
func points(planted string, visits map[string]map[string]int, seed uint64) (list []trial, err error) {
	var missing []string
	for i, name := range sabotage.Points {
		var at []string
		for _, source := range []string{"sqlite", "postgres-18"} {
			if visits["count-"+source][name] > 0 {
				at = append(at, source)
			}
		}
		if visits["brief-sinks"][name] > 0 && pointSinks(name) != nil {
			at = []string{"sinks"}
		}
		if len(at) == 0 && visits["brief-open"][name] > 0 {
			at = []string{"open"}
		}
		if len(at) == 0 {
			missing = append(missing, name)
			continue
		}
		source := at[i%len(at)]
		rng := rand.New(rand.NewPCG(seed, hash(name)))
		// As often as a storm of its own is sure to come by.
		often := max(1, min(visits["brief-"+source][name]/2, 64))
		later := func() int { return 1 + rng.IntN(often) }
		for _, what := range []string{"kill@1", fmt.Sprintf("kill@%d", later()), fmt.Sprintf("error@%d", later()), fmt.Sprintf("stall@%d", later())} {
			c := small(planted, strings.NewReplacer("sinks", "sqlite", "open", "sqlite").Replace(source))
			c.Point, c.Open = name+":"+what, source == "open"
			if source == "sinks" {
				c.Sinks = pointSinks(name)
				if strings.HasPrefix(name, "placed.rew") {
					c.Olders = 1
				}
			}
			if visits["brief-"+source][name] == 0 {
				c.Events = 8000
			}
			t := trial{Name: strings.NewReplacer(":", "-", "@", "-").Replace("point-" + c.Point), Storm: c}
			if !slices.ContainsFunc(list, func(o trial) bool { return o.Name == t.Name }) {
				list = append(list, t)
			}
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("fail points that no storm visits: %s", strings.Join(missing, ", "))
	}
	return list, nil
}

// pointSinks are the destinations on real servers that visit a fail point of their own;
// nil: it is none of theirs.
func pointSinks(name string) []string {
	of, _, _ := strings.Cut(name, ".")
	return map[string][]string{
		"placed": {"redis", "postgres", "sqlite"}, "kafka": {"kafka", "kafka-plain"}, "redis": {"redis"}, "rabbitmq": {"rabbitmq"}, "sql": {"postgres"},
	}[of]
}

// mutant is a planted bug, the laws that have to name it, and a storm that brings
// it out.
type mutant struct {
	bug    string
	laws   string
	source string
	storm  func(*storm.Config)
}

var mutants = []mutant{
	{"any-answer", "I1", "sqlite", nil},
	{"change-place", "I1", "postgres-18", func(c *storm.Config) { rowsOnly(c); c.Kills = 6 }},
	{"confirm-fastest", "I1", "sqlite", func(c *storm.Config) { c.Loses, c.Refuse = 3, false }},
	{"cursor-early", "I1", "sqlite", func(c *storm.Config) { c.Kills = 6 }},
	{"delete-on-read", "I1", "sqlite", func(c *storm.Config) { c.Point = "ingest.append:late-kill@5" }},
	{"followers-flow", "I3", "sqlite", nil},
	{"id-cursor", "I1", "postgres-18", nil},
	{"ignore-fence", "I14", "postgres-18", func(c *storm.Config) { c.Nodes, c.Copies, c.Rounds, c.Refuse = 1, 3, 8, false }},
	{"max-floor", "I1", "sqlite", func(c *storm.Config) { c.Kills = 6 }},
	{"max-place", "I12", "postgres-18", func(c *storm.Config) { rowsOnly(c); c.Traps = []string{"slot moved"} }},
	{"new-id", "I7", "sqlite", func(c *storm.Config) { c.Kills = 2 }},
	{"no-confirm", "I1", "sqlite", func(c *storm.Config) { onSinks(c, "rabbitmq"); c.Strikes = 4 }},
	{"no-gap", "I12", "sqlite", func(c *storm.Config) { c.Loses, c.Refuse = 1, false }},
	{"no-last-commit", "I7", "sqlite", func(c *storm.Config) { c.Terms, c.Refuse = 6, false }},
	{"no-msg-id", "I7", "sqlite", func(c *storm.Config) { c.Point = "stream.stored:error@3" }},
	{"no-puback", "I1", "sqlite", func(c *storm.Config) { c.Nets, c.Refuse = 20, false }},
	{"no-rewind", "I1", "sqlite", func(c *storm.Config) { onSinks(c, "sqlite"); c.Olders = 2 }},
	{"no-window", "I7", "sqlite", func(c *storm.Config) { c.Point = "file.written:error@3" }},
	{"parallel-key", "I3", "sqlite", nil},
	{"place-apart", "I1", "sqlite", func(c *storm.Config) { onSinks(c, "postgres"); c.Point = "sql.commit:kill@5" }},
	{"place-later", "I7", "sqlite", func(c *storm.Config) { onSinks(c, "kafka"); c.Point = "kafka.committed:kill@4" }},
	{"placed-floor", "I1", "sqlite", func(c *storm.Config) { onSinks(c, "postgres"); c.Kills, c.Refuse = 8, true }},
	{"placed-unread", "I7", "sqlite", func(c *storm.Config) { onSinks(c, "redis"); c.Kills = 6 }},
	{"pos-early", "I1", "sqlite", func(c *storm.Config) { c.Point, c.Open = "bus.few:late-kill@5", true }},
	{"reversed", "I3", "postgres-18", nil},
	{"says-ok", "I11", "sqlite", func(c *storm.Config) { c.Outages, c.Refuse = 1, false }},
	{"short-write", "I1", "sqlite", nil},
	{"skip-batch", "I1", "sqlite", func(c *storm.Config) { c.Point = "ingest.append:error@5" }},
	{"toast-null", "I8", "postgres-18", rowsOnly},
	{"truncate-unread", "I1", "postgres-18", func(c *storm.Config) { c.Events, c.Kills = 12_000, 8 }},
}

// onSinks asks for destinations on real servers, of which all that is sent is taken.
func onSinks(c *storm.Config, names ...string) { c.Sinks, c.Refuse = names, false }

// rowsOnly asks for row changes, on a server of their own.
func rowsOnly(c *storm.Config) {
	c.Rows, c.Server, c.Events, c.Backlog, c.Rate, c.Refuse = "W6", nil, 300, 0, 60, false
}

// mutations makes the storms of the planted bugs.
func mutations(planted string) (list []trial) {
	for _, m := range mutants {
		c := small(planted, m.source)
		c.Env = []string{"OW_BUG=" + m.bug}
		c.Wait = 15 * time.Second // what is lost does not come later
		if m.storm != nil {
			m.storm(&c)
		}
		list = append(list, trial{Name: "mutant-" + m.bug, Storm: c, Caught: strings.Fields(m.laws), Tries: 3})
	}
	return list
}

// share starts the PostgreSQL of the small storms.
func share(context.Context) (end func() error, err error) {
	shared, err = servers.Launch(18, servers.Set("max_prepared_transactions", "0"), servers.Set("max_connections", "200"))
	if err != nil {
		return nil, err
	}
	return shared.Shutdown, nil
}

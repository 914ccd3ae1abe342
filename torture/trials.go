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
		{Name: "kill-sqlite", Storm: storm.Config{Binary: plain, Source: "sqlite", Events: 200_000, Kills: 100, Terms: 5, Freezes: 5}},
	}
}

// fences are the storms of several copies on one external bus, of its servers, of
// the network, and of lost answers.
func fences(plain string) []trial {
	return []trial{
		{Name: "fence-rounds", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 20_000, Rate: 200, Nodes: 1, Copies: 5, Rounds: 50, Wait: 2 * time.Minute}},
		{Name: "fence-kills", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 30_000, Nodes: 1, Copies: 3, Kills: 30, Freezes: 10, Terms: 5}},
		{Name: "cluster-deaths", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 20_000, Nodes: 3, Copies: 2, Deaths: 12, Kills: 5, Wait: 2 * time.Minute}},
		{Name: "network-postgres", Storm: storm.Config{Binary: plain, Source: "postgres-18", Events: 20_000, Nodes: 1, Copies: 2, Nets: 60, Wait: 2 * time.Minute}},
		{Name: "network-sqlite", Storm: storm.Config{Binary: plain, Source: "sqlite", Events: 10_000, Nets: 30}},
		{Name: "lost-answers", Storm: storm.Config{Binary: plain, Source: "sqlite", Events: 30_000, Rate: 300, Lost: 1000, Wait: 5 * time.Minute}},
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
	return list
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
			c := small(planted, source)
			c.Point = name + ":" + what
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
	{"confirm-fastest", "I1", "sqlite", func(c *storm.Config) { c.Loses, c.Refuse = 3, false }},
	{"cursor-early", "I1", "sqlite", func(c *storm.Config) { c.Kills = 6 }},
	{"delete-on-read", "I1", "sqlite", func(c *storm.Config) { c.Point = "ingest.append:late-kill@5" }},
	{"followers-flow", "I3", "sqlite", nil},
	{"id-cursor", "I1", "postgres-18", nil},
	{"ignore-fence", "I14", "postgres-18", func(c *storm.Config) { c.Nodes, c.Copies, c.Rounds, c.Refuse = 1, 3, 8, false }},
	{"max-floor", "I1", "sqlite", func(c *storm.Config) { c.Kills = 6 }},
	{"new-id", "I7", "sqlite", func(c *storm.Config) { c.Kills = 2 }},
	{"no-gap", "I12", "sqlite", func(c *storm.Config) { c.Loses, c.Refuse = 1, false }},
	{"no-last-commit", "I7", "sqlite", func(c *storm.Config) { c.Terms, c.Refuse = 6, false }},
	{"no-msg-id", "I7", "sqlite", func(c *storm.Config) { c.Point = "stream.stored:error@3" }},
	{"no-puback", "I1", "sqlite", func(c *storm.Config) { c.Nets, c.Refuse = 20, false }},
	{"no-window", "I7", "sqlite", func(c *storm.Config) { c.Point = "file.written:error@3" }},
	{"parallel-key", "I3", "sqlite", nil},
	{"pos-early", "I1", "sqlite", func(c *storm.Config) { c.Point = "bus.few:late-kill@5" }},
	{"reversed", "I3", "postgres-18", nil},
	{"says-ok", "I11", "sqlite", func(c *storm.Config) { c.Outages, c.Refuse = 1, false }},
	{"short-write", "I1", "sqlite", nil},
	{"skip-batch", "I1", "sqlite", func(c *storm.Config) { c.Point = "ingest.append:error@5" }},
	{"truncate-unread", "I1", "postgres-18", func(c *storm.Config) { c.Events, c.Kills = 12_000, 8 }},
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

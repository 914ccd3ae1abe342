package main

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/sabotage"
	"github.com/onewrite/onewrite/internal/servers"
)

// planted runs some of the trials of the program with fail points and planted bugs.
func planted(t *testing.T, trials func(bin string) []trial) {
	servers.Postgres(t, 18) // skips where it is not installed
	bin, err := build(t.Context(), t.TempDir(), true)
	if err != nil {
		t.Fatal(err)
	}
	end, err := share(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	}()
	dir, err := os.MkdirTemp("", "onewrite-trials")
	if err != nil {
		t.Fatal(err)
	}
	list := trials(bin)
	results, err := (&series{dir: dir, seed: 1, parallel: 2, out: t.Output()}).run(t.Context(), list)
	if err == nil {
		err = verdicts(results)
	}
	if err != nil {
		t.Fatalf("%v; recorded in %s", err, dir)
	}
	if len(results) != len(list) || len(list) < 4 {
		t.Errorf("%d results of %d trials", len(results), len(list))
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

// A few of the fail points; torture points visits them all.
func TestShortPoints(t *testing.T) {
	planted(t, func(bin string) (list []trial) {
		for _, p := range []string{
			"postgres-18 postgres.truncated:kill@1", "sqlite sqlite.delete:kill@2", "sqlite delivery.parked:kill@1", "postgres-18 bus.pack:stall@1",
		} {
			source, point, _ := strings.Cut(p, " ")
			c := small(bin, source)
			c.Point, c.Wait, c.Events, c.Backlog = point, 2*time.Minute, 600, 400
			list = append(list, trial{Name: strings.NewReplacer(":", "-", "@", "-").Replace(point), Storm: c})
		}
		return list
	})
}

// A few of the planted bugs; torture mutants runs them all.
func TestShortMutants(t *testing.T) {
	planted(t, func(bin string) (list []trial) {
		for _, m := range mutations(bin) {
			if slices.Contains([]string{"mutant-no-gap", "mutant-skip-batch", "mutant-id-cursor", "mutant-pos-early", "mutant-max-place"}, m.Name) {
				if m.Storm.Rows == "" {
					m.Storm.Events, m.Storm.Backlog = 800, 600
				}
				list = append(list, m)
			}
		}
		return list
	})
}

// Every planted bug has a storm that looks for it, or is one that only the
// simulation of package pipeline can bring out.
func TestEveryBugIsLookedFor(t *testing.T) {
	simulated := []string{"ack-early", "count-outage", "followers-lost", "probe-failed-only"}
	for _, bug := range sabotage.Bugs {
		stormed := slices.ContainsFunc(mutants, func(m mutant) bool { return m.bug == bug })
		if stormed == slices.Contains(simulated, bug) {
			t.Errorf("bug %s: in a storm %v", bug, stormed)
		}
	}
	if len(mutants) < 16 {
		t.Errorf("only %d mutants", len(mutants))
	}
}

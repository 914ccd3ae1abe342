package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/onewrite/onewrite/torture/storm"
)

// kind is a series of trials with a command of its own.
type kind struct {
	name, short string
	parallel    int // how many of its storms run at once
	planted     bool
	run         func(ctx context.Context, s *series, bin string) ([]*result, error)
}

var all = []kind{
	{"kill", "A million events on PostgreSQL and 200,000 on SQLite, 100 SIGKILLs each", 1, false, plain(kills)},
	{"fence", "Copies, freezes, partitions, servers of the bus that die, lost answers", 1, false, plain(fences)},
	{"sinks", "Every destination on its real server, which is killed too", 1, false, plain(realSinks)},
	{"traps", "The bus lost, put back, damaged, without room", 1, false, plain(traps)},
	{"rows", "Row changes of the PostgreSQL log: every copy of a table equals the table", 2, false, plain(rows)},
	{"points", "A kill, a failure and a stall at every fail point", 2, true, everyPoint},
	{"mutants", "Planted bugs, each of which a law has to name", 2, true, plain(mutations)},
}

func plain(trials func(bin string) []trial) func(context.Context, *series, string) ([]*result, error) {
	return func(ctx context.Context, s *series, bin string) ([]*result, error) { return s.run(ctx, trials(bin)) }
}

// everyPoint finds out which points are visited, and then visits each.
func everyPoint(ctx context.Context, s *series, bin string) ([]*result, error) {
	visits := map[string]map[string]int{}
	for _, t := range counts(bin) {
		dir := filepath.Join(s.dir, t.Name)
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
		t.Storm.Dir, t.Storm.Seed = dir, s.seed
		r, err := storm.Run(ctx, t.Storm)
		if err != nil {
			return nil, err
		}
		if !r.OK() {
			return nil, fmt.Errorf("%s without a fault:\n%v", t.Name, r)
		}
		if visits[t.Name], err = storm.Visits(dir); err != nil {
			return nil, err
		}
	}
	list, err := points(bin, visits, s.seed)
	if err != nil {
		return nil, err
	}
	return s.run(ctx, list)
}

// do runs a kind in the folder of a series.
func (k *kind) do(ctx context.Context, s series) ([]*result, error) {
	bin, err := build(ctx, s.dir, k.planted)
	if err != nil {
		return nil, err
	}
	s.parallel = k.parallel
	if k.planted {
		end, err := share(ctx)
		if err != nil {
			return nil, err
		}
		defer func() {
			if err := end(); err != nil {
				fmt.Fprintln(s.out, err)
			}
		}()
	}
	fmt.Fprintf(s.out, "torture %s --seed %d --dir %s\n", k.name, s.seed, s.dir)
	return k.run(ctx, &s, bin)
}

func (k kind) command() *cobra.Command {
	return seriesCommand(k.name, k.short, func(ctx context.Context, s series) ([]*result, error) { return k.do(ctx, s) })
}

// allCommand runs every kind and prints one table.
func allCommand() *cobra.Command {
	return seriesCommand("all", "All of it, with one table at the end", func(ctx context.Context, s series) (list []*result, err error) {
		for _, k := range all {
			results, err := k.do(ctx, s)
			list = append(list, results...)
			if err != nil {
				return list, err
			}
		}
		return list, nil
	})
}

func seriesCommand(name, short string, run func(context.Context, series) ([]*result, error)) *cobra.Command {
	s := series{out: os.Stderr}
	c := &cobra.Command{
		Use: name, Short: short, Args: cobra.NoArgs,
		Long: short + `.

What was as expected is kept in --dir and not run again for the same program, so
an interrupted series goes on where it was. The table at the end is Markdown. The
exit code is 0 if all was as expected, else 1.`,
		Example: "  torture " + name + " --dir torture-runs",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.seed == 0 {
				s.seed = rand.Uint64() >> 1
			}
			results, err := run(cmd.Context(), s)
			table(os.Stdout, results)
			return errors.Join(err, verdicts(results))
		},
	}
	c.Flags().StringVar(&s.dir, "dir", "torture-runs", "where results and recordings go")
	c.Flags().StringSliceVar(&s.only, "only", nil, "run those only whose names have one of these in them")
	c.Flags().Uint64Var(&s.seed, "seed", 0, "what is drawn is drawn from it; 0 draws one and prints it")
	return c
}

// table prints a line for each trial; those of points and mutants are many and
// alike.
func table(w io.Writer, results []*result) {
	fmt.Fprintln(w, "| storm | verdict | events | faults | arrived again | takeover p99 | quiet after | took |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, r := range results {
		if r == nil {
			continue
		}
		events, faults, again, takeover, lag := "", "", "", "", ""
		if p := r.Report; p != nil {
			events = fmt.Sprint(p.Events)
			var list []string
			for _, kind := range slices.Sorted(maps.Keys(p.Faults)) {
				list = append(list, fmt.Sprintf("%d %s", p.Faults[kind], kind))
			}
			faults = strings.Join(list, ", ")
			list = nil
			for _, sink := range slices.Sorted(maps.Keys(p.Repeats)) {
				list = append(list, fmt.Sprintf("%s %d", sink, p.Repeats[sink]))
			}
			again = strings.Join(list, ", ")
			if len(p.Takeovers) > 0 {
				takeover = fmt.Sprintf("%.1f s", p.Takeover(99).Seconds())
			}
			lag = fmt.Sprintf("%.1f s", p.Lag.Seconds())
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %.0f s |\n", r.Name, r.Says, events, faults, again, takeover, lag, r.Took.Seconds())
	}
}

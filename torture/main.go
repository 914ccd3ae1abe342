// Command torture runs onewrite under load, kills, freezes and cuts it, and
// judges what came of it. It is not part of what is shipped.
package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/onewrite/onewrite/torture/history"
	"github.com/onewrite/onewrite/torture/storm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use: "torture", Short: "Storms for onewrite, and a history checker that can fail",
		SilenceUsage: true, SilenceErrors: true,
	}
	c.AddCommand(runCommand(), checkCommand())
	for _, k := range all {
		c.AddCommand(k.command())
	}
	c.AddCommand(allCommand())
	return c
}

func runCommand() *cobra.Command {
	cfg := storm.Config{Log: os.Stderr}
	c := &cobra.Command{
		Use: "run", Short: "Run a storm and judge it", Args: cobra.NoArgs,
		Long: `Writers commit transfers and their events, independent clients record what
arrives, and onewrite is killed, asked to stop and frozen in the middle. What was
recorded stays in --dir. The exit code is 0 if every law held, else 1.`,
		Example: "  torture run --source postgres-18 --events 20000 --kills 10 --crashes 2\n  torture run --source sqlite --seed 7",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Seed == 0 {
				cfg.Seed = rand.Uint64()
			}
			if cfg.Dir == "" {
				cfg.Dir = filepath.Join(os.TempDir(), "onewrite-torture", time.Now().Format("20060102-150405"))
			}
			if cfg.Binary == "" {
				bin, err := build(cmd.Context(), cfg.Dir, cfg.Point != "")
				if err != nil {
					return err
				}
				cfg.Binary = bin
			}
			fmt.Fprintf(os.Stderr, "torture run --source %s --events %d --seed %d, recorded in %s\n", cfg.Source, cfg.Events, cfg.Seed, cfg.Dir)
			r, err := storm.Run(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return verdict(r)
		},
	}
	flags(c, &cfg)
	return c
}

func checkCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check DIR", Short: "Judge a run that was recorded", Args: cobra.ExactArgs(1), Example: "  torture check storms/20260102-150405",
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := history.Check(args[0])
			if err != nil {
				return err
			}
			return verdict(r)
		},
	}
}

func verdict(r *history.Report) error {
	fmt.Print(r)
	if !r.OK() {
		return errors.New("a law was broken; what was recorded is kept")
	}
	return nil
}

// flags are the fields of a storm.
func flags(c *cobra.Command, cfg *storm.Config) {
	f := c.Flags()
	f.StringVar(&cfg.Source, "source", "sqlite", "sqlite, postgres-15 or postgres-18")
	for _, n := range []struct {
		to         *int
		name, help string
		value      int
	}{
		{&cfg.Events, "events", "committed events to write, at least", 2000},
		{&cfg.Writers, "writers", "concurrent writers", 8},
		{&cfg.Rate, "rate", "transactions a second, about; 0: as many as the database takes", 0},
		{&cfg.Backlog, "backlog", "events that are written before onewrite starts", 0},
		{&cfg.Nodes, "nodes", "servers of an external bus: 1 or 3; 0 for the embedded one", 0},
		{&cfg.Copies, "copies", "copies of onewrite on one configuration; more than one need --nodes", 1},
		{&cfg.Kills, "kills", "SIGKILLs of onewrite", 0},
		{&cfg.Terms, "terms", "SIGTERMs of onewrite", 0},
		{&cfg.Freezes, "freezes", "SIGSTOPs of onewrite", 0},
		{&cfg.Crashes, "crashes", "immediate restarts of PostgreSQL", 0},
		{&cfg.Nets, "nets", "faults of the network between onewrite and another program", 0},
		{&cfg.Outages, "outages", "times that the webhook cannot be reached for 13 s", 0},
		{&cfg.Deaths, "deaths", "SIGKILLs of a server of the external bus", 0},
		{&cfg.Rounds, "rounds", "times that the copy which works is frozen or cut off", 0},
		{&cfg.Lost, "lost", "lost answers of each sink", 0},
		{&cfg.Loses, "loses", "times that the folder of the bus is lost", 0},
		{&cfg.Returns, "returns", "times that an older copy of the folder of the bus is put back", 0},
		{&cfg.Flips, "flips", "times that bytes in the folder of the bus are changed", 0},
		{&cfg.Strikes, "strikes", "SIGKILLs of a server that destinations of --sink write to", 0},
		{&cfg.Olders, "olders", "times that the table of --sink sqlite is put back from an older copy", 0},
		{&cfg.Fills, "fills", "times that the disk of the bus is full", 0},
	} {
		f.IntVar(n.to, n.name, n.value, n.help)
	}
	f.BoolVar(&cfg.Kafka, "kafka", false, "the Kafka of --sink kafka is the bus")
	f.BoolVar(&cfg.Pushed, "pushed", false, "read the outbox from the log; PostgreSQL only")
	f.StringVar(&cfg.Rows, "rows", "", "row changes beside the events, of PostgreSQL: W4 to W8, for instance \"W4 W5 W6\"")
	f.IntVar(&cfg.Large, "large", 200_000, "rows of a transaction of W8")
	f.StringArrayVar(&cfg.Traps, "trap", nil, "what is done to slot, publication and server, with --rows: "+strings.Join(storm.Traps(), ", "))
	f.StringArrayVar(&cfg.Sinks, "sink", nil, "a destination on a real server, in place of the stream and the file: "+strings.Join(storm.Targets(), ", "))
	f.BoolVar(&cfg.Refuse, "refuse", false, "the webhook, and --sink postgres, refuse some events until the end")
	f.StringVar(&cfg.Point, "point", "", "what happens at a fail point: name:kill@1 (kill, late-kill, error, stall)")
	f.StringArrayVar(&cfg.Env, "env", nil, "more for the environment of onewrite: OW_BUG=name")
	f.DurationVar(&cfg.Wait, "wait", time.Minute, "how long all may take to become quiet")
	f.Uint64Var(&cfg.Seed, "seed", 0, "what is drawn is drawn from it; 0 draws one and prints it")
	f.StringVar(&cfg.Dir, "dir", "", "the folder of the run (default: a new one under the temporary folder)")
	f.StringVar(&cfg.Binary, "binary", "", "the onewrite to torture (default: built from this module)")
	f.BoolVar(&cfg.Idle, "idle", false, "never run onewrite: a run that has to fail")
}

// build makes the program that is tortured; one with fail points and planted bugs
// in it if planted is set.
func build(ctx context.Context, dir string, planted bool) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	name, args := "onewrite", []string{"build", "-trimpath", "-buildvcs=false"}
	if planted {
		name, args = "onewrite-owbug", append(args, "-tags", "owbug")
	}
	bin, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "-o", bin, "github.com/onewrite/onewrite/cmd/onewrite")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build onewrite: %w: %s", err, out)
	}
	return bin, nil
}

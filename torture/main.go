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
				bin, err := build(cmd.Context(), cfg.Dir)
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
	f := c.Flags()
	f.StringVar(&cfg.Source, "source", "sqlite", "sqlite, postgres-15 or postgres-18")
	f.IntVar(&cfg.Events, "events", 2000, "committed events to write, at least")
	f.IntVar(&cfg.Kills, "kills", 5, "SIGKILLs of onewrite")
	f.IntVar(&cfg.Terms, "terms", 0, "SIGTERMs of onewrite")
	f.IntVar(&cfg.Freezes, "freezes", 0, "SIGSTOPs of onewrite")
	f.IntVar(&cfg.Crashes, "crashes", 0, "immediate restarts of PostgreSQL")
	f.IntVar(&cfg.Writers, "writers", 8, "concurrent writers")
	f.Uint64Var(&cfg.Seed, "seed", 0, "what is drawn is drawn from it; 0 draws one and prints it")
	f.StringVar(&cfg.Dir, "dir", "", "the folder of the run (default: a new one under the temporary folder)")
	f.StringVar(&cfg.Binary, "binary", "", "the onewrite to torture (default: built from this module)")
	f.BoolVar(&cfg.Idle, "idle", false, "never run onewrite: a run that has to fail")
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

// build makes the program that is tortured.
func build(ctx context.Context, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	bin, err := filepath.Abs(filepath.Join(dir, "onewrite"))
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/onewrite/onewrite/cmd/onewrite")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build onewrite: %w: %s", err, out)
	}
	return bin, nil
}

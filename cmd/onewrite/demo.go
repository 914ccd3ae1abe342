package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/onewrite/onewrite/examples/shop"
)

func (a *app) demo() *cobra.Command {
	var o shop.Options
	c := &cobra.Command{
		Use: "demo", Short: "The 3 a.m. story: the same load and the same faults, without and with onewrite", Args: cobra.NoArgs,
		Long: `An order service with stock and five consumers, each with its own store. Act
one writes twice, as most code does, while requests fail, processes die and 200
buyers want the last console. Act two is the same load under the same faults
with onewrite. Both are counted from the consumers' own stores. Needs no server.
Exit code 1: act one showed no damage, or act two did.`,
		Example: "  onewrite demo\n  onewrite demo --orders 10000 --seed 7 --keep\n  onewrite demo --postgres postgres://localhost/demo --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			o.Self, o.Out, o.JSON = self, cmd.OutOrStdout(), a.json
			report, err := shop.Demo(cmd.Context(), o)
			if err != nil {
				return err
			}
			if a.json {
				if err := printJSON(cmd.OutOrStdout(), report); err != nil {
					return err
				}
			}
			if err := report.Verdict(); err != nil {
				return fmt.Errorf("the demo did not show what it should: %w", err)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.Postgres, "postgres", "", "run on this PostgreSQL database (`URL`) instead of SQLite")
	f.StringVar(&o.Dir, "dir", "", "work in this `folder` instead of a temporary one")
	f.Uint64Var(&o.Seed, "seed", 1, "the load and the faults follow from it")
	f.IntVar(&o.Orders, "orders", 0, "orders to place in each act (0: the default)")
	f.BoolVar(&o.Keep, "keep", false, "leave everything running for a look, until Ctrl-C")
	a.jsonFlag(c)
	return c
}

// demoChild runs the demo's own processes.
func demoChild() *cobra.Command {
	return &cobra.Command{
		Use: "demo-child", Short: "A process of the demo", DisableFlagParsing: true, Hidden: true,
		Example: "  onewrite demo",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(errors.New("demo-child is started by onewrite demo"))
			}
			return shop.Child(cmd.Context(), args, os.Stdin, os.Stdout)
		},
	}
}

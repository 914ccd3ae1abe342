package main

import (
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/relay"
)

// version is set by the release build; otherwise the module's version tells.
var version = ""

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

const defaultFile = "onewrite.yaml"

// app is what the commands share: the flags of the root.
type app struct {
	file   string
	listen string
	json   bool
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "onewrite",
		Short: "Commit once. Everything else follows.",
		Long: `onewrite carries what your application committed to every other system:
in order, within milliseconds, exactly once in effect.

Your application writes its rows and its events in one transaction; onewrite
reads the events, keeps them on a durable bus and delivers them to webhooks,
files and brokers, each at its own pace.`,
		Example: `  onewrite demo                     the 3 a.m. story, on an embedded database
  onewrite init                     write a commented onewrite.yaml
  onewrite migrate                  create the outbox
  onewrite run                      move events until stopped`,
		Version:       versionText(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("onewrite {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.PersistentFlags().StringVarP(&a.file, "config", "c", defaultFile, "the configuration `file`")
	root.AddCommand(a.run(), a.init(), a.check(), a.migrate(), a.doctor(), a.demo(), a.status(), a.tail(), a.reload(),
		a.parked(), a.replay(), a.version())
	root.AddCommand(hidden(demoChild()))
	for _, c := range root.Commands() {
		strictArgs(c)
	}
	return root
}

// strictArgs makes wrong arguments an error of usage.
func strictArgs(c *cobra.Command) {
	if args := c.Args; args != nil {
		c.Args = func(cmd *cobra.Command, list []string) error {
			if err := args(cmd, list); err != nil {
				return usage(fmt.Errorf("%w; see %s --help", err, cmd.CommandPath()))
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		strictArgs(sub)
	}
}

func hidden(c *cobra.Command) *cobra.Command {
	c.Hidden = true
	return c
}

// load reads the configuration and prints its warnings on stderr.
func (a *app) load() (*config.Config, error) {
	cfg, warnings, err := relay.Load(a.file)
	for _, w := range warnings {
		fmt.Fprintln(os.Stderr, "warning:", w)
	}
	if err != nil {
		return nil, usage(err)
	}
	if a.listen != "" {
		cfg.Listen = a.listen
		if err := relay.Validate(cfg); err != nil {
			return nil, usage(err)
		}
	}
	return cfg, nil
}

func (a *app) listenFlag(c *cobra.Command) {
	c.Flags().StringVar(&a.listen, "listen", "", "`address` of the API, instead of listen: in the file (\"off\" for none)")
}

func (a *app) jsonFlag(c *cobra.Command) {
	c.Flags().BoolVar(&a.json, "json", false, "print JSON")
}

// newLog writes structured logs to stderr as the configuration says.
func newLog(cfg *config.Config) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Log.Level)) // the configuration was validated; empty is info
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Example: "  onewrite version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "onewrite", versionText())
			return nil
		},
	}
}

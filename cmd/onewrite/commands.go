package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/relay"
)

func (a *app) run() *cobra.Command {
	c := &cobra.Command{
		Use: "run", Short: "Move events until stopped", Args: cobra.NoArgs,
		Long: `Reads the sources, keeps the events on the bus and delivers them to the
destinations, until SIGTERM or Ctrl-C; then what is under way is finished.
SIGHUP, where there is one, reloads the destinations.`,
		Example: "  onewrite run\n  onewrite run -c /etc/onewrite.yaml --listen 127.0.0.1:9000",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			// Whoever reads standard output may end: that is an error of a destination.
			signal.Ignore(syscall.SIGPIPE)
			log := newLog(cfg)
			r := relay.New(cfg, relay.Options{ConfigPath: a.file, Listen: a.listen, Version: versionText(), Log: log})
			go reloadOnHangup(cmd.Context(), r)
			go frugal(cmd.Context(), len(cfg.Destinations) > 0)
			return r.Run(cmd.Context())
		},
	}
	a.listenFlag(c)
	return c
}

// reloadOnHangup reloads at each SIGHUP until ctx ends.
func reloadOnHangup(ctx context.Context, r *relay.Relay) {
	hup := make(chan os.Signal, 1)
	if hangup == nil {
		return
	}
	signal.Notify(hup, hangup)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			_, _ = r.Reload(ctx, nil) // the log has its outcome
		}
	}
}

func (a *app) init() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "init", Short: "Write a commented configuration file", Args: cobra.NoArgs,
		Example: "  onewrite init\n  onewrite init -c shop.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			mode := os.O_CREATE | os.O_WRONLY | os.O_EXCL
			if force {
				mode = os.O_CREATE | os.O_WRONLY | os.O_TRUNC
			}
			f, err := os.OpenFile(a.file, mode, 0o600)
			if errors.Is(err, os.ErrExist) {
				return fmt.Errorf("%s is there already; choose another name with -c, or overwrite it with --force", a.file)
			} else if err != nil {
				return err
			}
			_, err = io.WriteString(f, config.Template())
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "wrote %s\nnext:  onewrite check -c %s   onewrite migrate -c %s   onewrite run -c %s\n", a.file, a.file, a.file, a.file)
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "overwrite the file")
	return c
}

func (a *app) check() *cobra.Command {
	var schema bool
	var event string
	c := &cobra.Command{
		Use: "check", Short: "Check the configuration file", Args: cobra.NoArgs,
		Long: `Reads the file and reports every problem at once with line, column and cure.
Exit code 2: the file cannot be used; 3: it can, with warnings; 0: all is well.

With --event, shows what each destination would get of events: one CloudEvents JSON
object a line, as a file destination writes them. Exit code 3: a destination would
refuse one.`,
		Example: "  onewrite check\n  onewrite check --event sample.json\n  onewrite check --schema > onewrite.schema.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if event != "" {
				return a.checkEvents(cmd, event)
			}
			if schema {
				_, err := cmd.OutOrStdout().Write(config.Schema())
				return err
			}
			cfg, warnings, err := relay.Load(a.file)
			var problems config.Problems
			if err != nil && !errors.As(err, &problems) {
				return usage(err)
			}
			problems = append(problems, warnings...)
			if a.json {
				if problems == nil {
					problems = config.Problems{} // an empty list, and no null
				}
				if err := printJSON(cmd.OutOrStdout(), problems); err != nil {
					return err
				}
			} else {
				for _, p := range problems {
					if p.Warning {
						fmt.Fprint(cmd.OutOrStdout(), "warning: ")
					}
					fmt.Fprintln(cmd.OutOrStdout(), p)
				}
			}
			switch {
			case err != nil:
				return exitCode{2, nil}
			case len(warnings) > 0:
				return exitCode{3, nil}
			}
			if !a.json {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: ok, %s, %s\n", a.file, count(len(cfg.Sources), "source"), count(len(cfg.Destinations), "destination"))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema for editors")
	c.Flags().StringVar(&event, "event", "", "show what each destination would get of the events in this `file`; - reads them from the standard input")
	c.MarkFlagsMutuallyExclusive("schema", "event")
	a.jsonFlag(c)
	return c
}

// snapshotFlags says what is wrong with --snapshot and --where.
func snapshotFlags(o relay.MigrateOptions, other bool) error {
	switch {
	case len(o.Snapshot) > 0 && other:
		return errors.New("--snapshot goes with neither --inbox nor --down; leave one of them out")
	case o.Where != "" && len(o.Snapshot) == 0:
		return errors.New("--where is the condition of the rows of --snapshot; add --snapshot public.orders, or leave --where out")
	}
	return nil
}

func (a *app) migrate() *cobra.Command {
	var o relay.MigrateOptions
	var print, down, inbox bool
	var database string
	c := &cobra.Command{
		Use: "migrate", Short: "Create or update the outbox in every source's database", Args: cobra.NoArgs,
		Long: `Creates the outbox tables, and what captures the row changes of tables: (for
postgres a publication, for sqlite triggers), as the role that the source's url
names. It may be repeated, and run twice at once.
With --print it changes nothing and prints the SQL with the grants for the
application's and the relay's role, for a database administrator to run.

With --inbox it makes the tables of the consumer's side (package inbox) instead:
in every source's database, or in the one that --database names, for which no
configuration is needed.`,
		Example: "  onewrite migrate\n  onewrite migrate --print --app-role shop --relay-role onewrite | psql -v ON_ERROR_STOP=1 shop\n  onewrite migrate --snapshot public.orders --where \"placed > now() - interval '7 days'\"\n  onewrite migrate --down\n  onewrite migrate --inbox --database postgres://billing@localhost/billing --app-role billing",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := snapshotFlags(o, inbox || down); err != nil {
				return usage(err)
			}
			switch {
			case database != "" && !inbox:
				return usage(errors.New("--database goes with --inbox only: the outbox is made in the sources of the configuration; add --inbox, or leave --database out"))
			case inbox && down:
				return usage(errors.New("--down does not go with --inbox: it removes the outbox; drop an inbox by SQL: DROP SCHEMA onewrite_inbox CASCADE, or in SQLite its tables onewrite_inbox_seen and onewrite_inbox_watermark"))
			case inbox && o.RelayRole != "":
				return usage(errors.New("--relay-role does not go with --inbox: onewrite run uses no inbox; name the consumer's role with --app-role"))
			}
			if database != "" {
				if o.AppRole != "" && !strings.Contains(database, "://") {
					return usage(errNoRoles)
				}
				return relay.MigrateInboxAt(cmd.Context(), cmd.OutOrStdout(), database, o, print)
			}
			cfg, err := a.load()
			if inbox && errors.Is(err, fs.ErrNotExist) {
				return usage(fmt.Errorf("%w; the inbox of one database needs no file: onewrite migrate --inbox --database URL", err))
			}
			if err != nil {
				return err
			}
			if o.AppRole != "" || o.RelayRole != "" {
				if err := roles(cmd.ErrOrStderr(), cfg, o.Source); err != nil {
					return err
				}
			}
			switch {
			case inbox:
				return relay.MigrateInbox(cmd.Context(), cmd.OutOrStdout(), cfg, o, print)
			case print:
				return relay.PrintSchema(cmd.Context(), cmd.OutOrStdout(), cfg, o)
			case down:
				return relay.Unmigrate(cmd.Context(), cmd.OutOrStdout(), cfg, o)
			}
			return relay.Migrate(cmd.Context(), cmd.OutOrStdout(), cfg, o)
		},
	}
	f := c.Flags()
	f.BoolVar(&print, "print", false, "print the SQL, change nothing")
	f.BoolVar(&down, "down", false, "remove the outbox; refused while it holds undelivered events")
	f.BoolVar(&inbox, "inbox", false, "make the tables of package inbox instead")
	f.StringVar(&database, "database", "", "with --inbox: a postgres:// `url` or an SQLite file")
	f.StringSliceVar(&o.Snapshot, "snapshot", nil, "make a snapshot of these captured `tables` once more (postgres)")
	f.StringVar(&o.Where, "where", "", "with --snapshot: of the rows that meet this SQL `condition` (default: what snapshot_where says; true is all)")
	f.BoolVar(&o.Force, "force", false, "with --down: remove undelivered events too")
	f.StringVar(&o.AppRole, "app-role", "", "grant the application's `role` what it needs (postgres)")
	f.StringVar(&o.RelayRole, "relay-role", "", "grant the relay's `role` what it needs (postgres)")
	f.StringVar(&o.Source, "source", "", "only this `source`")
	return c
}

var errNoRoles = errors.New("--app-role and --relay-role are for PostgreSQL: SQLite has no roles, who may write the file may write the outbox; leave them out")

// roles refuses names of roles where no source that is chosen has any, and warns of
// each that has none.
func roles(w io.Writer, cfg *config.Config, only string) error {
	if _, there := cfg.Sources[only]; only != "" && !there {
		return nil // another error says so
	}
	var none []string
	has := false
	for _, name := range sortedKeys(cfg.Sources) {
		if only != "" && only != name {
			continue
		}
		if cfg.Sources[name].Type == "postgres" {
			has = true
		} else {
			none = append(none, name)
		}
	}
	if !has {
		return usage(errNoRoles)
	}
	for _, name := range none {
		fmt.Fprintf(w, "warning: source %s is SQLite, which has no roles: nothing is granted there\n", name)
	}
	return nil
}

// count writes a number with its noun.
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprint(n, " ", noun)
}

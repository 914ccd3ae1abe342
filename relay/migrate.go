package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/masking"
)

// MigrateOptions steer the making of the outbox tables.
type MigrateOptions struct {
	// Source limits it to one source; empty means all.
	Source string
	// AppRole and RelayRole are granted what they need (PostgreSQL).
	AppRole, RelayRole string
	// Snapshot asks for a snapshot of captured tables once more, by name or pattern
	// (PostgreSQL).
	Snapshot []string
	// Where is the condition of the rows of these snapshots, in SQL; empty: as
	// snapshot_where says.
	Where string
	// Force lets Unmigrate drop undelivered events.
	Force bool
}

// each calls do for the chosen sources in the order of their names.
func each(cfg *Config, o MigrateOptions, do func(name string, s config.Source) error) error {
	own := *cfg
	if err := own.Validate(checks...); err != nil {
		return err
	}
	cfg = &own
	if _, ok := cfg.Sources[o.Source]; o.Source != "" && !ok {
		return fmt.Errorf("the configuration has no source %q", o.Source)
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(cfg.Sources)) {
		if o.Source != "" && name != o.Source {
			continue
		}
		if err := do(name, cfg.Sources[name]); err != nil {
			errs = append(errs, fmt.Errorf("source %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Migrate creates or updates the outbox of each source and says on w what it
// did. It may be repeated and run twice at once.
func Migrate(ctx context.Context, w io.Writer, cfg *Config, o MigrateOptions) error {
	return each(cfg, o, func(name string, s config.Source) error {
		var applied []string
		var err error
		switch s.Type {
		case "postgres":
			var po postgres.MigrateOptions
			if po, err = postgresOptions(name, cfg, s, o); err == nil {
				applied, err = postgres.Migrate(ctx, s.URL.Reveal(), po)
			}
		case "sqlite":
			applied, err = sqlite.Migrate(ctx, s.Path, sqliteOptions(cfg, s))
		}
		for _, step := range applied {
			fmt.Fprintf(w, "%s: %s\n", name, step)
		}
		if err == nil && len(applied) == 0 {
			fmt.Fprintf(w, "%s: up to date\n", name)
		}
		return err
	})
}

// PrintSchema writes the SQL that Migrate would run, with the grants.
func PrintSchema(ctx context.Context, w io.Writer, cfg *Config, o MigrateOptions) error {
	return each(cfg, o, func(name string, s config.Source) error {
		var text string
		var err error
		switch s.Type {
		case "postgres":
			var po postgres.MigrateOptions
			if po, err = postgresOptions(name, cfg, s, o); err == nil {
				text, err = postgres.SchemaWithCapture(ctx, s.URL.Reveal(), po)
			}
		case "sqlite":
			path := ""
			if len(s.Tables) > 0 { // their triggers follow from the tables' columns
				path = s.Path
			}
			text, err = sqlite.Schema(ctx, path, sqliteOptions(cfg, s))
		}
		if err == nil {
			_, err = fmt.Fprintf(w, "-- source %s\n%s\n", name, text)
		}
		return err
	})
}

// Unmigrate removes the outbox of each source. It refuses while one holds
// undelivered events, unless forced.
func Unmigrate(ctx context.Context, w io.Writer, cfg *Config, o MigrateOptions) error {
	return each(cfg, o, func(name string, s config.Source) error {
		var err error
		switch s.Type {
		case "postgres":
			err = postgres.Rollback(ctx, s.URL.Reveal(), o.Force)
		case "sqlite":
			err = sqlite.Rollback(ctx, s.Path, o.Force)
		}
		if err == nil {
			fmt.Fprintf(w, "%s: outbox removed\n", name)
		}
		return err
	})
}

// MigrateInbox makes the tables of package inbox in the database of each source, for
// consumers that keep theirs there, and says on w what it did; with print it writes
// the SQL instead. It may be repeated and run twice at once.
func MigrateInbox(ctx context.Context, w io.Writer, cfg *Config, o MigrateOptions, print bool) error {
	return each(cfg, o, func(name string, s config.Source) error {
		database := s.Path
		if s.Type == "postgres" {
			database = s.URL.Reveal()
		}
		return inboxOf(ctx, w, name, database, cmp.Or(o.AppRole, s.Roles.App), print)
	})
}

// MigrateInboxAt is MigrateInbox for one consumer's database: a postgres:// URL, or
// the path of an SQLite file.
func MigrateInboxAt(ctx context.Context, w io.Writer, database string, o MigrateOptions, print bool) error {
	return inboxOf(ctx, w, shown(database), database, o.AppRole, print)
}

// shown is the name of a database without its password.
func shown(database string) string {
	if strings.Contains(database, "://") {
		return config.Redact(database)
	}
	return database
}

func inboxOf(ctx context.Context, w io.Writer, name, database, role string, print bool) (err error) {
	scheme, _, isURL := strings.Cut(database, "://")
	pg := isURL && (scheme == "postgres" || scheme == "postgresql")
	switch {
	case isURL && !pg:
		return fmt.Errorf("an inbox is in PostgreSQL or SQLite; write postgres://user@host:5432/database, or the path of a file, not %s://", scheme)
	case pg && print:
		_, err = fmt.Fprintf(w, "-- inbox in %s\n%s", name, inbox.Schema(inbox.Postgres, role))
	case print:
		_, err = fmt.Fprintf(w, "-- inbox in %s\n%s", name, inbox.Schema(inbox.SQLite, ""))
	case pg:
		err = postgres.MigrateInbox(ctx, database, role)
	default:
		err = sqlite.MigrateInbox(ctx, database)
	}
	if err == nil && !print {
		_, err = fmt.Fprintf(w, "%s: the inbox is there\n", name)
	}
	return err
}

func postgresOptions(name string, cfg *Config, s config.Source, o MigrateOptions) (postgres.MigrateOptions, error) {
	masks, err := masking.Parse(s.Columns)
	if err != nil {
		return postgres.MigrateOptions{}, fmt.Errorf("columns: %w", err)
	}
	return postgres.MigrateOptions{
		MaxEvent: int(cfg.MaxEvent),
		AppRole:  cmp.Or(o.AppRole, s.Roles.App), RelayRole: cmp.Or(o.RelayRole, s.Roles.Relay),
		Capture: postgres.Capture{Source: name, Tables: s.Tables, LogURL: s.LogURL.Reveal(), Messages: s.Messages, DDL: s.DDL, Pushed: s.Outbox == "log",
			Masks: masks, HoldGap: s.OnGap == "stop", Snapshot: s.Snapshot != "never", Where: s.SnapshotWhere, Again: o.Snapshot, AgainWhere: o.Where},
	}, nil
}

func sqliteOptions(cfg *Config, s config.Source) sqlite.MigrateOptions {
	return sqlite.MigrateOptions{MaxEvent: int(cfg.MaxEvent), Tables: s.Tables, Snapshot: s.Snapshot != "never"}
}

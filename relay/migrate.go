package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/internal/config"
)

// MigrateOptions steer the making of the outbox tables.
type MigrateOptions struct {
	// Source limits it to one source; empty means all.
	Source string
	// AppRole and RelayRole are granted what they need (PostgreSQL).
	AppRole, RelayRole string
	// Force lets Unmigrate drop undelivered events.
	Force bool
}

// each calls do for the chosen sources in the order of their names.
func each(cfg *Config, o MigrateOptions, do func(name string, s config.Source) error) error {
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
			applied, err = postgres.Migrate(ctx, s.URL.Reveal(), postgresOptions(cfg, s, o))
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
			text = postgres.Schema(postgresOptions(cfg, s, o))
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

func postgresOptions(cfg *Config, s config.Source, o MigrateOptions) postgres.MigrateOptions {
	return postgres.MigrateOptions{
		MaxEvent: int(cfg.MaxEvent),
		AppRole:  cmp.Or(o.AppRole, s.Roles.App), RelayRole: cmp.Or(o.RelayRole, s.Roles.Relay),
	}
}

func sqliteOptions(cfg *Config, s config.Source) sqlite.MigrateOptions {
	return sqlite.MigrateOptions{MaxEvent: int(cfg.MaxEvent), Tables: s.Tables, Snapshot: s.Snapshot != "never"}
}

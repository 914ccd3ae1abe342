package relay

import (
	"context"
	"crypto/tls"
	"log/slog"
	"strings"

	"github.com/onewrite/onewrite/adapter/sqlsink"
	"github.com/onewrite/onewrite/internal/config"
)

// sqlConfig is a destination whose tables follow those of the sources.
func sqlConfig(name string, c config.Destination, t *tls.Config, log *slog.Logger) sqlsink.Config {
	return sqlsink.Config{
		Kind: c.Type, URL: c.URL.Reveal(), Path: c.Path, TLS: t, Destination: name, Table: c.Table, Messages: c.Messages,
		NoCreate: c.NoCreate, Fixed: c.Columns == "fixed", IgnoreTruncate: c.NoTruncate, Logger: log,
	}
}

func openSQL(ctx context.Context, name string, c config.Destination, log *slog.Logger) (*sqlsink.Sink, error) {
	t, err := c.TLS.Build()
	if err != nil {
		return nil, err
	}
	return sqlsink.Open(ctx, sqlConfig(name, c, t, log))
}

// captured are the tables whose rows a destination may get, as far as the file names
// them.
func captured(cfg *Config) (list []sqlsink.SourceTable) {
	for _, s := range cfg.Sources {
		for _, table := range s.Tables {
			schema, name, ok := strings.Cut(table, ".")
			switch {
			case !ok && s.Type == config.Postgres:
				schema, name = "public", table
			case !ok:
				schema, name = "main", table
			}
			if name == "*" {
				continue // which tables these are only the source knows
			}
			topic := name
			if s.Type == config.Postgres {
				topic = schema + "." + name
			}
			list = append(list, sqlsink.SourceTable{Schema: schema, Table: name, Topic: topic})
		}
	}
	return list
}

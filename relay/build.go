package relay

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/file"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/adapter/webhook"
	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/masking"
	"github.com/onewrite/onewrite/pipeline"
)

// openSource opens one source at a position. known is the source's for as long as this
// process runs. trouble is told what is wrong beside the
// reading of the outbox, importing how many rows of an import wait, snapshotting how far
// the snapshot of a table is, nil: not under way.
func openSource(ctx context.Context, name string, c config.Source, busID string, pos onewrite.Pos, log *slog.Logger, known *postgres.Known,
	trouble func(name, problem string), importing func(name string, rows int), snapshotting func(table string, now *dashboard.Snapshot)) (onewrite.Source, error) {
	switch c.Type {
	case "postgres":
		masks, err := masking.Parse(c.Columns)
		if err != nil {
			return nil, fmt.Errorf("source %s: columns: %w", name, err)
		}
		return postgres.OpenSource(ctx, postgres.Config{
			Name: name, URL: c.URL.Reveal(), BusID: busID, Logger: log, Imports: imports(c), Trouble: trouble, Importing: importing,
			Tables: c.Tables, Messages: c.Messages, DDL: c.DDL, Pushed: c.Outbox == "log", LogURL: c.LogURL.Reveal(), Stream: c.CatchUp == "stream", Toast: c.Toast, FlushWithin: c.FlushWithin,
			LocalOnly: c.Origins == "local", HoldGap: c.OnGap == "stop", Masks: masks, MaskKey: c.MaskKey.Reveal(), Known: known, MaxRetained: int64(c.MaxRetained),
			Snapshotting: func(table string, p postgres.Progress) { snapshotting(table, progress(p)) },
		}, pos)
	case "sqlite":
		return opened(sqlite.Open(ctx, sqlite.Config{Name: name, Path: c.Path, BusID: busID, Logger: log}, pos))
	}
	return nil, fmt.Errorf("source %s: unknown type %q", name, c.Type)
}

// progress is how far a snapshot is, in the status; nil: it is done.
func progress(p postgres.Progress) *dashboard.Snapshot {
	if p.Done {
		return nil
	}
	now := dashboard.Snapshot{Rows: p.Rows, About: p.About}
	if left := p.Left.Seconds(); left >= 0 {
		now.LeftSeconds = &left
	}
	return &now
}

// imports are those of a source in the order of their names.
func imports(c config.Source) (list []postgres.Import) {
	for _, name := range slices.Sorted(maps.Keys(c.Import)) {
		i := c.Import[name]
		list = append(list, postgres.Import{
			Name: name, Table: i.Table, Where: i.Where, Order: i.Order, Keep: i.Rows == "keep", Every: i.Every,
			ID: i.Columns.ID, Topic: i.Columns.Topic, Key: i.Columns.Key, Payload: i.Columns.Payload, Type: i.Columns.EventType,
			ContentType: i.Columns.ContentType, Headers: i.Columns.Headers,
		})
	}
	return list
}

// opened keeps a nil pointer from becoming an interface that is not nil.
func opened[S onewrite.Source](s S, err error) (onewrite.Source, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// newDelivery builds the delivery of a destination: how many writes at once and
// how much in each follows from what its sink can do.
func newDelivery(name string, c config.Destination, cfg *Config, sources []string, log *slog.Logger) *pipeline.Delivery {
	bus, maxEvent := cfg.Bus, int(cfg.MaxEvent)
	from, _ := c.Start() // the configuration was validated
	d := &pipeline.Delivery{
		Interest: onewrite.Interest{Name: name, Sources: sources, Topics: c.Topics, From: from},
		Attempts: c.Retry.Attempts,
		Shape:    shapeOf(c, maxEvent),
		OnReject: pipeline.OnReject(c.OnReject),
		Retry:    pipeline.Backoff{First: c.Retry.First, Max: c.Retry.Max},
	}
	log = log.With("destination", name)
	switch c.Type {
	case "webhook":
		d.Concurrency = c.Concurrency
		if c.Batch.On() {
			d.BatchCount, d.BatchBytes, d.Linger = c.Batch.Count, int(c.Batch.Bytes), c.Batch.Linger
		}
		d.Open = func(context.Context) (onewrite.Sink, error) {
			t, err := c.TLS.Build()
			if err != nil {
				return nil, err
			}
			return openedSink(webhook.New(webhookConfig(c, t, log)))
		}
	case "file":
		d.Concurrency, d.BatchCount = 1, onewrite.MaxBatch
		d.Open = func(context.Context) (onewrite.Sink, error) {
			return openedSink(file.Open(file.Config{Path: c.Path, Rotate: int64(c.Rotate), Format: c.Format, Compression: c.Compression, Logger: log}))
		}
	case "nats":
		d.Concurrency, d.BatchCount = 1, 256
		d.Open = func(ctx context.Context) (onewrite.Sink, error) {
			t, err := c.TLS.Build()
			if err != nil {
				return nil, err
			}
			return openedSink(nats.NewSink(ctx, natsSink(name, c, bus, t, log)))
		}
	case config.RabbitMQ:
		deliverRabbit(d, c, log)
	case config.Redis:
		deliverRedis(d, name, c, log)
	case config.Kafka:
		deliverKafka(d, name, c, log)
	case config.Postgres, config.MySQL, config.SQLite:
		d.Concurrency, d.BatchCount = 1, onewrite.MaxBatch // one at a time, in the order of the log
		d.Open = func(ctx context.Context) (onewrite.Sink, error) { return openedSink(openSQL(ctx, name, c, log)) }
	case "email":
		d.Concurrency, d.BatchCount = 1, mailBatch(c)
		d.Open = func(context.Context) (onewrite.Sink, error) { return openEmail(name, c, log) }
	case "s3":
		d.Concurrency, d.BatchCount, d.BatchBytes, d.Linger = 1, c.Roll.Count, int(c.Roll.Bytes), c.Roll.Linger
		d.Window, d.WindowBytes = max(8192, 2*c.Roll.Count), max(32<<20, 2*int(c.Roll.Bytes)) // so that one can be whole
		d.Open = func(ctx context.Context) (onewrite.Sink, error) { return openS3(ctx, name, c, log) }
	case config.Elasticsearch, config.OpenSearch, config.Meilisearch:
		searchDelivery(d, name, c, len(sources), log)
	}
	return d
}

func openedSink[S onewrite.Sink](s S, err error) (onewrite.Sink, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

func webhookConfig(c config.Destination, t *tls.Config, log *slog.Logger) webhook.Config {
	w := webhook.Config{URL: c.URL.Reveal(), AllowPrivate: c.AllowPrivate, Timeout: c.Timeout, TLS: t, Batch: c.Batch.On(), Logger: log, Headers: map[string]string{}}
	for _, s := range c.Secret {
		w.Secrets = append(w.Secrets, s.Reveal())
	}
	for k, v := range c.Headers {
		w.Headers[k] = v.Reveal()
	}
	return w
}

func natsSink(name string, c config.Destination, bus config.Bus, t *tls.Config, log *slog.Logger) nats.SinkConfig {
	s := nats.SinkConfig{URL: c.URL.Reveal(), Creds: c.Creds, NKey: c.NKey, User: c.User, Password: c.Password.Reveal(), TLS: t, Subject: c.Subject, Core: c.Core, Logger: log, Destination: name}
	if nats.SameServer(c.URL.Reveal(), bus.URL.Reveal()) {
		s.Reserved = bus.Name
	}
	return s
}

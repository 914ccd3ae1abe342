package relay

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/schemas"
	"github.com/onewrite/onewrite/pipeline"
)

// deliverKafka gives a delivery its sink: one transaction at a time, or as many writes
// as an idempotent producer has under way.
func deliverKafka(d *pipeline.Delivery, name string, c config.Destination, log *slog.Logger) {
	d.Concurrency, d.BatchCount = 1, onewrite.MaxBatch
	if c.Idempotent {
		d.Concurrency = 4
	}
	d.Open = func(ctx context.Context) (onewrite.Sink, error) {
		t, err := c.TLS.Build()
		if err != nil {
			return nil, err
		}
		k, err := kafkaSink(name, c, t, 0, log)
		if err != nil {
			return nil, err
		}
		if c.Idempotent {
			return openedSink(kafka.NewIdempotent(ctx, k))
		}
		return openedSink(kafka.New(ctx, k))
	}
}

// kafkaSink is what the adapter takes of a destination.
func kafkaSink(name string, c config.Destination, t *tls.Config, maxEvent int, log *slog.Logger) (kafka.Config, error) {
	k := kafka.Config{
		Brokers: c.Brokers, Destination: name, Idempotent: c.Idempotent, Compression: cmp.Or(c.Compression, "lz4"), NoCreate: c.NoTopics,
		Partitions: c.Partitions, Replication: c.Replication, Tombstones: c.Tombstones, Places: c.Places, TLS: t,
		AcceptRepartitioned: c.Repartitioned == "accept", MaxEvent: maxEvent, Logger: log,
	}
	k.SASL = kafkaLogin(c.SASL)
	if !c.Schemas() {
		return k, nil
	}
	of, err := c.Registry.TLS.Build()
	if err != nil {
		return k, fmt.Errorf("registry: %w", err)
	}
	k.Schemas = schemasOf(c, of, log)
	return k, nil
}

// schemasOf is what the encoder of payloads takes of a destination.
func schemasOf(c config.Destination, t *tls.Config, log *slog.Logger) *schemas.Config {
	r := c.Registry
	s := &schemas.Config{Format: c.Format, Subject: r.Subject, User: r.User, Password: r.Password.Reveal(), NoRegister: r.NoRegister, TLS: t, Logger: log}
	for u := range strings.SplitSeq(r.URL, ",") {
		s.URLs = append(s.URLs, strings.TrimSpace(u))
	}
	return s
}

// kafkaLogin is how to log in, if at all.
func kafkaLogin(s *config.SASL) *kafka.SASL {
	if s == nil {
		return nil
	}
	return &kafka.SASL{Mechanism: s.Mechanism, User: s.User, Password: s.Password.Reveal(), Token: s.Token.Reveal()}
}

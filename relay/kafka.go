package relay

import (
	"crypto/tls"
	"log/slog"

	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/config"
)

// kafkaSink is what the adapter takes of a destination.
func kafkaSink(name string, c config.Destination, t *tls.Config, maxEvent int, log *slog.Logger) kafka.Config {
	k := kafka.Config{
		Brokers: c.Brokers, Destination: name, Topic: c.Topic, Idempotent: c.Idempotent, Compression: c.Compression, NoCreate: c.NoCreate,
		Partitions: c.Partitions, Replication: c.Replication, Tombstones: c.Tombstones, Places: c.Places, TLS: t,
		AcceptRepartitioned: c.Repartitioned == "accept", MaxEvent: maxEvent, Logger: log,
	}
	if s := c.SASL; s != nil {
		k.SASL = &kafka.SASL{Mechanism: s.Mechanism, User: s.User, Password: s.Password.Reveal(), Token: s.Token.Reveal()}
	}
	return k
}

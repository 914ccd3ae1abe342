package relay

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/places"
	"github.com/onewrite/onewrite/internal/retention"
)

// bus is what the relay asks of a bus beside [onewrite.Bus]; the adapters say what each
// method does.
type bus interface {
	onewrite.Bus
	ID() string
	Durable() bool
	Destinations(ctx context.Context) ([]string, error)
	Floors(ctx context.Context, log string) (map[string]uint64, error)
	View(name string, sources []string) places.View
	Unparked(ctx context.Context, name, log string, floor uint64) (uint64, error)
	Rewind(ctx context.Context, name string, from onewrite.From) error
	Forget(ctx context.Context, name string) error
	Retain(ctx context.Context, log string, confirmed uint64, keep retention.Keep) (retention.Usage, error)
	Sole(source string, last, floor uint64, over bool) error
	Close() error
}

var (
	_ bus = (*nats.Bus)(nil)
	_ bus = (*kafka.Bus)(nil)
)

// openBus opens the bus of a configuration.
func openBus(ctx context.Context, cfg *Config, log *slog.Logger, vanished func(destination, source string, from, to uint64), damaged func(what string)) (bus, error) {
	if cfg.Bus.Type == config.Kafka {
		c, err := kafkaBus(cfg)
		if err != nil {
			return nil, fmt.Errorf("bus: %w", err)
		}
		c.Logger, c.Vanished = log, vanished
		return openedBus(kafka.OpenBus(ctx, c))
	}
	c, err := natsBus(cfg)
	if err != nil {
		return nil, fmt.Errorf("bus: %w", err)
	}
	c.Logger, c.Vanished, c.Damaged = log, vanished, damaged
	return openedBus(nats.Open(ctx, c))
}

// openedBus keeps a nil of an adapter's type from looking like a bus.
func openedBus[B bus](b B, err error) (bus, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

func natsBus(cfg *Config) (nats.Config, error) {
	b := cfg.Bus
	c := nats.Config{
		Dir: b.Dir, URL: b.URL.Reveal(), Name: b.Name, Creds: b.Creds, NKey: b.NKey, User: b.User, Password: b.Password.Reveal(),
		Listen: b.Listen, Replicas: b.Replicas, MaxBytes: int64(b.MaxSize), MaxEvent: int(cfg.MaxEvent),
	}
	var err error
	if c.URL != "" {
		c.Dir = ""
		c.TLS, err = b.TLS.Build()
	}
	return c, err
}

func kafkaBus(cfg *Config) (kafka.BusConfig, error) {
	b := cfg.Bus
	t, err := b.TLS.Build()
	return kafka.BusConfig{
		Brokers: b.Brokers, SASL: kafkaLogin(b.SASL), TLS: t, Name: b.Name, Replicas: b.Replicas,
		MaxBytes: int64(b.MaxSize), MaxEvent: int(cfg.MaxEvent),
	}, err
}

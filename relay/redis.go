package relay

import (
	"context"
	"crypto/tls"
	"log/slog"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/pipeline"
)

// deliverRedis gives a delivery its sink. One write at a time: the server does one
// thing after the other anyway, and a large write costs it one sync.
func deliverRedis(d *pipeline.Delivery, name string, c config.Destination, log *slog.Logger) {
	d.Concurrency, d.BatchCount = 1, onewrite.MaxBatch
	d.Open = func(ctx context.Context) (onewrite.Sink, error) {
		t, err := c.TLS.Build()
		if err != nil {
			return nil, err
		}
		return redis.Open(ctx, redisConfig(name, c, t, log))
	}
}

func redisConfig(name string, c config.Destination, t *tls.Config, log *slog.Logger) redis.Config {
	return redis.Config{URL: c.URL.Reveal(), User: c.User, Password: c.Password.Reveal(), TLS: t, Destination: name,
		Stream: c.Stream, MaxLen: int64(c.MaxLen), Commands: c.Commands, Logger: log}
}

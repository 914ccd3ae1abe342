package relay

import (
	"context"
	"crypto/tls"
	"log/slog"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/rabbitmq"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/pipeline"
)

// deliverRabbit gives a delivery its sink. A write is under way at a time, with many
// confirms outstanding in it.
func deliverRabbit(d *pipeline.Delivery, c config.Destination, log *slog.Logger) {
	d.Concurrency, d.BatchCount = 1, 256
	d.Open = func(ctx context.Context) (onewrite.Sink, error) {
		t, err := c.TLS.Build()
		if err != nil {
			return nil, err
		}
		return openedSink(rabbitmq.NewSink(ctx, rabbitConfig(c, t, log)))
	}
}

func rabbitConfig(c config.Destination, t *tls.Config, log *slog.Logger) rabbitmq.Config {
	r := rabbitmq.Config{URL: c.URL.Reveal(), TLS: t, Exchange: c.Exchange, RoutingKey: c.RoutingKey, Optional: c.Optional, Timeout: c.Timeout, Logger: log}
	if c.Declare == nil {
		return r
	}
	r.Declare = &rabbitmq.Topology{Exchange: c.Declare.Exchange, Queues: map[string]rabbitmq.Queue{}}
	for name, q := range c.Declare.Queues {
		r.Declare.Queues[name] = rabbitmq.Queue{Type: q.Type, Bind: q.Bind, SingleActive: q.SingleActive}
	}
	return r
}

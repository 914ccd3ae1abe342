package relay

import (
	"crypto/tls"
	"log/slog"

	"github.com/onewrite/onewrite/adapter/rabbitmq"
	"github.com/onewrite/onewrite/internal/config"
)

func rabbitConfig(c config.Destination, t *tls.Config, log *slog.Logger) rabbitmq.Config {
	r := rabbitmq.Config{URL: c.URL.Reveal(), TLS: t, Exchange: c.Exchange, RoutingKey: c.RoutingKey, Optional: c.Optional, Timeout: c.Timeout, Logger: log}
	if c.Declare == nil {
		return r
	}
	r.Declare = &rabbitmq.Topology{Exchange: c.Declare.Exchange, Queues: map[string]rabbitmq.Queue{}}
	for name, q := range c.Declare.Queues {
		r.Declare.Queues[name] = rabbitmq.Queue{Type: q.Type, Bind: q.Bind}
	}
	return r
}

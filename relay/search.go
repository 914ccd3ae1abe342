package relay

import (
	"context"
	"crypto/tls"
	"log/slog"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/search"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/pipeline"
)

// searchDelivery sets up a delivery to Elasticsearch, OpenSearch or Meilisearch. One write at a
// time: the server works on the documents of a request at once.
func searchDelivery(d *pipeline.Delivery, name string, c config.Destination, sources int, log *slog.Logger) {
	d.Concurrency, d.BatchCount = 1, onewrite.MaxBatch
	d.Open = func(ctx context.Context) (onewrite.Sink, error) {
		t, err := c.TLS.Build()
		if err != nil {
			return nil, err
		}
		if c.Type == config.Meilisearch {
			return openedSink(search.NewMeilisearch(ctx, searchConfig(name, c, sources, t, log)))
		}
		return openedSink(search.New(ctx, searchConfig(name, c, sources, t, log)))
	}
}

func searchConfig(name string, c config.Destination, sources int, t *tls.Config, log *slog.Logger) search.Config {
	return search.Config{URL: c.URL.Reveal(), User: c.User, Password: c.Password.Reveal(), APIKey: c.APIKey.Reveal(), TLS: t, Timeout: c.Timeout,
		Index: c.Index, ID: c.ID, Document: c.Document, Destination: name, Sources: sources, Logger: log}
}

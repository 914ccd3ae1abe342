package relay

import (
	"context"
	"crypto/tls"
	"log/slog"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/s3"
	"github.com/onewrite/onewrite/internal/config"
)

func openS3(ctx context.Context, name string, c config.Destination, log *slog.Logger) (onewrite.Sink, error) {
	t, err := c.TLS.Build()
	if err != nil {
		return nil, err
	}
	return openedSink(s3.New(ctx, s3Config(name, c, t, log)))
}

func s3Config(name string, c config.Destination, t *tls.Config, log *slog.Logger) s3.Config {
	return s3.Config{
		Bucket: c.Bucket, Prefix: c.Prefix, Destination: name, Region: c.Region, Endpoint: c.Endpoint, PathStyle: c.PathStyle,
		AccessKey: c.AccessKey.Reveal(), SecretKey: c.SecretKey.Reveal(), Format: c.Format, Compression: c.Compression, Timeout: c.Timeout, TLS: t, Logger: log,
	}
}

package warm
import (
 _ "github.com/nats-io/nats-server/v2/server"
 _ "github.com/nats-io/nats.go/jetstream"
 _ "github.com/jackc/pgx/v5/stdlib"
 _ "github.com/jackc/pgx/v5/pgxpool"
 _ "modernc.org/sqlite"
 _ "github.com/spf13/cobra"
 _ "go.yaml.in/yaml/v3"
 _ "github.com/prometheus/client_golang/prometheus/promhttp"
 _ "github.com/cloudevents/sdk-go/v2"
 _ "pgregory.net/rapid"
 _ "github.com/rogpeppe/go-internal/testscript"
 _ "github.com/standard-webhooks/standard-webhooks/libraries/go"
 _ "golang.org/x/sync/errgroup"
 _ "github.com/gofrs/flock"
 _ "golang.org/x/tools/go/packages"
)

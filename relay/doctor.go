package relay

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/onewrite/onewrite/adapter/email"
	"github.com/onewrite/onewrite/adapter/file"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/adapter/rabbitmq"
	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/adapter/s3"
	"github.com/onewrite/onewrite/adapter/search"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/adapter/sqlsink"
	"github.com/onewrite/onewrite/adapter/webhook"
	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/pipeline"
)

// Finding is one thing that [Doctor] looked at: how bad it is, of what, what was
// found, and what cures it.
type Finding = diagnosis.Finding

// DoctorOptions steer an examination.
type DoctorOptions struct {
	// ConfigPath is the file that an instance at the listen address should run with;
	// empty: any.
	ConfigPath string
	// Timeout is for each subject; default 10 s. All are examined at once.
	Timeout time.Duration
}

// atOnce bounds the subjects that are examined at once.
const atOnce = 64

// subject is something to examine.
type subject struct {
	name    string
	examine func(ctx context.Context) []Finding
}

// Doctor examines the bus, each source, each destination and the listen address of a
// configuration that was validated. It changes nothing, and may run beside a relay
// and before anything was made. The findings come in the order of the subjects.
func Doctor(ctx context.Context, cfg *Config, o DoctorOptions) []Finding {
	subjects := subjectsOf(cfg, o)
	found := make([][]Finding, len(subjects))
	turns := make(chan struct{}, atOnce)
	done := make(chan struct{}, len(subjects))
	for i, s := range subjects {
		go func() {
			turns <- struct{}{}
			found[i] = s.within(ctx, cmp.Or(o.Timeout, 10*time.Second))
			<-turns
			done <- struct{}{}
		}()
	}
	for range subjects {
		<-done
	}
	all := slices.Concat(found...)
	if s := instance(ctx, cfg, o.ConfigPath); s != nil {
		correct(all, s.Sources)
	}
	return all
}

// correct says of a source whose session is not there, although onewrite runs, why that is.
func correct(found []Finding, sources map[string]dashboard.Source) {
	for i := range found {
		f := &found[i]
		name, ok := strings.CutPrefix(f.Subject, "source ")
		s := sources[name]
		if !ok || f.Check != "reader" || !strings.HasPrefix(f.Text, "nobody reads") || s.State == pipeline.OK || s.LastError == "" {
			continue
		}
		f.Severity, f.Cure = diagnosis.Problem, "onewrite status"
		f.Text = fmt.Sprintf("onewrite runs, and the source is in state %s: %s", s.State, s.LastError)
		if text, cure, ok := strings.Cut(f.Text, "; cure: "); ok { // a gap's, which may be longer than its last words
			f.Text, f.Cure = text, cure
		} else if at := strings.LastIndex(f.Text, "; "); at > 0 {
			f.Text, f.Cure = f.Text[:at], f.Text[at+2:]
		}
	}
}

// grace is what an examination has for its last words when its time is over.
const grace = time.Second

// within examines until the time is over. What then does not return, a file system
// or a resolver that hangs, is left alone.
func (s subject) within(ctx context.Context, timeout time.Duration) []Finding {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer := make(chan []Finding, 1)
	go func() { answer <- s.examine(ctx) }()
	over := time.NewTimer(timeout + grace)
	defer over.Stop()
	var found []Finding
	select {
	case found = <-answer:
	case <-over.C:
		found = []Finding{{Severity: diagnosis.Problem, Check: "time", Text: fmt.Sprintf("nothing was learned within %v: something does not answer", timeout), Cure: "onewrite doctor --timeout " + (6 * timeout).String()}}
	}
	for i := range found {
		found[i].Subject = s.name
	}
	return found
}

// subjectsOf lists what there is to examine.
func subjectsOf(cfg *Config, o DoctorOptions) []subject {
	names := slices.Sorted(maps.Keys(cfg.Sources))
	list := []subject{{"bus", func(ctx context.Context) []Finding { return examineBus(ctx, cfg, names) }}}
	for _, name := range names {
		s := cfg.Sources[name]
		list = append(list, subject{"source " + name, func(ctx context.Context) []Finding {
			if s.Type == config.Postgres {
				o, err := postgresOptions(name, cfg, s, MigrateOptions{})
				if err != nil {
					return []Finding{unreadable(err)}
				}
				return postgres.Examine(ctx, s.URL.Reveal(), o, imports(s)...)
			}
			return sqlite.Examine(ctx, s.Path, sqliteOptions(cfg, s))
		}})
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Destinations)) {
		d := cfg.Destinations[name]
		list = append(list, subject{"destination " + name, func(ctx context.Context) []Finding { return examineDestination(ctx, name, d, cfg) }})
	}
	return append(list, subject{"listen", func(ctx context.Context) []Finding { return examineListen(ctx, cfg, o.ConfigPath) }})
}

func examineBus(ctx context.Context, cfg *Config, sources []string) []Finding {
	if cfg.Bus.Type == config.Kafka {
		c, err := kafkaBus(cfg)
		if err != nil {
			return []Finding{unreadable(err)}
		}
		return kafka.ExamineBus(ctx, c, sources)
	}
	c, err := natsBus(cfg)
	if err != nil {
		return []Finding{unreadable(err)}
	}
	found := nats.Examine(ctx, c, sources)
	if cfg.Bus.Listen != "" {
		found = append(found, examineBusListen(ctx, cfg.Bus))
	}
	return found
}

func examineDestination(ctx context.Context, name string, d config.Destination, cfg *Config) []Finding {
	if d.Type == config.File {
		return file.Examine(file.Config{Path: d.Path})
	}
	t, err := d.TLS.Build()
	if err != nil {
		return []Finding{unreadable(err)}
	}
	silent := slog.New(slog.DiscardHandler)
	switch d.Type {
	case config.NATS:
		n := natsSink(name, d, cfg.Bus, t, silent)
		n.MaxEvent = int(cfg.MaxEvent)
		return nats.ExamineSink(ctx, n, shapedTopics(d.Topic, d.Topics))
	case config.Postgres, config.MySQL, config.SQLite:
		return sqlsink.Examine(ctx, sqlConfig(name, d, t, silent), captured(cfg), d.Topics)
	case config.RabbitMQ:
		return rabbitmq.Examine(ctx, rabbitConfig(d, t, silent))
	case config.Redis:
		return redis.Examine(ctx, redisConfig(name, d, t, silent))
	case config.Kafka:
		k, err := kafkaSink(name, d, t, int(cfg.MaxEvent), silent)
		if err != nil {
			return []Finding{{Severity: diagnosis.Problem, Check: "tls", Text: err.Error(), Cure: "write the paths of files that can be read"}}
		}
		k.Topic = d.Topic // which is applied before an event comes to the sink
		return kafka.Examine(ctx, k, d.Topics)
	case config.Email:
		m, err := emailConfig(name, d, t, silent)
		if err != nil {
			return []Finding{{Severity: diagnosis.Problem, Check: "template", Text: err.Error(), Cure: "write the path of a file that can be read"}}
		}
		return email.Examine(ctx, m)
	case config.S3:
		return s3.Examine(ctx, s3Config(name, d, t, silent))
	case config.Meilisearch:
		return search.ExamineMeilisearch(ctx, searchConfig(name, d, 1, t, silent))
	case config.Elasticsearch, config.OpenSearch:
		return search.Examine(ctx, searchConfig(name, d, 1, t, silent), d.Topics)
	}
	return webhook.Examine(ctx, webhookConfig(d, t, silent))
}

// unreadable is about the files of certificates.
func unreadable(err error) Finding {
	return Finding{Severity: diagnosis.Problem, Check: "tls", Text: err.Error(), Cure: "give the path of PEM files that can be read"}
}

// shapedTopics are patterns of what a template makes of topics. Where that cannot be told
// exactly, they cover more.
func shapedTopics(template string, topics []string) []string {
	if template == "" {
		return topics
	}
	if len(topics) == 0 {
		topics = []string{">"}
	}
	var shaped []string
	for _, t := range topics {
		words := strings.Split(strings.ReplaceAll(template, "{topic}", t), ".")
		for i, w := range words {
			if w != "*" && strings.ContainsAny(w, "{*>") { // a value, or a pattern in a word
				words = append(words[:i], ">")
				break
			}
		}
		if t = strings.Join(words, "."); !slices.Contains(shaped, t) {
			shaped = append(shaped, t)
		}
	}
	return shaped
}

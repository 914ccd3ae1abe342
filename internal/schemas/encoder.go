package schemas

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/onewrite/onewrite"
)

// Config says which registry there is, and what to write by it.
type Config struct {
	// Format is avro, json-schema or protobuf.
	Format string
	// Subject says what names a subject: topic (TOPIC-value), record (the name of the
	// record) or topic-record (both, with - between). Default topic.
	Subject string
	// URLs are those of the registry; another one is asked if one cannot be reached.
	URLs []string
	// User and Password are for HTTP's basic authentication; empty: none.
	User, Password string
	// TLS is the client's configuration; nil: the system's authorities.
	TLS *tls.Config
	// NoRegister leaves the schemas of row changes to others.
	NoRegister bool
	// Logger is told of versions that are registered; nil discards that.
	Logger *slog.Logger
}

const (
	// requestTimeout bounds each request.
	requestTimeout = 5 * time.Second
	// fresh is how long the newest version of a subject of others is taken for that.
	fresh = time.Minute
	// maxSubjects and maxVersions bound what is remembered.
	maxSubjects = 1000
	maxVersions = 16
)

// form is one of the formats.
type form struct {
	kind sr.SchemaType
	// content is the media type of what is written, behind the five bytes.
	content string
	// keepsDropped: a version without a column would not be compatible, so a column
	// that the table lost stays in the schema, and is never there.
	keepsDropped bool
	parse        func(text string) (codec, error)
	derive       func(t *table, was codec) (string, error)
}

// codec writes payloads by one schema.
type codec interface {
	// append writes a payload; an error is a misfit.
	append(b []byte, p *payload) ([]byte, error)
	// table is what the schema says of a table; nil: onewrite has not made it.
	table() *table
}

// payload is what an event has.
type payload struct {
	name  string // the event's type
	data  []byte
	value any
	row   *row // nil: it is no row change
}

var forms = map[string]form{
	"avro": {
		kind: sr.TypeAvro, content: "application/avro",
		parse:  func(text string) (codec, error) { return orNil(parseAvro(text)) },
		derive: func(t *table, _ codec) (string, error) { return deriveAvro(t) },
	},
	"json-schema": {
		kind: sr.TypeJSON, content: "application/vnd.kafka.jsonschema", keepsDropped: true,
		parse:  func(text string) (codec, error) { return orNil(parseJSON(text)) },
		derive: func(t *table, _ codec) (string, error) { return deriveJSON(t) },
	},
	"protobuf": {
		kind: sr.TypeProtobuf, content: "application/protobuf",
		parse:  func(text string) (codec, error) { return orNil(parseProto(text)) },
		derive: deriveProto,
	},
}

// orNil keeps a nil pointer from becoming a codec that is not nil.
func orNil[C codec](c C, err error) (codec, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

// version is a schema with its id.
type version struct {
	id    int
	codec codec
}

// subject is what is remembered of one.
type subject struct {
	versions []*version // that onewrite made, the newest first
	latest   *version   // whoever made it; nil: not asked yet
	asked    time.Time
}

// Encoder writes payloads by schemas. It remembers ids, and is for many goroutines.
type Encoder struct {
	c        Config
	form     form
	cl       *sr.Client
	http     *http.Client
	turn     chan struct{} // holds one: whose turn it is
	subjects map[string]*subject
}

// New makes an encoder; it asks nothing of the registry yet.
func New(c Config) (*Encoder, error) {
	f, ok := forms[c.Format]
	if !ok {
		return nil, fmt.Errorf("format %q is unknown; write avro, json-schema or protobuf", c.Format)
	}
	if len(c.URLs) == 0 {
		return nil, errors.New("format " + c.Format + " needs a schema registry; write registry: {url: http://registry:8081}")
	}
	if c.Subject == "" {
		c.Subject = "topic"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: c.TLS, TLSHandshakeTimeout: requestTimeout,
		MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
	}
	e := &Encoder{c: c, form: f, http: &http.Client{Transport: transport, Timeout: requestTimeout}, turn: make(chan struct{}, 1), subjects: map[string]*subject{}}
	opts := []sr.ClientOpt{sr.HTTPClient(e.http), sr.URLs(c.URLs...), sr.UserAgent("onewrite")}
	if c.User != "" || c.Password != "" {
		opts = append(opts, sr.BasicAuth(c.User, c.Password))
	}
	var err error
	e.cl, err = sr.NewClient(opts...)
	return e, err
}

// Close ends idle connections.
func (e *Encoder) Close() { e.http.CloseIdleConnections() }

// Client is the client of the registry.
func (e *Encoder) Client() *sr.Client { return e.cl }

// Subjects asks for the names of all subjects.
func (e *Encoder) Subjects(ctx context.Context) ([]string, error) {
	names, err := e.cl.Subjects(ctx)
	if err != nil {
		return nil, e.told(err, "")
	}
	return names, nil
}

// Known reports whether a subject has a schema of the format; an error says that it has
// one that cannot be written by.
func (e *Encoder) Known(ctx context.Context, subject string) (bool, error) {
	v, err := e.newest(ctx, subject)
	return v != nil, err
}

// ContentType is the media type of what is written.
func (e *Encoder) ContentType() string { return e.form.content }

// Encode returns what stands for an event's data in a topic. An event without data stays
// without. Errors: [onewrite.ErrRejected], one with Answered, else an outage.
func (e *Encoder) Encode(ctx context.Context, topic string, ev *onewrite.Event) ([]byte, error) {
	if ev.Data == nil {
		return nil, nil
	}
	p, err := read(ev)
	if err != nil {
		return nil, err
	}
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	name := e.subjectOf(topic, ev, p)
	s := e.subjects[name]
	if s == nil {
		if len(e.subjects) >= maxSubjects {
			clear(e.subjects)
		}
		s = &subject{}
		e.subjects[name] = s
	}
	return e.encode(ctx, name, s, p)
}

// read takes an event's data apart.
func read(ev *onewrite.Event) (*payload, error) {
	if !isJSON(ev.ContentType) {
		return nil, refuse("the payload is %q, and schemas are for JSON; write it as JSON, or leave its topic out of the topics of the destination", ev.ContentType)
	}
	v, err := parse(ev.Data)
	if err != nil {
		return nil, refuse("%w; write it as JSON, or leave its topic out of the topics of the destination", err)
	}
	r, err := rowOf(ev, v)
	if err != nil {
		return nil, refuse("%w; a transform: in the destination can write it as text", err)
	}
	return &payload{name: ev.Type, data: ev.Data, value: v, row: r}, nil
}

// isJSON reports whether a media type is that of JSON.
func isJSON(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	return err == nil && (t == "application/json" || t == "text/json" || strings.HasSuffix(t, "+json"))
}

// subjectOf names the subject. The record of an event that is no row change is called by
// the event's type.
func (e *Encoder) subjectOf(topic string, ev *onewrite.Event, p *payload) string {
	record := ev.Type
	if p.row != nil {
		record = p.row.table.space + ".Envelope"
	}
	switch e.c.Subject {
	case "record":
		return record
	case "topic-record":
		return topic + "-" + record
	}
	return topic + "-value"
}

// encode writes by a schema that is known, else by the newest, else by one that follows
// from the event.
func (e *Encoder) encode(ctx context.Context, name string, s *subject, p *payload) ([]byte, error) {
	if p.row != nil {
		for _, v := range s.versions {
			if p.row.fits(v.codec.table(), e.keepsDropped()) {
				return e.write(name, v, p)
			}
		}
	}
	foreign := s.latest != nil && (p.row == nil || s.latest.codec.table() == nil)
	if foreign && time.Since(s.asked) < fresh {
		if out, err := e.write(name, s.latest, p); err == nil {
			return out, nil
		}
	}
	latest, err := e.newest(ctx, name)
	if err != nil {
		if foreign && outage(err) { // the id stays what it is
			if out, err := e.write(name, s.latest, p); err == nil {
				return out, nil
			}
		}
		return nil, err
	}
	s.latest, s.asked = latest, time.Now()
	if p.row != nil && (latest == nil || latest.codec.table() != nil) {
		if latest != nil && p.row.fits(latest.codec.table(), e.keepsDropped()) {
			s.keep(latest)
			return e.write(name, latest, p)
		}
		if latest != nil && latest.codec.table().space != p.row.table.space {
			return nil, refuse("subject %s has the rows of %s, and these are of %s; write registry: {subject: topic-record}, so that each table has a subject, or give them topics of their own",
				name, strings.TrimPrefix(latest.codec.table().space, ours), strings.TrimPrefix(p.row.table.space, ours))
		}
		if !e.c.NoRegister {
			v, err := e.register(ctx, name, latest, p.row)
			if err != nil {
				return nil, err
			}
			s.keep(v)
			return e.write(name, v, p)
		}
	}
	if latest == nil {
		return nil, e.none(name, p)
	}
	return e.write(name, latest, p)
}

// keepsDropped reports whether a column that the table lost is no reason for another
// version.
func (e *Encoder) keepsDropped() bool { return e.form.keepsDropped || e.c.NoRegister }

// keep remembers a version as the newest.
func (s *subject) keep(v *version) {
	s.versions = slices.Insert(s.versions, 0, v)
	if len(s.versions) > maxVersions {
		s.versions = s.versions[:maxVersions]
	}
}

// write puts the header before the payload.
func (e *Encoder) write(name string, v *version, p *payload) ([]byte, error) {
	var h sr.ConfluentHeader
	b, err := h.AppendEncode(make([]byte, 0, len(p.data)+16), v.id, nil)
	if err == nil {
		b, err = v.codec.append(b, p)
	}
	if err != nil {
		return nil, refuse("%w (schema %d of subject %s); register a schema that takes it, or make it fit: transform: in the destination", err, v.id, name)
	}
	return b, nil
}

// newest asks for the newest version; nil: there is none.
func (e *Encoder) newest(ctx context.Context, name string) (*version, error) {
	ss, err := e.cl.SchemaByVersion(ctx, name, -1)
	if notFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, e.told(err, name)
	}
	if ss.Type != e.form.kind {
		return nil, refuse("subject %s has schemas of %s, the destination writes format: %s; write the other format, another topic:, or name subjects in another way: registry: {subject: topic-record}",
			name, ss.Type, e.c.Format)
	}
	if len(ss.References) > 0 {
		return nil, refuse("schema %d of subject %s refers to others, which is not read; register it with all of them in one", ss.ID, name)
	}
	c, err := e.form.parse(ss.Schema.Schema)
	if err != nil {
		return nil, refuse("schema %d of subject %s cannot be read: %w; register one that can", ss.ID, name, err)
	}
	return &version{ss.ID, c}, nil
}

// register makes the schema of a row change, and has the registry judge it.
func (e *Encoder) register(ctx context.Context, name string, latest *version, r *row) (*version, error) {
	var was *table
	var before codec
	if latest != nil {
		before, was = latest.codec, latest.codec.table()
	}
	now := r.evolve(was, e.form.keepsDropped)
	text, err := e.form.derive(now, before)
	if err != nil {
		return nil, refuse("no schema follows from it: %w", err)
	}
	c, err := e.form.parse(text)
	if err == nil && (c.table() == nil || !r.fits(c.table(), e.form.keepsDropped)) {
		err = errors.New("the columns do not come out of it as they went in")
	}
	if err != nil {
		return nil, refuse("no schema follows from it: %w; transform: in the destination can write another payload", err)
	}
	id, err := e.cl.RegisterSchema(ctx, name, sr.Schema{Schema: text, Type: e.form.kind}, -1, -1)
	if err != nil {
		return nil, e.told(fmt.Errorf("%w%s", err, difference(was, now)), name)
	}
	e.c.Logger.Info("a schema is registered", "subject", name, "id", id, "table", r.table.space)
	return &version{id, c}, nil
}

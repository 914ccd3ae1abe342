package config

import "time"

// The structs below are the whole configuration. Their tags are the one table
// that decoding, unknown-key errors, defaults, the reference page and the JSON
// Schema are made from:
//
//	yaml     the key
//	as       "not": the struct stores the opposite of what is written
//	doc      the sentence of the reference page and of editors
//	default  the value of a key that is not written
//	unless   a sibling that, when set, takes the default away
//	for      the types that the key belongs to; absent: all
//	need     the types that cannot do without the key; "*" all
//	enum     the words allowed
//	range    the smallest and largest value, inclusive
//	kind     path: relative to the file's folder; url, pattern: see the checks
//	example  what an error's cure shows
//
// No value that means something is the zero value of a field with a default, so
// programs may leave fields empty and call [Config.Validate].

// Config is one instance of onewrite: what it reads, where it delivers, and the
// durable middle between.
type Config struct {
	Sources      map[string]Source      `yaml:"sources" need:"*" doc:"The databases to read, by name. The name becomes the event's source (/name)."`
	Destinations map[string]Destination `yaml:"destinations" doc:"The systems to deliver to, by name. Each has its own position: a slow one holds up no other."`
	Bus          Bus                    `yaml:"bus" doc:"The durable middle: an embedded NATS JetStream in a folder, or an external NATS cluster."`
	Listen       string                 `yaml:"listen" default:"127.0.0.1:8484" example:"127.0.0.1:8484" doc:"Address of the status, the API, health and metrics; off for none. An address that is not loopback needs token."`
	Token        Secret                 `yaml:"token" example:"${file:onewrite.token}" doc:"What clients of the API show as bearer token."`
	MaxEvent     Size                   `yaml:"max_event" default:"1MiB" range:"1KiB..64MiB" doc:"Largest event. The tables check it at INSERT, so run onewrite migrate after changing it."`
	Log          Log                    `yaml:"log" doc:"What is written to standard error."`

	// Dir is the folder of the file; the paths above have it in front of them
	// already, unless they are absolute.
	Dir string `yaml:"-"`
}

// Log says how much is logged and in which form.
type Log struct {
	Level  string `yaml:"level" default:"info" enum:"debug|info|warn|error" doc:"The least level that is written."`
	Format string `yaml:"format" default:"text" enum:"text|json" doc:"One line of text or one JSON object an entry."`
}

// The types of sources and destinations.
const (
	Postgres = "postgres"
	SQLite   = "sqlite"
	Webhook  = "webhook"
	File     = "file"
	NATS     = "nats"
)

// Source is a database whose committed events are read.
type Source struct {
	Type        string   `yaml:"type" need:"*" enum:"postgres|sqlite" doc:"The kind of database."`
	URL         Secret   `yaml:"url" for:"postgres" need:"postgres" example:"${env:SHOP_DATABASE_URL}" doc:"Connection string: postgres://user:password@host/database?sslmode=verify-full, or host=... user=... words."`
	Path        string   `yaml:"path" for:"sqlite" need:"sqlite" kind:"path" example:"app.db" doc:"The database file."`
	Tables      []string `yaml:"tables" example:"[orders]" doc:"Tables whose row changes are events too; for postgres with their schema: public.orders, or billing.* for all of one, and !billing.scratch leaves one out. Run onewrite migrate after changing it."`
	Messages    bool     `yaml:"messages" for:"postgres" doc:"Whether messages in the log, as onewrite.emit writes them, are events: an outbox without a table. Run onewrite migrate after changing it."`
	DDL         bool     `yaml:"ddl" for:"postgres" doc:"Whether commands that alter, rename or drop captured tables are events too, with the topic onewrite.ddl. Run onewrite migrate as a superuser after changing it: it makes event triggers."`
	Snapshot    string   `yaml:"snapshot" default:"initial" enum:"initial|never" doc:"Whether rows that were there before come as events (op r) when a table is first captured."`
	Origins     string   `yaml:"origins" for:"postgres" default:"any" enum:"any|local" doc:"Whose row changes are events: any, or local for those that were made in this database. local leaves out what logical replication brought from elsewhere, and so ends loops between two databases that have each other's rows."`
	OnGap       string   `yaml:"on_gap" for:"postgres" default:"snapshot" enum:"snapshot|stop" doc:"What becomes of row changes that are missing, for instance after a lost slot: the tables are read again, or the source stops for a person to decide. Both are said aloud."`
	Columns     []string `yaml:"columns" for:"postgres" example:"[public.customers.password drop]" doc:"What becomes of columns before an event leaves the reader, a rule a line: schema.table.column drop, hash or truncate N; *.column for all tables; schema.table only a, b. The last rule for a column counts."`
	MaskKey     Secret   `yaml:"mask_key" for:"postgres" example:"${file:mask.key}" doc:"The key of the hashes that columns asks for."`
	MaxRetained Size     `yaml:"max_retained" for:"postgres" range:"64MiB..1PiB" example:"50GB" doc:"How much of the server's log the slot may keep before it is dropped and the tables are read again: a full disk stops the application. Off by default; the server has its own limit, max_slot_wal_keep_size."`
	Outbox      string   `yaml:"outbox" for:"postgres" default:"ring" enum:"ring|log" doc:"Where the outbox is read: in its table, or in the server's log, which tells an event at its commit, with the table as the truth: it is looked at each second for what the log has not told. log needs what row changes need."`
	CatchUp     string   `yaml:"catch_up" for:"postgres" default:"slices" enum:"slices|stream" doc:"How a large backlog of row changes is read: in slices, by queries, which spares the server most of the work and needs two free replication slots and up to 1 GB for temporary files; or streamed from its beginning to its end. What the server has no room for is streamed anyway."`
	Toast       string   `yaml:"toast" for:"postgres" default:"omit" enum:"omit|debezium" doc:"What stands for a large value that an update did not touch, and that the log does not carry: nothing, its column being named in source.unchanged, or Debezium's placeholder."`
	Roles       Roles    `yaml:"roles" for:"postgres" doc:"Database roles that onewrite migrate grants to."`

	LogURL        Secret            `yaml:"log_url" for:"postgres" example:"${env:SHOP_STANDBY_URL}" doc:"A standby of the database, PostgreSQL 16 or newer, from which row changes are read, so that it does the decoding. All else is read from url, and written there."`
	FlushWithin   time.Duration     `yaml:"flush_within" for:"postgres" range:"2ms..1s" example:"10ms" doc:"For applications that commit with synchronous_commit = off: while row changes come, the server's log is flushed within this time, by a small commit. Otherwise such commits come when the server's WAL writer has flushed them, after up to three times wal_writer_delay (200 ms). Off by default."`
	SnapshotWhere map[string]string `yaml:"snapshot_where" for:"postgres" example:"{public.orders: placed > now() - interval '7 days'}" doc:"Which rows the snapshots of a table have, by table or by the pattern of its schema: an SQL condition over its columns. Without it, all. Changes come of all rows. Run onewrite migrate after changing it."`

	Import map[string]Import `yaml:"import" for:"postgres" doc:"Tables that are an outbox already, by a name of your choice: their rows are moved into onewrite's."`
}

// Import is a table whose rows become events: a home-made outbox, or that of another
// library.
type Import struct {
	Table   string        `yaml:"table" need:"*" example:"public.outbox_events" doc:"The table, with its schema."`
	Columns ImportColumns `yaml:"columns" doc:"What the parts of an event are in a row: a column's name, or any SQL expression over the row."`
	Where   string        `yaml:"where" example:"sent_at IS NULL" doc:"The condition of the rows that are events; without it, all are."`
	Order   []string      `yaml:"order" example:"[id]" doc:"The columns or expressions by which rows stand in the order of their events."`
	Rows    string        `yaml:"rows" default:"move" enum:"move|keep" doc:"move: for as long as onewrite runs, rows are deleted in the transaction that makes them events. keep: they are read once, in one transaction, and stay."`
	Every   time.Duration `yaml:"every" default:"250ms" range:"10ms..1h" doc:"Pause between two looks."`
}

// ImportColumns are SQL expressions over a row.
type ImportColumns struct {
	ID          string `yaml:"id" example:"id" doc:"The event's identity. What is no UUID gives one that is always the same for it; without it, one is made."`
	Topic       string `yaml:"topic" need:"*" example:"event_type" doc:"The topic; a constant: \"'order.placed'\"."`
	Key         string `yaml:"key" example:"aggregate_id" doc:"The key. Without it, no order is promised."`
	Payload     string `yaml:"payload" example:"payload" doc:"The payload: bytes if it is a bytea, else its text."`
	EventType   string `yaml:"type" example:"event_type" doc:"The CloudEvents type; without it, the topic."`
	ContentType string `yaml:"content_type" example:"\"'application/json'\"" doc:"The payload's media type; without it, what the outbox says."`
	Headers     string `yaml:"headers" example:"metadata" doc:"A JSON object of the headers."`
}

// Roles are the database roles that migrate grants to; empty ones get nothing.
type Roles struct {
	App   string `yaml:"app" example:"shop_app" doc:"The application's role: may insert events and nothing else."`
	Relay string `yaml:"relay" example:"onewrite_relay" doc:"The role that onewrite run connects as, when it is not the one that migrates."`
}

// Destination is a system that events are delivered to.
type Destination struct {
	Type     string   `yaml:"type" need:"*" enum:"webhook|file|nats" doc:"The kind of system."`
	Topics   []string `yaml:"topics" kind:"pattern" example:"[\"order.>\"]" doc:"Patterns of the topics wanted: * stands for one word, > at the end for all that follow. Without it, all."`
	From     string   `yaml:"from" default:"beginning" example:"now" doc:"Where a new destination starts: beginning (the oldest event kept), now, or an RFC 3339 time."`
	OnReject string   `yaml:"on_reject" default:"park-key" enum:"park-key|stop|skip" doc:"What becomes of an event that is refused while others pass: it is parked and later events of its key wait behind it, the destination stops, or it is parked alone and later events of its key go on."`
	Retry    Retry    `yaml:"retry" doc:"The pause between tries."`

	URL          Secret            `yaml:"url" for:"webhook,nats" need:"webhook,nats" kind:"url" example:"https://warehouse.example/events" doc:"Where to deliver: https://... for a webhook, nats://host:4222 or tls://host:4222 (several with commas) for NATS."`
	Secret       []Secret          `yaml:"secret" for:"webhook" example:"${file:warehouse.key}" doc:"Signs every request after Standard Webhooks. A list while a key is rotated: all of them sign."`
	AllowPrivate bool              `yaml:"allow_private" for:"webhook" doc:"Admits loopback and private addresses, and http."`
	Concurrency  int               `yaml:"concurrency" for:"webhook" default:"16" range:"1..1024" doc:"Requests in flight at once; events of one key are never in two of them."`
	Timeout      time.Duration     `yaml:"timeout" for:"webhook" default:"15s" range:"100ms..10m" doc:"The longest one request may take in all."`
	Batch        *Batch            `yaml:"batch" for:"webhook" doc:"Sends many events a request as application/cloudevents-batch+json: true, or a mapping. Off by default."`
	Headers      map[string]Secret `yaml:"headers" for:"webhook" example:"{Authorization: \"Bearer ${env:TOKEN}\"}" doc:"Extra request headers."`

	Path   string `yaml:"path" for:"file" need:"file" kind:"path" example:"events.jsonl" doc:"The file that gets one CloudEvents JSON object a line; - is standard output."`
	Rotate Size   `yaml:"rotate" for:"file" range:"4KiB..1TiB" doc:"Starts a new file when this one is larger. Off by default."`

	Creds    string `yaml:"creds" for:"nats" kind:"path" example:"nats.creds" doc:"Credentials file (JWT and seed)."`
	NKey     string `yaml:"nkey" for:"nats" kind:"path" example:"nats.nk" doc:"File with an NKey seed."`
	User     string `yaml:"user" for:"nats" doc:"User name."`
	Password Secret `yaml:"password" for:"nats" example:"${env:NATS_PASSWORD}" doc:"The user's password."`
	Subject  string `yaml:"subject" for:"nats" default:"{topic}" example:"shop.{topic}" doc:"The subject; {topic} stands for the event's topic."`
	Core     bool   `yaml:"jetstream" as:"not" for:"nats" default:"true" doc:"Waits for a stream's acknowledgement. false publishes without one: what no one listens to is lost."`

	TLS *TLS `yaml:"tls" for:"webhook,nats" doc:"Certificates, where the system's own do not do."`
}

// Retry is the pause between tries; it grows from First to Max, with jitter.
type Retry struct {
	Attempts int           `yaml:"attempts" default:"10" range:"1..1000" doc:"Tries of an event that is refused while others pass, before on_reject decides. The first refusal counts with the second, so 1 means 2. An outage costs none."`
	First    time.Duration `yaml:"first" default:"200ms" range:"1ms..1m" doc:"Pause before the first retry."`
	Max      time.Duration `yaml:"max" default:"30s" range:"1ms..1h" doc:"Longest pause."`
}

// Batch bounds one request of many events; whichever bound is met first sends.
type Batch struct {
	Count  int           `yaml:"count" default:"100" range:"1..1000" doc:"Most events a request."`
	Bytes  Size          `yaml:"bytes" default:"1MB" range:"1KB..64MiB" doc:"Most bytes a request; a single larger event goes alone."`
	Linger time.Duration `yaml:"linger" default:"5ms" range:"100us..10s" doc:"Longest wait for more events."`
}

// On reports whether requests carry many events; nil is off.
func (b *Batch) On() bool { return b != nil }

// TLS names certificates. The least version is always 1.2.
type TLS struct {
	CA         string `yaml:"ca" kind:"path" example:"ca.pem" doc:"PEM file of the authorities to trust instead of the system's."`
	Cert       string `yaml:"cert" kind:"path" example:"client.pem" doc:"PEM file of the client's certificate; needs key."`
	Key        string `yaml:"key" kind:"path" example:"client.key" doc:"PEM file of the client's private key; needs cert."`
	ServerName string `yaml:"server_name" doc:"The name that the server's certificate must carry, where it is not the address."`
	Insecure   bool   `yaml:"insecure" doc:"Accepts any certificate. For trials only; it is shown in the status."`
}

// Bus is the durable middle: embedded in the folder Dir, or external at URL.
type Bus struct {
	Dir      string `yaml:"dir" default:"onewrite-data" unless:"url" kind:"path" doc:"Folder of the embedded bus. One process uses it at a time."`
	URL      Secret `yaml:"url" kind:"url" example:"nats://nats-1:4222,nats://nats-2:4222" doc:"An external NATS cluster with JetStream, in place of dir: nats://... or tls://..., several with commas."`
	Name     string `yaml:"name" default:"onewrite" doc:"First part of the names of streams and subjects."`
	Creds    string `yaml:"creds" kind:"path" example:"nats.creds" doc:"Credentials file (JWT and seed), with url."`
	NKey     string `yaml:"nkey" kind:"path" example:"nats.nk" doc:"File with an NKey seed, with url."`
	User     string `yaml:"user" doc:"User name, with url or listen."`
	Password Secret `yaml:"password" example:"${env:NATS_PASSWORD}" doc:"The user's password, with url or listen."`
	Replicas int    `yaml:"replicas" range:"1..5" doc:"Copies of every stream, with url. By default 3 where the cluster has them, else 1."`
	TLS      *TLS   `yaml:"tls" doc:"Certificates, with url."`
	Keep     Keep   `yaml:"keep" doc:"How much that is confirmed stays for replay: 1GB / 24h, one of the two, or a mapping. What is not written keeps its default; whichever is met first ends it. Nothing unconfirmed is ever dropped."`
	MaxSize  Size   `yaml:"max_size" default:"10GB" range:"16MiB..1PiB" doc:"Room for events. When it is full, reading stops and the backlog waits in the database."`
	Listen   string `yaml:"listen" example:"127.0.0.1:4222" doc:"Opens the embedded bus to NATS clients at this address; needs user and password. Closed by default."`
}

// Keep bounds what stays on the bus after everyone has confirmed it.
type Keep struct {
	Size Size          `yaml:"size" default:"1GB" range:"1MB..1PiB" doc:"Most bytes."`
	Age  time.Duration `yaml:"age" default:"24h" range:"1m..3650d" doc:"Longest time."`
}

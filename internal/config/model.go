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
//	kind     path: relative to the file's folder; url, pattern: see the checks;
//	         foreign: the names are those of another system
//	example  what an error's cure shows
//	per      what a type has in place of example, or of the words of enum:
//	         "redis redis://host:6379/0; ..."
//
// No value that means something is the zero value of a field with a default, so
// programs may leave fields empty and call [Config.Validate].

// Config is one instance of onewrite: what it reads, where it delivers, and the
// durable middle between.
type Config struct {
	Sources      map[string]Source      `yaml:"sources" need:"*" doc:"The databases to read, by name. The name becomes the event's source (/name)."`
	Destinations map[string]Destination `yaml:"destinations" doc:"The systems to deliver to, by name. Each has its own position: a slow one holds up no other."`
	Bus          Bus                    `yaml:"bus" doc:"The durable middle: an embedded NATS JetStream in a folder, an external NATS cluster, or Kafka."`
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
	RabbitMQ = "rabbitmq"
	Redis    = "redis"
	MySQL    = "mysql"
	Kafka    = "kafka"
	Email    = "email"
	S3       = "s3"

	Elasticsearch = "elasticsearch"
	OpenSearch    = "opensearch"
	Meilisearch   = "meilisearch"
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
	Type     string   `yaml:"type" need:"*" enum:"webhook|file|nats|rabbitmq|redis|postgres|mysql|sqlite|kafka|email|s3|elasticsearch|opensearch|meilisearch" doc:"The kind of system."`
	Topics   []string `yaml:"topics" kind:"pattern" example:"[\"order.>\"]" doc:"Patterns of the topics wanted: * stands for one word, > at the end for all that follow. Without it, all."`
	From     string   `yaml:"from" default:"beginning" example:"now" doc:"Where a new destination starts: beginning (the oldest event kept), now, or an RFC 3339 time."`
	OnReject string   `yaml:"on_reject" default:"park-key" enum:"park-key|stop|skip" doc:"What becomes of an event that is refused while others pass: it is parked and later events of its key wait behind it, the destination stops, or it is parked alone and later events of its key go on."`
	Retry    Retry    `yaml:"retry" doc:"The pause between tries."`

	Filter    string `yaml:"filter" example:"data.total > 100 && topic.startsWith(\"order.\")" doc:"A CEL expression that is true for the events wanted, over id, source, topic, type, key, time, headers and data. Without it, all that topics has."`
	Transform string `yaml:"transform" example:"{order: .id, total}" doc:"A jq program that makes the payload the destination gets from the event's; $event has its id, source, topic, type, key, time and headers. Nothing as the result leaves the event out."`
	Topic     string `yaml:"topic" example:"shop.{topic}" doc:"A template of the topic that the destination gets: {topic}, {key}, {type}, {source}, {id}, {header.NAME}, {data.NAME}, and of row changes {after.COLUMN}, {before.COLUMN}, {key.COLUMN}."`
	Key       string `yaml:"key" example:"{data.customer}" doc:"A template of the key that the destination gets, with the same fields. The order in which events come is still that of their own keys."`

	URL          Secret            `yaml:"url" for:"webhook,nats,rabbitmq,redis,postgres,mysql,email,elasticsearch,opensearch,meilisearch" need:"webhook,nats,rabbitmq,redis,postgres,mysql,email,elasticsearch,opensearch,meilisearch" kind:"url" example:"https://warehouse.example/events" per:"nats nats://host:4222; rabbitmq amqp://user:password@host:5672/vhost; redis redis://host:6379/0; postgres postgres://user:password@host:5432/database?sslmode=verify-full; mysql mysql://user:password@host:3306/database?tls=true; email smtp://user:password@host:587; elasticsearch https://host:9200; opensearch https://host:9200; meilisearch https://host:7700" doc:"Where to deliver: https://... for a webhook, nats://host:4222 or tls://host:4222 for NATS, amqp://user:password@host:5672/vhost or amqps://... for RabbitMQ, redis://host:6379/0 or rediss://... for Redis, of these three several with commas; postgres://user:password@host/database or mysql://user:password@host:3306/database for a database, smtp://user:password@host:587 or smtps://user:password@host:465 for mails, https://user:password@host:9200 (several with commas) for a search engine."`
	Secret       []Secret          `yaml:"secret" for:"webhook" example:"${file:warehouse.key}" doc:"Signs every request after Standard Webhooks. A list while a key is rotated: all of them sign."`
	AllowPrivate bool              `yaml:"allow_private" for:"webhook" doc:"Admits loopback and private addresses, and http."`
	Concurrency  int               `yaml:"concurrency" for:"webhook" default:"16" range:"1..1024" doc:"Requests in flight at once; events of one key are never in two of them."`
	Timeout      time.Duration     `yaml:"timeout" for:"webhook,rabbitmq,email,s3,elasticsearch,opensearch,meilisearch" default:"15s" range:"100ms..10m" doc:"The longest one request may take in all; for RabbitMQ, one write of up to 256 events with its confirmations; with email the longest wait for one answer, and four times that for the answer to a mail's text."`
	Batch        *Batch            `yaml:"batch" for:"webhook" doc:"Sends many events a request as application/cloudevents-batch+json: true, or a mapping. Off by default."`
	Headers      map[string]Secret `yaml:"headers" for:"webhook,email" example:"{Authorization: \"Bearer ${env:TOKEN}\"}" doc:"Extra headers of requests, or of mails; with email the values are templates."`

	Path   string `yaml:"path" for:"file,sqlite" need:"file,sqlite" kind:"path" example:"events.jsonl" doc:"For type file the file that gets one CloudEvents JSON object a line; - is standard output. For type sqlite the database file; it is made if it is missing."`
	Rotate Size   `yaml:"rotate" for:"file" range:"4KiB..1TiB" doc:"Starts a new file when this one is larger. Off by default."`

	Creds    string `yaml:"creds" for:"nats" kind:"path" example:"nats.creds" doc:"Credentials file (JWT and seed)."`
	NKey     string `yaml:"nkey" for:"nats" kind:"path" example:"nats.nk" doc:"File with an NKey seed."`
	User     string `yaml:"user" for:"nats,redis,elasticsearch,opensearch" doc:"User name."`
	Password Secret `yaml:"password" for:"nats,redis,elasticsearch,opensearch" example:"${env:NATS_PASSWORD}" doc:"The user's password."`
	Subject  string `yaml:"subject" for:"nats,email" need:"email" default:"{topic}" unless:"sender" example:"shop.{topic}" doc:"The subject to publish to; {topic} stands for the event's topic. With email the template of a mail's subject, which has no default."`
	Core     bool   `yaml:"jetstream" as:"not" for:"nats" default:"true" doc:"Waits for a stream's acknowledgement. false publishes without one: what no one listens to is lost."`

	Exchange   string   `yaml:"exchange" for:"rabbitmq" example:"shop" doc:"The exchange to publish to. Without it, the default exchange, where the routing key is the name of a queue."`
	RoutingKey string   `yaml:"routing_key" for:"rabbitmq" default:"{topic}" example:"shop.{topic}" doc:"The routing key; {topic}, {key}, {source} and {type} stand for those of the event."`
	Declare    *Declare `yaml:"declare" for:"rabbitmq" doc:"What is made, durable, if it is not there: the exchange, and queues. Without it, the exchange has to be there."`
	Optional   bool     `yaml:"mandatory" as:"not" for:"rabbitmq" default:"true" doc:"Refuses an event that no queue takes. false takes it for delivered: it is lost."`

	Stream   string   `yaml:"stream" for:"redis" default:"{topic}" unless:"commands" example:"events:{topic}" doc:"The key of the stream; {topic}, {source}, {key} and {type} stand for those of the event, {{ and }} for braces."`
	MaxLen   int      `yaml:"max_len" for:"redis" range:"0..1000000000" example:"1000000" doc:"About how many entries a stream keeps. The oldest are dropped, whether they were read or not. 0 drops nothing."`
	Commands []string `yaml:"commands" for:"redis" example:"[\"DEL order:{key}\"]" doc:"Keeps a cache, in place of a stream: commands that are run for each event, in one transaction. DEL, UNLINK, SET, HSET, HDEL, EXPIRE and PUBLISH, with {topic} {source} {key} {type} {id} {data}, and of row changes {after.COLUMN} {before.COLUMN} {key.COLUMN}. Event types before a command limit it to them: \"delete: DEL order:{key.id}\"."`

	Table      string `yaml:"table" for:"postgres,mysql,sqlite" default:"{table}" example:"replica.{table}" doc:"The table that rows go to. {schema}, {table} and {topic} stand for the event's; a dot outside of braces ends the schema."`
	NoCreate   bool   `yaml:"create" as:"not" for:"postgres,mysql,sqlite" default:"true" doc:"Makes tables that are missing, with types that hold what comes. For exact types, make the table yourself; one that is there is used as it is."`
	Columns    string `yaml:"columns" for:"postgres,mysql,sqlite" default:"follow" enum:"follow|fixed" doc:"What becomes of a column that an event has and the table lacks: it is added, or the event is refused."`
	NoTruncate bool   `yaml:"truncate" as:"not" for:"postgres,mysql,sqlite" default:"true" doc:"Empties the table when the source was truncated. false leaves the rows."`
	Messages   string `yaml:"messages" for:"postgres,mysql,sqlite" default:"onewrite_messages" doc:"The table that gets a row for each event that is no row change."`

	Brokers       []string  `yaml:"brokers" for:"kafka" need:"kafka" example:"[kafka-1:9092, kafka-2:9092]" doc:"Some brokers of the cluster, host:port each; they name the others."`
	Idempotent    bool      `yaml:"transactions" as:"not" for:"kafka" default:"true" doc:"Writes in transactions that carry the destination's place, so that no event comes twice to consumers of committed records. false writes without them: after a crash or an outage, events that were not confirmed come twice."`
	Compression   string    `yaml:"compression" for:"kafka,s3,file" enum:"none|gzip|snappy|lz4|zstd" doc:"How batches of Kafka are compressed, by default with lz4; and how objects of S3 and files that were rotated are, with gzip or zstd, by default not at all. The columns of Parquet take all of them, by default zstd."`
	NoTopics      bool      `yaml:"create_topics" as:"not" for:"kafka" default:"true" doc:"Creates topics that are missing. false refuses their events until somebody has."`
	Partitions    int       `yaml:"partitions" for:"kafka" range:"0..10000" example:"6" doc:"Partitions of a topic that is created; 0: as the brokers say."`
	Replication   int       `yaml:"replication" for:"kafka" range:"0..100" example:"3" doc:"Copies of a topic that is created; 0: as the brokers say."`
	Tombstones    bool      `yaml:"tombstones" for:"kafka" doc:"Sends a record with the same key and null behind each delete of a row, so that a compacted topic forgets it."`
	Places        string    `yaml:"places" for:"kafka" default:"onewrite-places" doc:"The compacted topic that has the places of destinations. It is created if it is missing."`
	Repartitioned string    `yaml:"repartitioned" for:"kafka" default:"refuse" enum:"refuse|accept" doc:"What to do when a topic has another number of partitions than before: its keys would move, and their events overtake those that are not consumed yet. refuse waits, aloud; accept goes on."`
	SASL          *SASL     `yaml:"sasl" for:"kafka" doc:"How to log in. Without it, not at all."`
	Registry      *Registry `yaml:"registry" for:"kafka" doc:"The schema registry, with Confluent's API, that format: avro, json-schema and protobuf need."`

	Sender    string `yaml:"sender" for:"email" need:"email" example:"Shop <shop@example.com>" doc:"The address that mails come from."`
	To        string `yaml:"to" for:"email" need:"email" example:"\"{{.Data.email}}\"" doc:"Who gets the mail: a template of addresses with commas between."`
	CC        string `yaml:"cc" for:"email" example:"\"orders@example.com\"" doc:"Who gets it too: a template as well."`
	ReplyTo   string `yaml:"reply_to" for:"email" example:"help@example.com" doc:"Where answers go: a template as well."`
	Text      string `yaml:"text" for:"email" example:"\"Thank you, {{.Data.name}}.\"" doc:"The template of the body as plain text. With html too, the mail has both."`
	TextFile  string `yaml:"text_file" for:"email" kind:"path" example:"order.txt" doc:"The file with that template, in place of text."`
	HTML      string `yaml:"html" for:"email" example:"\"<p>Thank you, {{.Data.name}}.</p>\"" doc:"The template of the body as HTML; what comes from an event is escaped."`
	HTMLFile  string `yaml:"html_file" for:"email" kind:"path" example:"order.html" doc:"The file with that template, in place of html."`
	StartTLS  string `yaml:"starttls" for:"email" default:"required" enum:"required|optional|off" doc:"Whether a connection to smtp:// is encrypted. smtps:// is from its begin."`
	PerSecond int    `yaml:"per_second" for:"email" range:"1..100000" example:"10" doc:"Most mails a second. No limit by default."`

	Bucket    string `yaml:"bucket" for:"s3" need:"s3" example:"events" doc:"The bucket; it has to exist."`
	Prefix    string `yaml:"prefix" for:"s3" default:"{source}/{topic}/{date}/" example:"shop/{topic}/{date}/" doc:"The begin of objects' names: {source}, {topic}, {type}, {date} and {hour} stand for the event's."`
	Region    string `yaml:"region" for:"s3" example:"eu-central-1" doc:"The bucket's region; by default what the environment or the AWS configuration says."`
	Endpoint  string `yaml:"endpoint" for:"s3" example:"https://minio.example:9000" doc:"Address of a store that is not AWS's own."`
	PathStyle bool   `yaml:"path_style" for:"s3" doc:"Whether the bucket stands in the path of requests and not in the host's name."`
	AccessKey Secret `yaml:"access_key" for:"s3" example:"${env:S3_ACCESS_KEY}" doc:"The access key, with secret_key. Without both, AWS's own chain is asked: environment, profile, role."`
	SecretKey Secret `yaml:"secret_key" for:"s3" example:"${env:S3_SECRET_KEY}" doc:"The secret of access_key."`
	Format    string `yaml:"format" for:"s3,kafka,file" default:"jsonl" enum:"jsonl|parquet|json|avro|json-schema|protobuf" per:"kafka json|avro|json-schema|protobuf; s3 jsonl|parquet; file jsonl|parquet" doc:"How events are written. Files and objects of S3: jsonl, one CloudEvents JSON object a line, or parquet, a row an event; a file is lines until it is rotated, and becomes Parquet then. Kafka: json, by default, the payload as it is; avro, json-schema or protobuf, by a schema of the registry."`
	Roll      Roll   `yaml:"roll" for:"s3" doc:"When a batch of events is written: whichever bound is met first."`

	APIKey   Secret `yaml:"api_key" for:"elasticsearch,opensearch,meilisearch" example:"${env:SEARCH_API_KEY}" doc:"An API key, in place of user and password: encoded, as the server gave it, or as id:key."`
	Index    string `yaml:"index" for:"elasticsearch,opensearch,meilisearch" default:"{topic}" example:"shop-{topic}" doc:"The index; {topic}, {source} and {type} stand for the event's. It is written in lower case, and what a name may not have is a hyphen."`
	ID       string `yaml:"id" for:"elasticsearch,opensearch,meilisearch" default:"{key}" example:"{id}" doc:"The document's id; {key}, {id}, {topic}, {source} and {type} stand for the event's. An event without key has its id for {key}."`
	Document string `yaml:"document" for:"elasticsearch,opensearch,meilisearch" default:"data" enum:"data|event" doc:"What becomes a document: data, which is the row as it is after a change, and the JSON payload of other events; or the whole event as CloudEvents JSON."`

	TLS *TLS `yaml:"tls" for:"webhook,nats,rabbitmq,redis,mysql,kafka,email,s3,elasticsearch,opensearch,meilisearch" doc:"Certificates, where the system's own do not do. Kafka is connected to in clear text without it; {} is TLS with the system's authorities."`
}

// Declare is what a RabbitMQ destination makes before it publishes.
type Declare struct {
	Exchange string           `yaml:"exchange" enum:"topic|direct|fanout|headers" doc:"The type of the exchange. Without it, the exchange has to be there."`
	Queues   map[string]Queue `yaml:"queues" kind:"foreign" example:"{orders: {bind: [\"order.>\"]}}" doc:"Queues, by name."`
}

// Queue is a durable queue of RabbitMQ.
type Queue struct {
	Type         string   `yaml:"type" default:"quorum" enum:"quorum|classic|stream" doc:"The kind of queue. One of type classic is on one node."`
	Bind         []string `yaml:"bind" example:"[\"order.>\"]" doc:"The routing keys that it gets, or patterns of them: those of topics (* for one word, > at the end for one or more), or of AMQP (# for any number of words). Without it, all; of a direct exchange, its own name."`
	SingleActive bool     `yaml:"single_active_consumer" doc:"Lets one consumer read at a time, so that keys stay in order when it dies and another one goes on. Not for streams."`
}

// SASL is how to log in to Kafka.
type SASL struct {
	Mechanism string `yaml:"mechanism" need:"*" enum:"plain|scram-sha-256|scram-sha-512|oauthbearer" doc:"The mechanism."`
	User      string `yaml:"user" example:"onewrite" doc:"User name, for all but oauthbearer."`
	Password  Secret `yaml:"password" example:"${env:KAFKA_PASSWORD}" doc:"The user's password."`
	Token     Secret `yaml:"token" example:"${file:kafka.token}" doc:"The token, for oauthbearer. It is read at start and at onewrite reload."`
}

// Registry is a schema registry.
type Registry struct {
	URL        string `yaml:"url" need:"*" example:"https://registry:8081" doc:"The root of the registry's API; several addresses of one registry with commas."`
	User       string `yaml:"user" example:"onewrite" doc:"User name, for basic authentication."`
	Password   Secret `yaml:"password" example:"${env:REGISTRY_PASSWORD}" doc:"The user's password."`
	Subject    string `yaml:"subject" default:"topic" enum:"topic|record|topic-record" doc:"What names the subject of a schema: topic (the topic of Kafka, and -value), record (the name of the record, which is an event's type; of a row change the name of its table's schema), or topic-record (both, with - between)."`
	NoRegister bool   `yaml:"register" as:"not" default:"true" doc:"Registers the schemas of row changes, and new versions where a table changes. It never adds one to a subject whose schema is not onewrite's. false leaves all to you; events that no schema takes are refused."`
	TLS        *TLS   `yaml:"tls" doc:"Certificates, where the system's own do not do."`
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

// Roll bounds what is written to an object store at once.
type Roll struct {
	Count  int           `yaml:"count" default:"10000" range:"1..20000" doc:"Most events."`
	Bytes  Size          `yaml:"bytes" default:"8MB" range:"1KB..1GiB" doc:"Most bytes before compression; a single larger event goes alone."`
	Linger time.Duration `yaml:"linger" default:"1m" range:"1ms..1h" doc:"Longest wait for more events."`
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
	Type     string   `yaml:"type" default:"nats" enum:"nats|kafka" doc:"The engine: nats is the embedded JetStream or, with url, a NATS cluster; kafka is a Kafka cluster that exists, which several copies share."`
	Dir      string   `yaml:"dir" for:"nats" default:"onewrite-data" unless:"url" kind:"path" doc:"Folder of the embedded bus. One process uses it at a time."`
	URL      Secret   `yaml:"url" for:"nats" kind:"url" example:"nats://nats-1:4222,nats://nats-2:4222" doc:"An external NATS cluster with JetStream, in place of dir: nats://... or tls://..., several with commas."`
	Brokers  []string `yaml:"brokers" for:"kafka" need:"kafka" example:"[\"kafka-1:9092\", \"kafka-2:9092\"]" doc:"Some brokers of the Kafka cluster, host:port each."`
	SASL     *SASL    `yaml:"sasl" for:"kafka" doc:"How to log in to Kafka."`
	Name     string   `yaml:"name" default:"onewrite" doc:"First part of the names of streams and subjects, or of Kafka's topics."`
	Creds    string   `yaml:"creds" for:"nats" kind:"path" example:"nats.creds" doc:"Credentials file (JWT and seed), with url."`
	NKey     string   `yaml:"nkey" for:"nats" kind:"path" example:"nats.nk" doc:"File with an NKey seed, with url."`
	User     string   `yaml:"user" for:"nats" doc:"User name, with url or listen."`
	Password Secret   `yaml:"password" for:"nats" example:"${env:NATS_PASSWORD}" doc:"The user's password, with url or listen."`
	Replicas int      `yaml:"replicas" range:"1..5" doc:"Copies of every stream, with url, or of every topic of Kafka. By default 3 where the cluster has them, else as many as it has."`
	TLS      *TLS     `yaml:"tls" doc:"Certificates, with url or Kafka."`
	Keep     Keep     `yaml:"keep" doc:"How much that is confirmed stays for replay: 1GB / 24h, one of the two, or a mapping. What is not written keeps its default; whichever is met first ends it. Nothing unconfirmed is ever dropped."`
	MaxSize  Size     `yaml:"max_size" default:"10GB" range:"16MiB..1PiB" doc:"Room for events. When it is full, reading stops and the backlog waits in the database."`
	Listen   string   `yaml:"listen" for:"nats" example:"127.0.0.1:4222" doc:"Opens the embedded bus to NATS clients at this address; needs user and password. Closed by default. An open bus stores each event as a message of its own, which takes it several times as long."`
}

// Keep bounds what stays on the bus after everyone has confirmed it.
type Keep struct {
	Size Size          `yaml:"size" default:"1GB" range:"1MB..1PiB" doc:"Most bytes."`
	Age  time.Duration `yaml:"age" default:"24h" range:"1m..3650d" doc:"Longest time."`
}

package sqlite

import (
	"fmt"
	"strings"
)

const (
	// schemaVersion is that of the tables below, kept in onewrite_meta.
	schemaVersion = 1
	// defaultMaxEvent is the largest event in bytes.
	defaultMaxEvent = 1 << 20
	// maxIdentity is the number of columns kN of onewrite_replaced.
	maxIdentity = 8
)

// control is the GLOB set of the ASCII control characters but NUL, which GLOB
// cannot see; instr finds it.
const control = `'*[' || char(1) || '-' || char(31) || char(127) || ']*'`

// uuid is the GLOB of a UUID: one comparison costs less than several.
var uuid = "'" + strings.NewReplacer("h", "[0-9A-Fa-f]").Replace("hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh") + "'"

// outboxTable is written so that SQLite's own words say what is wrong with a
// row: the name of a constraint is its explanation. Only functions of the core
// are used, for the application's library has to know them. Row changes are
// written by our triggers, so most rules pass them by: they cost time.
var outboxTable = `CREATE TABLE onewrite_outbox (
  seq           INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of commits; never given
` + eventColumns + `  created       TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  -- Row changes, written by triggers only.
  op            TEXT,
  layout        INTEGER,
  "before"      TEXT,
  "after"       TEXT,
  CONSTRAINT "seq is given by the database; leave it out" CHECK (seq BETWEEN 1 AND 9000000000000000000),
` + eventRules("op IS NOT NULL OR") + `  CONSTRAINT "created is given by the database; leave it out" CHECK (op IS NOT NULL OR
    created GLOB '[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-9][0-9]*Z'),
  CONSTRAINT "op, layout, before and after are written by triggers; leave them out" CHECK (
    CASE WHEN op IS NULL THEN layout IS NULL AND "before" IS NULL AND "after" IS NULL
    ELSE op IN ('c', 'u', 'd', 'r') AND layout IS NOT NULL AND key IS NULL AND payload IS NULL
      AND payload_bytes IS NULL AND type IS NULL AND content_type IS NULL AND headers IS NULL END)
)`

// scheduledTable holds the events that are to be sent later. The relay moves them
// into the outbox when they are due, so the rules are the same.
var scheduledTable = `CREATE TABLE onewrite_scheduled (
  n             INTEGER PRIMARY KEY AUTOINCREMENT, -- never given
  deliver_at    TEXT NOT NULL, -- in UTC: strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 hour')
` + eventColumns + `  CONSTRAINT "deliver_at must be a time in UTC such as 2026-12-24T18:00:00.000Z" CHECK (typeof(deliver_at) = 'text' AND
    deliver_at GLOB '[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z'
    AND julianday(deliver_at) IS NOT NULL),
` + strings.TrimSuffix(eventRules(""), ",\n") + `
)`

const scheduledIndexes = `CREATE INDEX onewrite_scheduled_due ON onewrite_scheduled (deliver_at, n);
CREATE INDEX onewrite_scheduled_id ON onewrite_scheduled (lower(id))`

// eventColumns are those that an application may give.
var eventColumns = `  topic         TEXT NOT NULL,
  key           TEXT, -- events of one key arrive in order
  payload       TEXT, -- arrives byte for byte
  payload_bytes BLOB, -- at most one of the two; neither is an event without data
  id            TEXT NOT NULL ON CONFLICT REPLACE DEFAULT (printf('%08x-%04x-4%03x-%04x-%012x', random() & 4294967295,
                  random() & 65535, random() & 4095, 32768 + (random() & 16383), random() & 281474976710655)),
  type          TEXT, -- default: the topic
  content_type  TEXT,
  headers       TEXT, -- a JSON object of strings
`

// eventRules are the rules of an event; what pass says goes by most of them.
func eventRules(pass string) string {
	return strings.ReplaceAll(`  CONSTRAINT "topic must be words of letters, digits, _ and - joined by single dots, at most 255 bytes" CHECK ({{pass}}
    typeof(topic) = 'text' AND length(topic) <= 255 AND length(topic) = length(CAST(topic AS BLOB))
    AND topic NOT GLOB '*[^A-Za-z0-9_.-]*' AND '.' || topic || '.' NOT GLOB '*..*'),
  CONSTRAINT "key must be text without NUL, at most 1024 bytes" CHECK (key IS NULL OR
    typeof(key) = 'text' AND length(CAST(key AS BLOB)) <= 1024 AND instr(CAST(key AS BLOB), x'00') = 0),
  CONSTRAINT "payload must be text; use payload_bytes for a BLOB" CHECK (typeof(payload) IN ('null', 'text')),
  CONSTRAINT "payload_bytes must be a BLOB; use payload for text" CHECK (typeof(payload_bytes) IN ('null', 'blob')),
  CONSTRAINT "at most one of payload and payload_bytes may be set" CHECK (payload IS NULL OR payload_bytes IS NULL),
  CONSTRAINT "id must be a UUID of 36 characters" CHECK ({{pass}} typeof(id) = 'text'
    AND length(CAST(id AS BLOB)) = 36 AND id GLOB `+uuid+`
    AND id <> '00000000-0000-0000-0000-000000000000'),
  CONSTRAINT "type must be text without control characters, at most 255 bytes" CHECK (type IS NULL OR
    typeof(type) = 'text' AND length(CAST(type AS BLOB)) <= 255 AND instr(CAST(type AS BLOB), x'00') = 0
    AND type NOT GLOB `+control+`),
  CONSTRAINT "content_type must be a media type such as application/json, at most 255 bytes" CHECK (content_type IS NULL OR
    typeof(content_type) = 'text' AND length(content_type) = length(CAST(content_type AS BLOB)) AND length(content_type) <= 255
    AND content_type GLOB '[!-~]*/[!-~]*' AND content_type NOT GLOB '*[^ -~]*'),
  CONSTRAINT "headers must be a JSON object of strings" CHECK (CASE WHEN headers IS NULL THEN 1
    WHEN typeof(headers) <> 'text' THEN 0 WHEN json_valid(headers) THEN json_type(headers) = 'object' ELSE 0 END),
`, "{{pass}}", pass)
}

const metaTable = `CREATE TABLE onewrite_meta (
  one     INTEGER PRIMARY KEY CHECK (one = 1),
  version INTEGER NOT NULL, -- of these tables
  file    TEXT NOT NULL,    -- the identity of this history; changed when it breaks
  epoch   INTEGER NOT NULL, -- counts the times it was opened for reading
  bus     TEXT NOT NULL,    -- the bus that got the events, '' if none has yet
  freed   INTEGER NOT NULL  -- events up to this seq were confirmed and deleted
)`

const metaRow = `INSERT INTO onewrite_meta (one, version, file, epoch, bus, freed) VALUES (1, 1, lower(hex(randomblob(16))), 0, '', 0)`

// layoutTable tells how to read the images. A layout is never changed or
// removed: rows that were written with it may wait for the relay.
const layoutTable = `CREATE TABLE onewrite_layout (
  id        INTEGER PRIMARY KEY,
  spec      TEXT NOT NULL,    -- JSON: the table and its columns
  "current" INTEGER NOT NULL  -- 1 while triggers write with it
)`

// replacedTable holds, within one statement, the rows that it may be about to
// replace. k1 ... name the row: its rowid, or the primary key of a table
// WITHOUT ROWID.
func replacedTable() string {
	return "CREATE TABLE onewrite_replaced (\n  layout INTEGER NOT NULL,\n  k1, k2, k3, k4, k5, k6, k7, k8,\n  image TEXT NOT NULL\n)"
}

// reservedHeaders are the attributes that onewrite sets itself.
var reservedHeaders = []string{
	"specversion", "id", "source", "type", "time", "datacontenttype", "data", "data_base64", "topic",
	"partitionkey", "sequence", "txid", "txindex", "txlast", "headers", "content-type",
}

// The guards hold the rules that no CHECK can state. They are few and short, for
// SQLite compiles them into every INSERT.
const (
	guardName   = "onewrite_outbox_guard"
	headersName = "onewrite_outbox_headers"

	scheduledGuardName   = "onewrite_scheduled_guard"
	scheduledHeadersName = "onewrite_scheduled_headers"
)

// guard refuses what is above the limit, which changes with the configuration,
// and a seq that was given, as a number below the cursor would never be read.
// sqlite_sequence gets its new value at the end of a statement, so here it still
// tells the one before.
func guard(maxEvent int) string {
	return fmt.Sprintf(`CREATE TRIGGER onewrite_outbox_guard AFTER INSERT ON onewrite_outbox WHEN NEW.op IS NULL
BEGIN
  SELECT CASE WHEN NEW.seq <= (SELECT seq FROM sqlite_sequence WHERE name = 'onewrite_outbox')
    THEN RAISE(ABORT, 'onewrite_outbox: seq is given by the database; leave it out')
  WHEN %s > %[2]d
    THEN RAISE(ABORT, 'onewrite_outbox: the event has more than %[2]d bytes; publish a reference to the data, or raise max_event and run: onewrite migrate') END;
END`, sizeOf("NEW."), maxEvent)
}

// scheduledGuard is the guard of the events that are to be sent later. Their number
// decides nothing but the order of those of one moment.
func scheduledGuard(maxEvent int) string {
	return fmt.Sprintf(`CREATE TRIGGER onewrite_scheduled_guard AFTER INSERT ON onewrite_scheduled
BEGIN
  SELECT CASE WHEN %s > %[2]d
    THEN RAISE(ABORT, 'onewrite_scheduled: the event has more than %[2]d bytes; publish a reference to the data, or raise max_event and run: onewrite migrate') END;
END`, sizeOf("NEW."), maxEvent)
}

// sizeOf is the size of an event; row is what stands before its columns.
func sizeOf(row string) string {
	return strings.ReplaceAll(`length(CAST(.topic AS BLOB)) + coalesce(length(CAST(.key AS BLOB)), 0) + coalesce(length(CAST(.type AS BLOB)), 0)
    + coalesce(length(CAST(.payload AS BLOB)), length(.payload_bytes), 0) + coalesce(length(CAST(.headers AS BLOB)), 0)
    + CASE WHEN coalesce(.payload, .payload_bytes) IS NULL THEN 0 ELSE coalesce(length(.content_type), 0) END`, ".", row)
}

// headerGuard looks into the headers of what is inserted into a table.
func headerGuard(table string) string {
	text := fmt.Sprintf(`CREATE TRIGGER onewrite_outbox_headers AFTER INSERT ON onewrite_outbox WHEN NEW.headers IS NOT NULL
BEGIN
  SELECT RAISE(ABORT, 'onewrite_outbox: two header names differ by case only')
    WHERE (SELECT count(*) <> count(DISTINCT lower(key)) FROM json_each(NEW.headers));
  SELECT CASE WHEN key = '' OR length(CAST(key AS BLOB)) > 255 OR key GLOB '*[^-!#$%%&''*+.^_`+"`"+`|~0-9A-Za-z]*'
    THEN RAISE(ABORT, 'onewrite_outbox: a header name must be 1 to 255 letters, digits and !#$%%&''*+-.^_`+"`"+`|~')
  WHEN lower(key) IN (%[1]s) OR lower(key) GLOB 'ce[-_]*' OR lower(key) GLOB 'nats-*' OR lower(key) GLOB 'onewrite-*' OR lower(key) GLOB 'webhook-*'
    THEN RAISE(ABORT, 'onewrite_outbox: a header has a name that onewrite sets itself; rename it')
  WHEN type <> 'text' OR value GLOB %[2]s OR instr(lower(NEW.headers), '\u0000')
    THEN RAISE(ABORT, 'onewrite_outbox: a header value must be a string without control characters') END
  FROM json_each(NEW.headers);
END`, "'"+strings.Join(reservedHeaders, "', '")+"'", control)
	return strings.ReplaceAll(text, "onewrite_outbox", table)
}

package postgres

import (
	"cmp"
	"context"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/masking"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// table is a captured table as it is at one place in the log, or in one snapshot.
type table struct {
	rel          uint32
	schema, name string
	topic        string
	columns      []tableColumn
	key          []int   // columns of the event's key, in the order of their names; none: the table is one lane
	old          []int   // columns that an old row has when it is not whole
	nums         []int   // pg_attribute.attnum of each column; nil: not known
	partitioned  bool    // it is the root of partitions, which have replica identities of their own
	stray        string  // why its key is not the one that was registered
	look         *lookup // nil: no row was read again
	frame        int     // about how large an event is without its values and their names
	source       []byte  // `,"db":…,"schema":…,"table":…` of the envelope
	seen         uint32  // the transaction that count is of
	count        int     // changes of the table in it
}

type tableColumn struct {
	name string
	json []byte // `"name":`
	typ  valueType
	oid  uint32
	mask masking.Mask
}

// newTable describes a table by its columns; key names the columns of its key.
func newTable(rel uint32, database, schema, name string, columns []tableColumn, key []string) *table {
	t := &table{rel: rel, schema: schema, name: name, topic: schema + "." + name, columns: columns}
	for i := range t.columns {
		c := &t.columns[i]
		c.json = append(cloudevents.AppendString(nil, c.name), ':')
	}
	key = slices.Sorted(slices.Values(key))
	for _, k := range key {
		if i := slices.IndexFunc(columns, func(c tableColumn) bool { return c.name == k }); i >= 0 {
			t.old = append(t.old, i)
		}
	}
	if len(t.old) == len(key) { // else a part of the key is not sent: no order by row can be promised
		t.key = t.old
	}
	t.source = tableOrigin(database, schema, name)
	t.frame = 600 + 2*len(t.topic) + len(t.source)
	return t
}

// tableOrigin is the part of an envelope that names a table.
func tableOrigin(database, schema, name string) []byte {
	b := cloudevents.AppendString([]byte(`,"db":`), database)
	b = cloudevents.AppendString(append(b, `,"schema":`...), schema)
	return cloudevents.AppendString(append(b, `,"table":`...), name)
}

// mask looks up what becomes of the columns. One of the key cannot be left out.
func (t *table) mask(rules masking.Rules) error {
	for i := range t.columns {
		c := &t.columns[i]
		if c.mask = rules.Of(t.schema, t.name, c.name); c.mask.Kind == masking.Drop && slices.Contains(t.key, i) {
			return fmt.Errorf("postgres: %w", keyLeftOut(t.topic, c.name))
		}
	}
	return nil
}

// sameColumns reports whether two descriptions have the same columns.
func (t *table) sameColumns(o *table) bool {
	return slices.EqualFunc(t.columns, o.columns, func(a, b tableColumn) bool { return a.name == b.name && a.typ == b.typ }) && slices.Equal(t.key, o.key)
}

// catalog answers from the system catalogs, over a session of its own.
type catalog struct {
	source string
	rules  masking.Rules
	hashes bool // the key of the hashes is there
	conn   *pgx.Conn
	types  map[uint32]valueType
}

// resolve learns the types that are not built in: domains are what they are over,
// arrays what they are of, all others text.
func (c *catalog) resolve(ctx context.Context, oids []uint32) error {
	var unknown []uint32
	for _, oid := range oids {
		if !c.knows(oid) {
			unknown = append(unknown, oid)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	const q = `WITH RECURSIVE base AS (
			SELECT t.oid AS asked, t.oid, t.typtype, t.typbasetype, t.typelem, t.typsubscript = 'array_subscript_handler'::regproc AS list FROM pg_type t WHERE t.oid = ANY ($1)
			UNION ALL SELECT b.asked, t.oid, t.typtype, t.typbasetype, t.typelem, t.typsubscript = 'array_subscript_handler'::regproc FROM base b JOIN pg_type t ON b.typtype = 'd' AND t.oid = b.typbasetype),
		elem AS (
			SELECT b.asked, e.oid, e.typtype, e.typbasetype, e.typdelim FROM base b JOIN pg_type e ON e.oid = b.typelem WHERE b.typtype <> 'd' AND b.list
			UNION ALL SELECT l.asked, t.oid, t.typtype, t.typbasetype, l.typdelim FROM elem l JOIN pg_type t ON l.typtype = 'd' AND t.oid = l.typbasetype)
		SELECT b.asked, b.oid, coalesce(e.oid, 0), coalesce(e.typdelim, ',')::text FROM base b LEFT JOIN elem e ON e.asked = b.asked AND e.typtype <> 'd' WHERE b.typtype <> 'd'`
	rows, err := c.conn.Query(ctx, q, unknown)
	if err != nil {
		return explain(err)
	}
	var asked, base, elem uint32
	var delim string
	_, err = pgx.ForEachRow(rows, []any{&asked, &base, &elem, &delim}, func() error {
		switch known, ok := builtIn[base]; {
		case ok:
			c.types[asked] = known
		case elem != 0:
			c.types[asked] = valueType{form: formArray, elem: builtIn[elem].form, delim: delim[0]}
		default:
			c.types[asked] = valueType{}
		}
		return nil
	})
	for _, oid := range unknown {
		if _, ok := c.types[oid]; !ok { // dropped since: its text is passed on
			c.types[oid] = valueType{}
		}
	}
	return explain(err)
}

func (c *catalog) knows(oid uint32) bool {
	_, builtin := builtIn[oid]
	_, learnt := c.types[oid]
	return builtin || learnt
}

func (c *catalog) typeOf(oid uint32) valueType {
	if t, ok := builtIn[oid]; ok {
		return t
	}
	return c.types[oid]
}

// keyPart is a column of a table's key.
type keyPart struct {
	name   string
	hidden bool // it is generated, and not sent
}

// keyOf returns the columns of a table's key in the order of its index, as they are
// now. It is what the log calls the replica identity, or the primary key where that is
// the whole row or nothing. A deferrable one is none: two rows may share it inside a
// statement, and a consumer that applies by key would let one overwrite the other.
func keyOf(ctx context.Context, conn *pgx.Conn, rel uint32, identity byte) ([]keyPart, error) {
	rows, err := conn.Query(ctx, `SELECT a.attname::text, a.attgenerated <> '' FROM pg_index i
		CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n) JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
		WHERE i.indrelid = $1 AND k.n <= i.indnkeyatts AND i.indimmediate AND CASE $2 WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
		ORDER BY k.n`, rel, string(identity))
	if err != nil {
		return nil, explain(err)
	}
	parts, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p keyPart, err error) {
		return p, row.Scan(&p.name, &p.hidden)
	})
	return parts, explain(err)
}

// comparison is how SQL compares a column of a key with a text.
type comparison struct {
	typ        string // to which the text is cast; of a domain, what it is over
	eq, ge, gt string // operators, by which the column's type is sorted
	plain      bool   // they are the usual ones
	domain     bool   // the column's own type is a domain
}

// of is a column as it is compared: a domain has not the operators of all types that
// it may be over.
func (c comparison) of(column string) string {
	if c.domain {
		return column + "::" + c.typ
	}
	return column
}

// comparisons returns those of some columns of a table. The types of extensions have
// operators of their own, in a schema of their own: what the search path finds for
// citext compares as text does.
func comparisons(ctx context.Context, conn *pgx.Conn, rel uint32, names []string) (map[string]comparison, error) {
	rows, err := conn.Query(ctx, `WITH RECURSIVE base AS (
			SELECT a.attname::text AS name, t.oid, t.typtype, t.typbasetype, t.typtype = 'd' AS domain FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = $1 AND a.attname = ANY ($2) AND NOT a.attisdropped
			UNION ALL SELECT b.name, t.oid, t.typtype, t.typbasetype, b.domain FROM base b JOIN pg_type t ON b.typtype = 'd' AND t.oid = b.typbasetype)
		SELECT b.name, format_type(b.oid, -1), coalesce(o.eq, '='), coalesce(o.ge, '>='), coalesce(o.gt, '>'), coalesce(o.plain, true), b.domain
		FROM base b LEFT JOIN LATERAL (
			SELECT max(q.text) FILTER (WHERE m.amopstrategy = 3) AS eq, max(q.text) FILTER (WHERE m.amopstrategy = 4) AS ge, max(q.text) FILTER (WHERE m.amopstrategy = 5) AS gt,
				bool_and(n.nspname = 'pg_catalog' AND p.oprname IN ('<', '<=', '=', '>=', '>')) AS plain
			FROM pg_opclass c JOIN pg_am a ON a.oid = c.opcmethod AND a.amname = 'btree'
			JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
			JOIN pg_operator p ON p.oid = m.amopopr JOIN pg_namespace n ON n.oid = p.oprnamespace
			CROSS JOIN LATERAL (SELECT format('OPERATOR(%I.%s)', n.nspname, p.oprname) AS text) q
			WHERE c.opcdefault AND c.opcintype = b.oid) o ON true
		WHERE b.typtype <> 'd'`, rel, names)
	if err != nil {
		return nil, explain(err)
	}
	all := map[string]comparison{}
	var name string
	var c comparison
	_, err = pgx.ForEachRow(rows, []any{&name, &c.typ, &c.eq, &c.ge, &c.gt, &c.plain, &c.domain}, func() error {
		all[name] = c
		return nil
	})
	return all, explain(err)
}

// describe makes a table of what the log says of it. Its key is the replica identity,
// which is the primary key unless the table's owner chose another index. Where it is
// the whole row, or nothing, the key is the one that was registered, by the names that its
// columns have in the log. The log may be ahead
// of what other sessions see: settle waits for them.
func (c *catalog) describe(ctx context.Context, database string, r *pgoutput.Relation, reg captured, settle func() error) (*table, error) {
	silent := r.Identity == 'f' || r.Identity == 'n' // of the key
	now, err := c.shape(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	nums, settled := align(r.Columns, now.attributes)
	oids := make([]uint32, len(r.Columns))
	for i, col := range r.Columns {
		oids[i] = col.Type
		settled = settled && c.knows(col.Type)
	}
	if !settled || silent && reg.key == unknownKey {
		if err := settle(); err != nil {
			return nil, err
		}
		if now, err = c.shape(ctx, r.ID); err != nil {
			return nil, err
		}
		nums, _ = align(r.Columns, now.attributes)
	}
	if err := c.resolve(ctx, oids); err != nil {
		return nil, err
	}
	parts, err := keyOf(ctx, c.conn, r.ID, r.Identity)
	if err != nil {
		return nil, err
	}
	columns := make([]tableColumn, len(r.Columns))
	var key []string
	for i, col := range r.Columns {
		columns[i] = tableColumn{name: col.Name, typ: c.typeOf(col.Type), oid: col.Type}
		if col.Key && r.Identity != 'f' { // where it is the whole row, all columns are said to be the key
			key = append(key, col.Name)
		}
	}
	places := nums
	if gone := len(now.attributes) == 0; silent && (gone || reg.key == unknownKey) { // or it is captured no more
		numbers, was, err := c.remembered(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		reg.key = cmp.Or(numbers, reg.key)
		if gone {
			places = alignGone(r.Columns, was)
		}
	}
	for _, p := range parts {
		if p.hidden || silent && reg.key == unknownKey {
			key = append(key, p.name)
		}
	}
	if silent && reg.key != unknownKey {
		key = keyNames(columns, places, reg.key)
	}
	t := newTable(r.ID, database, r.Namespace, r.Name, columns, key)
	t.nums, t.partitioned = nums, now.partitioned
	rules, err := c.rulesFor(ctx, t, reg)
	if err != nil {
		return nil, err
	}
	if err := t.mask(rules); err != nil {
		return nil, err
	}
	return t, covered(ctx, c.conn, c.rules, t, settle)
}

// captured is a table as the registry has it.
type captured struct {
	rel      uint32
	name     string // schema.table
	member   uint32 // the oid of its membership in the publication
	altered  int64  // the version of the publication's row
	identity string
	wanted   int          // snapshots asked for
	finished int          // and made
	where    string       // the condition of the rows of the one that is wanted; "": all
	filter   string       // the condition of later ones, as configured
	key      string       // of its events, as keyColumns has it
	keyed    pgoutput.LSN // what was committed before has rows under other keys, perhaps, and a snapshot of after
	columns  string       // the rules for its columns, as migrate was given them
}

func (c captured) pending() bool { return c.wanted > c.finished }

// quoted is the table's name in SQL.
func (c captured) quoted() string {
	schema, name, _ := strings.Cut(c.name, ".")
	return pgx.Identifier{schema, name}.Sanitize()
}

// registry reads the tables that a source captures, in the order of their names.
func registry(ctx context.Context, conn *pgx.Conn, source string) ([]captured, error) {
	rows, err := conn.Query(ctx, `SELECT rel, name, member, altered::text::bigint, identity::text, wanted, finished,
		coalesce(CASE WHEN to_jsonb(c) ->> 'asked' = wanted::text THEN to_jsonb(c) ->> 'once' ELSE to_jsonb(c) ->> 'filter' END, ''),
		coalesce(to_jsonb(c) ->> 'key', '`+unknownKey+`'), coalesce(to_jsonb(c) ->> 'keyed', '0/0'), coalesce(to_jsonb(c) ->> 'columns', ''), coalesce(to_jsonb(c) ->> 'filter', '')
		FROM onewrite.captured c WHERE source = $1 ORDER BY name`, source)
	if err != nil {
		return nil, explain(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c captured, err error) {
		var keyed string
		if err = row.Scan(&c.rel, &c.name, &c.member, &c.altered, &c.identity, &c.wanted, &c.finished, &c.where, &c.key, &keyed, &c.columns, &c.filter); err != nil {
			return c, err
		}
		c.keyed, err = pgoutput.ParseLSN(keyed)
		return c, err
	})
	return list, explain(err)
}

// publicationOf is the publication of a source, slotOf its slot: slots are the whole
// cluster's, so the database is in the name.
func publicationOf(source string) string { return "onewrite_" + source }

func slotOf(source string, database uint32) string {
	name := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' {
			return c
		}
		return '_'
	}, strings.ToLower(source))
	if name != source || len(name) > 30 { // others may come to the same
		name = fmt.Sprintf("%.30s_%08x", name, crc32.ChecksumIEEE([]byte(source)))
	}
	return fmt.Sprintf("onewrite_%s_%d", name, database)
}

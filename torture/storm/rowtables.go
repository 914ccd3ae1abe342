package storm

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/onewrite/onewrite/torture/history"
)

// rowTables are captured, each with a column v that gets a number with every change
// which no other change has. Triggers note each change in shadow.log, in its own
// transaction: what is there after all is over is the truth.
const rowTables = `
CREATE SCHEMA rows; CREATE SCHEMA shadow;
CREATE TABLE shadow.log (n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), tx bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint & 4294967295, tbl text NOT NULL, key text NOT NULL, op text NOT NULL, v bigint);
CREATE FUNCTION shadow.key(kind text, r record) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
	CASE kind
	WHEN 'pair' THEN RETURN '{"id":' || r.id || ',"region":"' || r.region || '"}';
	WHEN 'parts' THEN RETURN '{"id":' || r.id || ',"part":' || r.part || '}';
	WHEN 'bare' THEN RETURN '{"v":' || r.v || '}';
	ELSE RETURN '{"id":' || r.id || '}';
	END CASE;
END $$;
CREATE FUNCTION shadow.keep() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE was text; now text; BEGIN
	IF TG_OP = 'TRUNCATE' THEN
		INSERT INTO shadow.log (tbl, key, op) VALUES (TG_ARGV[0], '', 't');
		RETURN NULL;
	END IF;
	IF TG_OP <> 'INSERT' THEN was := shadow.key(TG_ARGV[0], OLD); END IF;
	IF TG_OP <> 'DELETE' THEN now := shadow.key(TG_ARGV[0], NEW); END IF;
	IF was = now THEN
		INSERT INTO shadow.log (tbl, key, op, v) VALUES (TG_ARGV[0], now, 'u', NEW.v);
		RETURN NULL;
	END IF;
	IF was IS NOT NULL THEN INSERT INTO shadow.log (tbl, key, op) VALUES (TG_ARGV[0], was, 'd'); END IF;
	IF now IS NOT NULL THEN INSERT INTO shadow.log (tbl, key, op, v) VALUES (TG_ARGV[0], now, 'c', NEW.v); END IF;
	RETURN NULL;
END $$;
CREATE FUNCTION shadow.keep_many() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	IF TG_OP = 'DELETE' THEN
		INSERT INTO shadow.log (tbl, key, op) SELECT TG_ARGV[0], '{"id":' || id || '}', 'd' FROM stale;
	ELSE
		INSERT INTO shadow.log (tbl, key, op, v) SELECT TG_ARGV[0], '{"id":' || id || '}', CASE TG_OP WHEN 'INSERT' THEN 'c' ELSE 'u' END, v FROM fresh;
	END IF;
	RETURN NULL;
END $$;
CREATE PROCEDURE shadow.watch(name text) LANGUAGE plpgsql AS $$ BEGIN
	EXECUTE format('CREATE TRIGGER keep AFTER INSERT OR UPDATE OR DELETE ON rows.%1$I FOR EACH ROW EXECUTE FUNCTION shadow.keep(%1$L)', name);
	EXECUTE format('CREATE TRIGGER cut AFTER TRUNCATE ON rows.%1$I FOR EACH STATEMENT EXECUTE FUNCTION shadow.keep(%1$L)', name);
END $$;
CREATE TYPE mood AS ENUM ('sad', 'so so', 'it''s "fine"');
CREATE DOMAIN small AS int CHECK (VALUE < 1000);
CREATE TABLE rows.plain (id int PRIMARY KEY, v bigint NOT NULL, n int, note text, big text);
CREATE TABLE rows.pair (region text COLLATE "C", id int, v bigint NOT NULL, big text, PRIMARY KEY (region, id));
CREATE TABLE rows.bare (v bigint NOT NULL, note text);
CREATE TABLE rows.parts (id int, part int, v bigint NOT NULL, note text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
CREATE TABLE rows.parts_even PARTITION OF rows.parts FOR VALUES IN (0, 2, 4); CREATE TABLE rows.parts_odd PARTITION OF rows.parts FOR VALUES IN (1, 3, 5);
CREATE TABLE rows.churn (id int PRIMARY KEY, v bigint NOT NULL, c1 int, c2 text);
CREATE TABLE rows.anew (id int PRIMARY KEY, v bigint NOT NULL, note text);
CREATE TABLE rows.wide (id int PRIMARY KEY, v bigint NOT NULL, i2 smallint, i8 bigint, o oid, f4 real, f8 double precision, num numeric, long numeric(1000), t text, c char(7), vc varchar, ba bytea, b boolean,
	d date, ts timestamp, tz timestamptz, tt time, iv interval, js json, jb jsonb, u uuid, ai int[], at text[], an numeric[], ab boolean[], af double precision[], en mood, dom small, big text, "odd ""name'" text);
CREATE TABLE rows.whole (LIKE rows.wide INCLUDING ALL); ALTER TABLE rows.whole REPLICA IDENTITY FULL;
CREATE TABLE rows.idle (id int PRIMARY KEY, v bigint NOT NULL);
CREATE TABLE rows.bulk (id int PRIMARY KEY, v bigint NOT NULL, note text);
CREATE TABLE rows.mark (id int PRIMARY KEY, v bigint NOT NULL);
CREATE TABLE public.busy (pad text);
ALTER TABLE rows.plain ALTER COLUMN big SET STORAGE EXTERNAL; ALTER TABLE rows.pair ALTER COLUMN big SET STORAGE EXTERNAL;
CALL shadow.watch('plain'); CALL shadow.watch('pair'); CALL shadow.watch('bare'); CALL shadow.watch('parts'); CALL shadow.watch('churn'); CALL shadow.watch('anew');
CALL shadow.watch('wide'); CALL shadow.watch('whole'); CALL shadow.watch('idle'); CALL shadow.watch('mark');
CREATE TRIGGER came AFTER INSERT ON rows.bulk REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION shadow.keep_many('bulk');
CREATE TRIGGER changed AFTER UPDATE ON rows.bulk REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION shadow.keep_many('bulk');
CREATE TRIGGER went AFTER DELETE ON rows.bulk REFERENCING OLD TABLE AS stale FOR EACH STATEMENT EXECUTE FUNCTION shadow.keep_many('bulk');
INSERT INTO rows.plain SELECT i, 1, 0, 'seed', repeat('s', 3000) || i FROM generate_series(1, 400) i;
INSERT INTO rows.pair SELECT 'r' || i % 7, i, 1, repeat('x', 2500) || i FROM generate_series(1, 300) i;
INSERT INTO rows.bare SELECT -i, 'seed' FROM generate_series(1, 60) i;
INSERT INTO rows.parts SELECT i, i % 6, 1, 'seed' FROM generate_series(1, 200) i;
INSERT INTO rows.churn SELECT i, 1, i, 'seed' FROM generate_series(1, 60) i;
INSERT INTO rows.anew SELECT i, 1, 'seed' FROM generate_series(1, 40) i;
INSERT INTO rows.idle VALUES (0, 1);
`

// makeRows makes the tables.
func (d *database) makeRows(ctx context.Context) error { return d.simply(ctx, rowTables) }

// cell is the contract's form of a column as JSON, made by the server itself.
func cell(column, typ, elem string) string {
	text := `to_json(` + column + `::text)`
	switch typ {
	case "int2", "int4", "int8", "float4", "float8", "bool":
		return `to_json(` + column + `)`
	case "oid":
		return `to_json(` + column + `::bigint)`
	case "bytea":
		return `to_json(translate(encode(` + column + `, 'base64'), E'\n', ''))`
	case "bpchar": // a cast would take the blanks away
		return `CASE WHEN ` + column + ` IS NOT NULL THEN to_json(format('%s', ` + column + `)) END`
	case "timestamp":
		return `CASE WHEN isfinite(` + column + `) AND ` + column + ` >= '0001-01-01' THEN to_json(replace(` + column + `::text, ' ', 'T')) ELSE ` + text + ` END`
	case "timestamptz":
		return `CASE WHEN isfinite(` + column + `) AND ` + column + ` >= '0001-01-01' THEN to_json(regexp_replace(replace(` + column + `::text, ' ', 'T'), '\+00$', 'Z')) ELSE ` + text + ` END`
	}
	switch elem {
	case "":
		return text
	case "int2", "int4", "int8", "float4", "float8", "bool":
		return `array_to_json(` + column + `)`
	}
	return `array_to_json(` + column + `::text[])`
}

// keyed is how the key of a table's rows looks, as in shadow.key.
func keyed(table string) string {
	if table == "bulk" { // quicker, for millions
		return `'{"id":' || x.id || '}'`
	}
	return `shadow.key('` + table + `', x)`
}

// dumpRows writes what the tables hold, and what was noted of their changes.
func (s *storm) dumpRows(ctx context.Context) error {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, `SET TimeZone = 'UTC'`); err != nil {
		return err
	}
	names, err := texts(ctx, conn, `SELECT relname FROM pg_class WHERE relnamespace = 'rows'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition`)
	if err != nil {
		return err
	}
	out, err := history.Create(s.Dir, history.RowFile, "")
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := dumpTable(ctx, conn, name, out); err != nil {
			return errors.Join(err, out.Close())
		}
	}
	noted, err := history.Create(s.Dir, history.ShadowFile, "")
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	for i := range s.lost {
		noted.Add(&s.lost[i])
	}
	return errors.Join(s.noted(ctx, 0, func(c *history.Change) { noted.Add(c) }), noted.Close())
}

func dumpTable(ctx context.Context, conn *sql.Conn, name string, out *history.Log) error {
	columns, err := texts(ctx, conn, `SELECT json_build_array(attname, b.typname, coalesce(e.typname, ''))::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		JOIN pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END LEFT JOIN pg_type e ON e.oid = b.typelem AND b.typcategory = 'A'
		WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped`, "rows."+name)
	if err != nil {
		return err
	}
	var list []string
	for _, text := range columns {
		var c [3]string
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			return err
		}
		column := `"` + strings.ReplaceAll(c[0], `"`, `""`) + `"`
		list = append(list, cell("x."+column, c[1], c[2])+` AS `+column)
	}
	rows, err := conn.QueryContext(ctx, fmt.Sprintf(`SELECT %s, (SELECT row_to_json(y) FROM (SELECT %s) y)::text FROM rows.%s x`, keyed(name), strings.Join(list, ", "), name))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		row, text := history.Row{Table: "rows." + name}, ""
		if err := rows.Scan(&row.Key, &text); err != nil {
			return err
		}
		row.Row = json.RawMessage(text)
		out.Add(&row)
	}
	return rows.Err()
}

// noted calls do for what was noted after number n.
func (s *storm) noted(ctx context.Context, n int64, do func(*history.Change)) error {
	rows, err := s.db.QueryContext(ctx, `SELECT (extract(epoch FROM at) * 1000000)::bigint, tx, tbl, key, op, coalesce(v, 0) FROM shadow.log WHERE n > $1 ORDER BY n`, n)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var c history.Change
		var v int64
		if err := rows.Scan(&c.At, &c.Tx, &c.Table, &c.Key, &c.Op, &v); err != nil {
			return err
		}
		c.Table, c.At, c.V = "rows."+c.Table, c.At*1000-s.start.UnixNano(), uint64(v)
		do(&c)
	}
	return rows.Err()
}

// texts returns the only column of a query.
func texts(ctx context.Context, db interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, query string, args ...any) (list []string, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		list = append(list, text)
	}
	return list, rows.Err()
}

// has reports whether a workload of row changes is on.
func (c *Config) has(workload string) bool { return slices.Contains(strings.Fields(c.Rows), workload) }

package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/outbox"
)

// emitBody is onewrite.emit: the checks of a row, then a message in the log, and after it
// the one that keeps it in its place. It runs as the role that calls it, for which
// pg_logical_emit_message is there unless it was revoked from PUBLIC.
const emitBody = `
DECLARE
    made uuid := gen_random_uuid();
BEGIN
    IF $1 IS NULL THEN
        RAISE EXCEPTION 'null value in column "topic" of an event' USING ERRCODE = 'not_null_violation', COLUMN = 'topic';
    END IF;
    PERFORM onewrite.valid(made, $1, $2, NULL, NULL, NULL, {{text}}, {{bytes}}, {{max_event}});
    -- A message is not converted from the database's encoding.
    PERFORM pg_logical_emit_message(true, '{{prefix}}', convert_to(json_build_object('id', made, 'topic', $1, 'key', $2, {{field}})::text, 'UTF8'));
    PERFORM pg_logical_emit_message(true, '{{next}}', '');
    RETURN made;
END`

// emitter is one of the overloads of onewrite.emit, as onewrite.publish has them.
type emitter struct{ typ, text, bytes, field string }

var emitters = []emitter{
	{"text", "$3", "NULL", `'payload', $3`},
	{"jsonb", "$3::text", "NULL", `'payload', $3::text`},
	{"bytea", "NULL", "$3", `'payload_bytes', encode($3, 'base64')`},
}

func (e emitter) name() string { return "onewrite.emit(text, text, " + e.typ + ")" }

func (e emitter) body(o MigrateOptions) string {
	return strings.NewReplacer("{{text}}", e.text, "{{bytes}}", e.bytes, "{{field}}", e.field,
		"{{max_event}}", strconv.Itoa(o.maxEvent()), "{{prefix}}", outbox.LogPrefix, "{{next}}", outbox.LogNext).Replace(emitBody)
}

// create is the DDL of the function.
func (e emitter) create(o MigrateOptions) string {
	return fmt.Sprintf("CREATE OR REPLACE FUNCTION onewrite.emit(topic text, key text, payload %s) RETURNS uuid LANGUAGE plpgsql AS\n$$%s$$;\n", e.typ, e.body(o))
}

// emitScript makes all of them.
func (o MigrateOptions) emitScript() string {
	var b strings.Builder
	b.WriteString("\n-- For any language, without the outbox: SELECT onewrite.emit('order.placed', 'alice', '{\"n\":1}').\n")
	for _, e := range emitters {
		b.WriteString(e.create(o))
	}
	return b.String()
}

// emitting makes the functions that write events into the log, or makes them anew where
// they are others. Where nobody is to read the log any more they go: a call that fails
// is better than an event that nobody sees.
func (o MigrateOptions) emitting(ctx context.Context, tx pgx.Tx) (applied []string, err error) {
	there, same := 0, 0
	for _, e := range emitters {
		var source *string
		if err := tx.QueryRow(ctx, `SELECT (SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure($1))`, e.name()).Scan(&source); err != nil {
			return nil, explain(err)
		}
		if source != nil {
			there++
		}
		if source != nil && *source == e.body(o) {
			same++
		}
	}
	switch {
	case !o.Capture.Messages && there > 0:
		for _, e := range emitters {
			if _, err := tx.Exec(ctx, "DROP FUNCTION IF EXISTS "+e.name()); err != nil {
				return nil, explain(err)
			}
		}
		return []string{"dropped the function onewrite.emit, as nobody reads what it writes"}, nil
	case o.Capture.Messages && same < len(emitters):
		if _, err := tx.Exec(ctx, o.emitScript(), pgx.QueryExecModeSimpleProtocol); err != nil {
			return nil, explain(err)
		}
		return []string{"created the function onewrite.emit"}, nil
	}
	return nil, nil
}

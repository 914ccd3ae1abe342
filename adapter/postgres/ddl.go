package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/outbox"
)

const (
	// ddlPrefix marks the messages in the log that tell of DDL.
	ddlPrefix = "onewrite.ddl"
	// mostDDL is how many characters of a command are told: a script may be of any size,
	// and what is larger than the bus takes would stop the source.
	mostDDL = 100_000
)

// ddlBody tells of DDL on captured tables in the transaction that does it. The function
// reads the registry, which the one who alters a table may not, so it runs as its owner.
// It lets no command fail.
//
// Whoever owns the schema can put another registry in place of ours, and the function runs
// as a superuser: so it reads none but a table, without what could call functions of
// theirs (a view, a policy, a child that is foreign, a column of a type with casts), and
// holds it so that it stays that one.
//
// The handler of exceptions is a subtransaction, so the message that keeps the others in
// their place is needed; see outbox.LogNext.
const ddlBody = `
DECLARE
    t record;
    told boolean := false;
BEGIN
    LOCK TABLE ONLY onewrite.captured IN ACCESS SHARE MODE;
    IF (SELECT count(*) FROM pg_class k JOIN pg_attribute a ON a.attrelid = k.oid
        WHERE k.oid = to_regclass('onewrite.captured') AND k.relkind = 'r' AND NOT k.relrowsecurity AND NOT a.attisdropped AND a.attgenerated = ''
            AND (a.attname, a.atttypid) IN (('rel', 'oid'::regtype), ('name', 'text'::regtype))) <> 2 THEN
        RAISE EXCEPTION 'onewrite.captured is not the table that onewrite migrate makes; see who owns the schema onewrite';
    END IF;
    FOR t IN {{query}}
    LOOP
        PERFORM pg_logical_emit_message(true, '{{prefix}}', convert_to(json_build_object('command', tg_tag, 'schema', t.schema, 'table', t.name,
            'captured', t.captured, 'ddl', left(current_query(), {{most}}))::text, 'UTF8'));
        told := true;
    END LOOP;
    IF told THEN
        PERFORM pg_logical_emit_message(true, '{{next}}', '');
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'onewrite could not tell of %: %', tg_tag, SQLERRM;
END`

// teller is an event trigger and its function, which have one name.
type teller struct{ name, event, query string }

var tellers = []teller{
	{"onewrite_ddl", "ddl_command_end", `
        SELECT DISTINCT n.nspname AS schema, k.relname AS name, c.name AS captured
        FROM pg_event_trigger_ddl_commands() d JOIN pg_class k ON k.oid = d.objid JOIN pg_namespace n ON n.oid = k.relnamespace
            JOIN ONLY onewrite.captured c ON c.rel IN (k.oid, pg_partition_root(k.oid))
        WHERE d.classid = 'pg_class'::regclass`},
	{"onewrite_drop", "sql_drop", `
        SELECT DISTINCT d.schema_name AS schema, d.object_name AS name, c.name AS captured
        FROM pg_event_trigger_dropped_objects() d JOIN ONLY onewrite.captured c ON c.rel = d.objid
        WHERE d.classid = 'pg_class'::regclass AND d.objsubid = 0`},
}

func (t teller) body() string {
	return strings.NewReplacer("{{query}}", t.query, "{{prefix}}", ddlPrefix, "{{next}}", outbox.LogNext, "{{most}}", strconv.Itoa(mostDDL)).Replace(ddlBody)
}

// tellScript makes functions and triggers.
func tellScript() string {
	var b strings.Builder
	b.WriteString("\n-- DDL on captured tables, told in the log: as superuser, or the provider's role for event triggers.\n")
	for _, t := range tellers {
		fmt.Fprintf(&b, `CREATE OR REPLACE FUNCTION onewrite.%[1]s() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$%[2]s$$;
DROP EVENT TRIGGER IF EXISTS %[1]s;
CREATE EVENT TRIGGER %[1]s ON %[3]s EXECUTE FUNCTION onewrite.%[1]s();
`, t.name, t.body(), t.event)
	}
	return b.String()
}

// tellState counts the event triggers that are there, and those that are as they should be.
const tellState = `SELECT count(*), count(*) FILTER (WHERE p.prosrc = w.body AND n.nspname = 'onewrite' AND t.evtevent = w.event AND t.evtenabled IN ('O', 'A') AND 'search_path=` + safePath + `' = ANY (p.proconfig))
	FROM unnest($1::text[], $2::text[], $3::text[]) w (name, event, body) JOIN pg_event_trigger t ON t.evtname = w.name
	JOIN pg_proc p ON p.oid = t.evtfoid JOIN pg_namespace n ON n.oid = p.pronamespace`

func tellStateOf(ctx context.Context, tx pgx.Tx) (there, same int, err error) {
	var name, event, body []string
	for _, t := range tellers {
		name, event, body = append(name, t.name), append(event, t.event), append(body, t.body())
	}
	return there, same, tx.QueryRow(ctx, tellState, pgx.QueryExecModeExec, name, event, body).Scan(&there, &same)
}

// telling makes the event triggers that tell of DDL, or makes them anew where they are
// others, or takes them away.
func (o MigrateOptions) telling(ctx context.Context, tx pgx.Tx) (applied []string, err error) {
	there, same, err := tellStateOf(ctx, tx)
	if err != nil {
		return nil, explain(err)
	}
	script, step := "", ""
	switch {
	case o.Capture.DDL && same < len(tellers):
		script, step = tellScript(), "made the event triggers that tell of DDL"
	case !o.Capture.DDL && there > 0:
		for _, t := range tellers {
			script += fmt.Sprintf("DROP EVENT TRIGGER IF EXISTS %[1]s; DROP FUNCTION IF EXISTS onewrite.%[1]s(); ", t.name)
		}
		step = "dropped the event triggers that told of DDL"
	default:
		return nil, nil
	}
	_, err = tx.Exec(ctx, script, pgx.QueryExecModeSimpleProtocol)
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "42501" {
		cure := "let one run: onewrite migrate --print | psql -v ON_ERROR_STOP=1; or take ddl: out"
		if !o.Capture.DDL {
			cure = "let one run: " + strings.TrimSpace(script)
		}
		return nil, fmt.Errorf("postgres: event triggers are for a superuser, or the provider's role, to make and to drop (%s); %s", pe.Message, cure)
	}
	return []string{step}, explain(err)
}

package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// safePath is the search path of every function that runs with the rights of its owner.
// A path that does not name pg_temp has it first for tables and types: who calls the
// function could have it read a view of his own in place of a catalog, and the view's
// functions would run as the owner.
const safePath = "pg_catalog, pg_temp"

// unsafeFunctions are those with another path. The ones of the event triggers belong to a
// superuser, and are made anew by telling.
var unsafeFunctions = fmt.Sprintf(`SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'onewrite')
	AND p.prosecdef AND NOT coalesce('search_path=%s' = ANY (p.proconfig), false) AND p.prorettype <> 'event_trigger'::regtype`, safePath)

// mendFunctions gives those of an older onewrite the path.
func mendFunctions(ctx context.Context, tx pgx.Tx) (applied []string, err error) {
	rows, err := tx.Query(ctx, unsafeFunctions)
	if err != nil {
		return nil, explain(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, explain(err)
	}
	for _, name := range names {
		if _, err := tx.Exec(ctx, "ALTER FUNCTION "+name+" SET search_path = "+safePath); err != nil {
			return nil, explain(err)
		}
		applied = append(applied, "gave "+name+" a search path that its caller cannot change")
	}
	return applied, nil
}

// mendScript does the same in the script for an administrator.
var mendScript = fmt.Sprintf(`DO $migrate$ DECLARE f text; BEGIN
FOR f IN %s LOOP
    EXECUTE 'ALTER FUNCTION ' || f || ' SET search_path = %s';
END LOOP;
END $migrate$;
`, unsafeFunctions, safePath)

// definers looks at the functions that run with the rights of their owner.
func (e *examiner) definers(ctx context.Context, tx pgx.Tx) error {
	if !e.objects["outbox"] {
		return nil
	}
	found, err := rowsOf(ctx, tx, unsafeFunctions)
	if err != nil || len(found) == 0 {
		return err
	}
	names := make([]string, len(found))
	for i, f := range found {
		names[i] = f[0]
	}
	e.problem("functions", "onewrite migrate", "%s run as their owner and look into the caller's temporary schema first: who may call them may do what their owner may", strings.Join(names, ", "))
	return nil
}

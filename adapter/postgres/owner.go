package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// A superuser makes the event triggers, by the script or by migrate itself, and would own
// whatever else is made on that occasion: the next migrate of the owner would fail. So all
// of it is given to the owner of the schema. The functions of the event triggers are not:
// they run in everybody's commands, and who owns them can have them do anything there.

// mayGive is a condition of the schema n: the one who migrates may give objects to its owner.
const mayGive = `n.nspname = 'onewrite' AND ((SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR pg_has_role(n.nspowner, 'USAGE'))`

// givePublication is the statement that gives a publication to the owner, if it is another's.
// It comes before the registry is written: the publication's row changes with it.
func givePublication(source string) string {
	return fmt.Sprintf(`SELECT format('ALTER PUBLICATION %%I OWNER TO %%s', p.pubname, n.nspowner::regrole) FROM pg_publication p, pg_namespace n WHERE p.pubname = %s AND p.pubowner <> n.nspowner AND %s`,
		quoteText(publicationOf(source)), mayGive)
}

// giveObjects are the statements that give all else in the schema to its owner.
const giveObjects = `SELECT format('ALTER %s %s OWNER TO %s', CASE k.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, k.oid::regclass, n.nspowner::regrole)
        FROM pg_class k JOIN pg_namespace n ON n.oid = k.relnamespace WHERE k.relkind IN ('r', 'p', 'S') AND k.relowner <> n.nspowner AND ` + mayGive + `
    UNION ALL SELECT format('ALTER FUNCTION %s OWNER TO %s', p.oid::regprocedure, n.nspowner::regrole)
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.prorettype <> 'event_trigger'::regtype AND p.proowner <> n.nspowner AND ` + mayGive

// giveScript runs the statements that a query makes, in the script for an administrator.
func giveScript(query string) string {
	return fmt.Sprintf(`DO $migrate$ DECLARE s text; BEGIN
FOR s IN %s LOOP
    EXECUTE s;
END LOOP;
END $migrate$;
`, query)
}

// give runs the statements that a query makes, and returns how many there were.
func give(ctx context.Context, tx pgx.Tx, query string) (int, error) {
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return 0, explain(err)
	}
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return 0, explain(err)
	}
	for _, s := range statements {
		if _, err := tx.Exec(ctx, s); err != nil {
			return 0, explain(err)
		}
	}
	return len(statements), nil
}

// giving gives what another than the owner of the schema has made to the owner.
func giving(ctx context.Context, tx pgx.Tx) (applied []string, err error) {
	n, err := give(ctx, tx, giveObjects)
	if err != nil || n == 0 {
		return nil, err
	}
	return []string{"gave what is in the schema onewrite to its owner"}, nil
}

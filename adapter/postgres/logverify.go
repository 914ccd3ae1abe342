package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
)

// cureMigrate is the cure where the capturing itself was damaged.
const cureMigrate = "run onewrite migrate: it puts the publication right, and reading goes on by itself, with a snapshot of what missed changes"

// verifyCapture compares the publication with the registry. It returns the tables that are
// there, and those that were dropped: the others go on without them, as
// nothing is missing of a table that is gone.
func verifyCapture(ctx context.Context, conn *pgx.Conn, source string, list []captured) (there, gone []captured, err error) {
	gap := func(format string, args ...any) ([]captured, []captured, error) {
		return nil, nil, &onewrite.Gap{Reason: "row changes: " + fmt.Sprintf(format, args...), From: "the change of the publication", To: "now", Cure: cureMigrate}
	}
	rows, err := conn.Query(ctx, `SELECT r.prrelid, r.oid, r.prqual IS NOT NULL OR r.prattrs IS NOT NULL, c.relreplident::text,
			p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AND p.pubviaroot, p.xmin::text::bigint, n.nspname || '.' || c.relname, `+keyColumns+`
		FROM pg_publication p LEFT JOIN pg_publication_rel r ON p.oid = r.prpubid LEFT JOIN pg_class c ON c.oid = r.prrelid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1`, publicationOf(source))
	if err != nil {
		return nil, nil, explain(err)
	}
	type member struct {
		rel, oid *uint32
		partial  *bool
		identity *string
		whole    bool
		altered  int64
		name     *string
		key      string
	}
	members, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m member, err error) {
		return m, row.Scan(&m.rel, &m.oid, &m.partial, &m.identity, &m.whole, &m.altered, &m.name, &m.key)
	})
	if err != nil {
		return nil, nil, explain(err)
	}
	if len(members) == 0 {
		return gap("the publication %s is gone", publicationOf(source))
	}
	if !members[0].whole {
		return gap("the publication %s leaves out some kinds of changes, or tells partitions one by one", publicationOf(source))
	}
	for _, c := range list {
		i := slices.IndexFunc(members, func(m member) bool { return m.rel != nil && *m.rel == c.rel })
		if i < 0 {
			dropped, err := wasDropped(ctx, conn, c)
			if err != nil {
				return nil, nil, err
			}
			if dropped {
				gone = append(gone, c)
				continue
			}
		}
		there = append(there, c)
		switch {
		case i < 0:
			return gap("table %s is not in the publication %s any more", c.name, publicationOf(source))
		case *members[i].partial:
			return gap("the publication %s leaves out rows or columns of %s", publicationOf(source), c.name)
		case *members[i].oid != c.member:
			return gap("table %s was taken out of the publication %s and put back", c.name, publicationOf(source))
		case c.altered == 0: // mistrust
			return gap("changes of a partition of %s were not in the log, or without the key of the row", c.name)
		case members[i].altered != c.altered: // and is whole again
			return gap("the publication %s was altered: for some time it left out kinds of changes, or had another owner", publicationOf(source))
		case *members[i].name != c.name:
			return gap("table %s has another name now: %s", c.name, *members[i].name)
		case *members[i].identity != c.identity:
			return gap("the replica identity of %s was changed (%s, was %s)", c.name, *members[i].identity, c.identity)
		case c.key != unknownKey && members[i].key != c.key:
			return gap("the key of %s is another one than before: a consumer has its rows under the old one", c.name)
		}
	}
	return there, gone, nil
}

// wasDropped reports whether a table is gone, and none of its name is there.
func wasDropped(ctx context.Context, conn *pgx.Conn, c captured) (gone bool, err error) {
	err = conn.QueryRow(ctx, `SELECT to_regclass($2) IS NULL AND NOT EXISTS (SELECT FROM pg_class WHERE oid = $1)`, c.rel, c.quoted()).Scan(&gone)
	return gone, explain(err)
}

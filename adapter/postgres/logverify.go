package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
)

// migrateAsOwner begins the cures that the relay's own environment does not have as a rule.
const migrateAsOwner = "run onewrite migrate as the owner of the tables: "

// Cures where the capturing itself was damaged, or what is captured is another.
const (
	cureMigrate  = migrateAsOwner + "it puts the publication right, and reading goes on by itself, with a snapshot of what missed changes"
	cureRegistry = migrateAsOwner + "it makes the table anew, and reading goes on by itself, with a snapshot of what is captured"
	cureLeaf     = migrateAsOwner + "reading goes on by itself, with a snapshot of the table"
	cureIdentity = migrateAsOwner + "it takes the replica identity over, and reading goes on by itself"
	cureNothing  = migrateAsOwner + "it lets the table log its old rows again, and reading goes on by itself"
	cureKey      = migrateAsOwner + "it takes the key over, and reading goes on by itself, with a snapshot of the table"
)

// member is a table of the publication, or what is known of that alone.
type member struct {
	rel, oid *uint32
	partial  *bool
	identity *string
	whole    bool
	altered  int64
	name     *string
	key      string
}

// changed is the gap where something of the capturing is another than before.
func changed(what, cure, format string, args ...any) *onewrite.Gap {
	return &onewrite.Gap{Reason: "row changes: " + fmt.Sprintf(format, args...), From: "the change of the " + what, To: "now", Cure: cure}
}

// differs compares a table with its row in the registry; nil: it is as it was.
func (m *member) differs(c captured, source string) *onewrite.Gap {
	was := fmt.Sprintf("(%s, was %s)", identities[*m.identity], identities[c.identity])
	switch {
	case *m.partial:
		return changed("publication", cureMigrate, "the publication %s leaves out rows or columns of %s", publicationOf(source), c.name)
	case *m.oid != c.member:
		return changed("publication", cureMigrate, "table %s was taken out of the publication %s and put back", c.name, publicationOf(source))
	case c.altered == 0: // mistrust
		return changed("partition", cureLeaf, "changes of a partition of %s were not in the log, or without the key of the row", c.name)
	case m.altered != c.altered: // and is whole again
		return changed("publication", cureMigrate, "the publication %s was altered: for some time it left out kinds of changes, or had another owner", publicationOf(source))
	case *m.name != c.name:
		cure := "put " + *m.name + " into tables: if it is to be captured still, and " + migrateAsOwner + "reading goes on by itself, with a snapshot of a table that took the name " + c.name
		return changed("name", cure, "table %s has another name now: %s", c.name, *m.name)
	case *m.identity != c.identity && *m.identity == "n":
		return changed("replica identity", cureNothing, "the replica identity of %s was changed %s", c.name, was)
	case *m.identity != c.identity && (c.key == unknownKey || m.key == c.key):
		return changed("replica identity", cureIdentity, "the replica identity of %s was changed %s", c.name, was)
	case *m.identity != c.identity:
		return changed("replica identity", cureKey, "the replica identity of %s was changed %s, and with it the key of its events", c.name, was)
	case c.key != unknownKey && m.key != c.key:
		return changed("key", cureKey, "the key of %s is another one than before: a consumer has its rows under the old one", c.name)
	}
	return nil
}

// verifyCapture compares the publication with the registry. It returns the tables that are
// there, and those that were dropped: the others go on without them, as
// nothing is missing of a table that is gone.
func verifyCapture(ctx context.Context, conn *pgx.Conn, source string, list []captured) (there, gone []captured, err error) {
	gap := func(format string, args ...any) ([]captured, []captured, error) {
		return nil, nil, changed("publication", cureMigrate, format, args...)
	}
	rows, err := conn.Query(ctx, `SELECT r.prrelid, r.oid, r.prqual IS NOT NULL OR r.prattrs IS NOT NULL, c.relreplident::text,
			p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AND p.pubviaroot, p.xmin::text::bigint, n.nspname || '.' || c.relname, `+keyColumns+`
		FROM pg_publication p LEFT JOIN pg_publication_rel r ON p.oid = r.prpubid LEFT JOIN pg_class c ON c.oid = r.prrelid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1`, publicationOf(source))
	if err != nil {
		return nil, nil, explain(err)
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
		if i < 0 {
			return gap("table %s is not in the publication %s any more", c.name, publicationOf(source))
		}
		if g := members[i].differs(c, source); g != nil {
			return nil, nil, g
		}
	}
	return there, gone, nil
}

// wasDropped reports whether a table is gone, and none of its name is there.
func wasDropped(ctx context.Context, conn *pgx.Conn, c captured) (gone bool, err error) {
	err = conn.QueryRow(ctx, `SELECT to_regclass($2) IS NULL AND NOT EXISTS (SELECT FROM pg_class WHERE oid = $1)`, c.rel, c.quoted()).Scan(&gone)
	return gone, explain(err)
}

package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// snapshotNumber is one that no snapshot had before, also of a table that was captured
// some time ago: a position may still say that it is finished.
const snapshotNumber = `(pg_current_xact_id()::text::bigint & 1073741823)::int`

// register writes down what is captured. A table has missed changes, and gets a snapshot
// whatever is configured, if its membership in the publication is another than before,
// or if it is another table of the name, or if nobody knows, as the registry was lost:
// kept are the tables that were in the publication.
func register(ctx context.Context, tx pgx.Tx, c Capture, want []found, kept map[uint32]bool) (applied []string, err error) {
	rels := make([]uint32, len(want))
	for i, f := range want {
		rels[i] = f.rel
	}
	rows, err := tx.Query(ctx, fmt.Sprintf(releaseTables, "$1", "rel <> ALL ($2)")+" RETURNING name", c.Source, rels)
	if err != nil {
		return nil, explain(err)
	}
	gone, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, explain(err)
	}
	for _, name := range gone {
		if slices.ContainsFunc(want, func(f found) bool { return f.full() == name }) {
			continue // another table took the name, and that is said of it
		}
		applied = append(applied, "row changes of "+name+" are captured no more")
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(forgetTables, "$1"), c.Source); err != nil {
		return nil, explain(err)
	}
	again, err := c.findAgain(ctx, tx, rels)
	if err != nil {
		return nil, err
	}
	for _, f := range want {
		step, snapshot, err := c.decide(ctx, tx, f, slices.Contains(gone, f.full()), kept[f.rel], again[f.rel])
		if err != nil {
			return nil, err
		}
		if step != "" {
			applied = append(applied, step)
		}
		_, err = tx.Exec(ctx, `INSERT INTO onewrite.captured AS c (source, rel, name, member, altered, identity, key, shape, keyed, filter, columns, wanted)
			SELECT $1, r.prrelid, $4, r.oid, p.xmin, c.relreplident, `+keyColumns+`, `+shapeOfTable+`, pg_current_wal_insert_lsn(), $6, $7, CASE WHEN $5 > 0 THEN `+snapshotNumber+` + $5 ELSE 0 END FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid
			WHERE p.pubname = $2 AND r.prrelid = $3
			ON CONFLICT (source, rel) DO UPDATE SET name = excluded.name, member = excluded.member, altered = excluded.altered, identity = excluded.identity, key = excluded.key, shape = excluded.shape, filter = excluded.filter, columns = excluded.columns,
				keyed = CASE WHEN $5 > 0 THEN excluded.keyed ELSE c.keyed END, wanted = CASE WHEN $5 > 0 THEN greatest(c.wanted, c.finished, `+snapshotNumber+`) + $5 ELSE c.wanted END
			WHERE (c.name, c.member, c.altered::text, c.identity, c.key, c.shape, c.filter, c.columns) IS DISTINCT FROM (excluded.name, excluded.member, excluded.altered::text, excluded.identity, excluded.key, excluded.shape, excluded.filter, excluded.columns) OR $5 > 0`,
			c.Source, publicationOf(c.Source), f.rel, f.full(), snapshot, f.where, c.columns(f))
		if err == nil && again[f.rel] && c.AgainWhere != "" {
			_, err = tx.Exec(ctx, `UPDATE onewrite.captured SET once = $3, asked = wanted WHERE source = $1 AND rel = $2`, c.Source, f.rel, c.AgainWhere)
		}
		if err != nil {
			return nil, explain(err)
		}
	}
	return applied, nil
}

// identities are the names of replica identities.
var identities = map[string]string{"d": "default", "f": "full", "i": "an index", "n": "nothing"}

// decide returns what is said of a table, and whether it gets a snapshot: 1 or 0.
func (c Capture) decide(ctx context.Context, tx pgx.Tx, f found, gone, kept, again bool) (step string, snapshot int, err error) {
	var was *bool // whether its membership is as it was; nil: it is new
	var read, rekeyed, filtered, pending, masked bool
	var name, identity, identityNow string
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM onewrite.log l WHERE l.source = $1), c.member = r.oid AND c.altered = p.xmin,
			coalesce(c.key NOT IN ('`+unknownKey+`', (SELECT `+keyColumns+` FROM pg_class c WHERE c.oid = r.prrelid)), false), coalesce(c.filter <> $4, false), coalesce(c.wanted > c.finished AND c.asked <> c.wanted, false), coalesce(c.columns <> $5, false),
			coalesce(c.name, ''), coalesce(c.identity::text, ''), (SELECT relreplident::text FROM pg_class WHERE oid = r.prrelid)
		FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid LEFT JOIN onewrite.captured c ON c.source = $1 AND c.rel = r.prrelid WHERE p.pubname = $2 AND r.prrelid = $3`, c.Source, publicationOf(c.Source), f.rel, f.where, c.columns(f)).
		Scan(&read, &was, &rekeyed, &filtered, &pending, &masked, &name, &identity, &identityNow)
	if err != nil {
		return "", 0, explain(err)
	}
	switch {
	case was == nil && gone:
		step, snapshot = f.full()+" is another table than before: it gets a new snapshot", 1
	case was == nil && read && kept:
		step, snapshot = f.full()+" was not known any more: it gets a new snapshot", 1
	case was == nil && c.Snapshot:
		step, snapshot = "row changes of "+f.full()+" are captured, with a snapshot first", 1
	case was == nil:
		step = "row changes of " + f.full() + " are captured"
	case !*was:
		step, snapshot = f.full()+" was out of the publication, or the publication was altered, or a partition logged less than the table: it gets a new snapshot", 1
	case rekeyed:
		step, snapshot = "the key of "+f.full()+" is another one than before: it gets a new snapshot", 1
	case again:
		step, snapshot = f.full()+" gets a new snapshot", 1
	case filtered && pending:
		step, snapshot = "the snapshot of "+f.full()+" begins anew", 1
	case filtered:
		step = "later snapshots of " + f.full() + " have other rows"
	case name != f.full():
		step = "row changes of " + name + " are captured under its name now: " + f.full()
	case identity != identityNow:
		step = fmt.Sprintf("took over the replica identity of %s (%s, was %s): no change is missing", f.full(), identities[identityNow], identities[identity])
		if identity == "f" {
			step += "; from now on its events have no old values but the key's"
		}
	}
	where := f.where
	if again && c.AgainWhere != "" {
		where = c.AgainWhere
	}
	if where != "" && (snapshot > 0 || filtered) {
		step += ", of the rows WHERE " + where
	}
	if step == "" && masked {
		step = "columns: has other rules for " + f.full() + "; restart onewrite run, if it runs"
	}
	return step, snapshot, nil
}

// findAgain looks up the tables that are to get another snapshot.
func (c Capture) findAgain(ctx context.Context, tx pgx.Tx, rels []uint32) (map[uint32]bool, error) {
	if len(c.Again) == 0 {
		return nil, nil
	}
	list, err := findTables(ctx, tx, c.Again)
	if err != nil {
		return nil, err
	}
	again := map[uint32]bool{}
	for _, f := range list {
		if !slices.Contains(rels, f.rel) {
			return nil, fmt.Errorf("%s is not captured; put it into the setting tables", f.full())
		}
		if err := checkCondition(ctx, tx, f, c.AgainWhere); err != nil {
			return nil, fmt.Errorf("--where: %w", err)
		}
		again[f.rel] = true
	}
	return again, nil
}

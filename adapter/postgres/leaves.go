package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite"
)

// leaf is a partition that has rows. The log tells it under the name of its root, and as
// if it had the root's replica identity; but what of an old row is logged is up to the
// identity of its own, which is DEFAULT for every new one.
type leaf struct {
	root     uint32
	of       string // the root's name
	name     string // its own, in SQL
	unlogged bool
	key      string // the columns of the root's key, by name
	want     string // what the root says that old rows have: names of columns, or "*"
	logs     string // and what they have; "": the server refuses to update the rows
	cure     string // SQL
}

const (
	// leafIdentity are the columns that the old rows of the table %[1]s have whose
	// replica identity is %[2]s.
	leafIdentity = `CASE %[2]s WHEN 'f' THEN '*' WHEN 'n' THEN '' ELSE coalesce((SELECT string_agg(a.attname, ',' ORDER BY a.attname)
		FROM pg_index i CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n) JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
		WHERE i.indrelid = %[1]s.oid AND k.n <= i.indnkeyatts AND i.indimmediate AND CASE %[2]s WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END), '') END`
	// leafIndex is the index of the partition l that belongs to the one by which its root
	// r tells old rows.
	leafIndex = `(SELECT format('USING INDEX %I', x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_index top ON top.indexrelid = pg_partition_root(i.indexrelid)
		WHERE i.indrelid = l.oid AND top.indrelid = r.oid AND top.indisreplident)`
)

// asker is a session or a transaction of one.
type asker interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// leavesOf returns the partitions of tables that log other rows than their root says, or
// none. identity, if set, is the replica identity that the roots are to get.
func leavesOf(ctx context.Context, q asker, identity string, roots ...uint32) (bad []leaf, err error) {
	root := `coalesce(nullif($2::text, ''), r.relreplident::text)`
	rows, err := q.Query(ctx, `SELECT r.oid, n.nspname || '.' || r.relname, format('%I.%I', m.nspname, l.relname), l.relpersistence <> 'p', `+
		fmt.Sprintf(leafIdentity, "r", "CASE "+root+" WHEN 'f' THEN 'd' ELSE "+root+" END")+`, `+fmt.Sprintf(leafIdentity, "r", root)+`, `+fmt.Sprintf(leafIdentity, "l", "l.relreplident")+`,
			CASE `+root+` WHEN 'f' THEN 'FULL' WHEN 'i' THEN coalesce(`+leafIndex+`, 'FULL') ELSE 'DEFAULT' END
		FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace CROSS JOIN pg_partition_tree(r.oid) p JOIN pg_class l ON l.oid = p.relid JOIN pg_namespace m ON m.oid = l.relnamespace
		WHERE r.oid = ANY ($1) AND r.relkind = 'p' AND p.isleaf AND l.relkind = 'r' ORDER BY 2, 3`, roots, identity)
	if err != nil {
		return nil, explain(err)
	}
	var l leaf
	_, err = pgx.ForEachRow(rows, []any{&l.root, &l.of, &l.name, &l.unlogged, &l.key, &l.want, &l.logs, &l.cure}, func() error {
		l.cure = "ALTER TABLE " + l.name + " REPLICA IDENTITY " + l.cure
		if l.unlogged {
			l.cure = "ALTER TABLE " + l.name + " SET LOGGED"
		}
		if l.unlogged || l.logs != "*" && l.logs != l.want {
			bad = append(bad, l)
		}
		return nil
	})
	return bad, explain(err)
}

// wrong reports whether changes of the partition cannot be told, or not rightly. Where
// old rows have the key alone, and should be whole, they are told as the key.
func (l *leaf) wrong() bool {
	return l.unlogged || l.logs != "" && (l.key == "" || l.logs != l.key)
}

// problem says what is wrong, without the cure.
func (l *leaf) problem() string {
	switch {
	case l.unlogged:
		return fmt.Sprintf("the partition %s of %s is unlogged: its changes are not in the log", l.name, l.of)
	case l.logs == "":
		return fmt.Sprintf("the partition %s of %s logs no old rows: the server refuses to update and to delete its rows", l.name, l.of)
	case l.wrong():
		return fmt.Sprintf("the partition %s of %s has another replica identity than the table: which rows are changed is not told", l.name, l.of)
	}
	return fmt.Sprintf("the partition %s of %s logs the key of old rows alone: they are not told whole", l.name, l.of)
}

// likeRoot gives the partitions of a table the replica identity that it has. Where changes
// were not told, the table gets a snapshot.
func likeRoot(ctx context.Context, tx pgx.Tx, source string, f found) (applied []string, err error) {
	bad, err := leavesOf(ctx, tx, "", f.rel)
	for _, l := range bad {
		if l.unlogged {
			return nil, fmt.Errorf("%s; run as its owner: %s", l.problem(), l.cure)
		}
		if _, err := tx.Exec(ctx, l.cure); err != nil {
			return nil, fmt.Errorf("%s; run as its owner: %s: %w", l.problem(), l.cure, explain(err))
		}
		applied = append(applied, "gave the partition "+l.name+" the replica identity of "+f.full())
		if l.wrong() {
			if err := mistrust(ctx, tx, source, f.rel); err != nil {
				return nil, err
			}
		}
	}
	return applied, err
}

// mistrust notes that changes of a table are missing: it stays so, whatever is done to the
// table, until migrate asks for a snapshot.
func mistrust(ctx context.Context, q asker, source string, rel uint32) error {
	_, err := q.Exec(ctx, `UPDATE onewrite.captured SET altered = '0' WHERE source = $1 AND rel = $2`, source, rel)
	return explain(err)
}

// partitions looks whether the log has all changes of the tables' partitions, and says
// which are to be seen to.
func (r *logReader) partitions(ctx context.Context, list []captured) error {
	bad, err := leavesOf(ctx, r.cat.conn, "", rels(list)...)
	if err != nil {
		return err
	}
	var said []string
	for _, l := range bad {
		if l.wrong() {
			if err := mistrust(ctx, r.cat.conn, r.cfg.Name, l.root); err != nil {
				return err
			}
			cure := cureLeaf // it does the rest
			if l.unlogged {
				cure = "run as the owner of the tables: " + l.cure + "; then " + cureLeaf
			}
			return &onewrite.Gap{Reason: "row changes: " + l.problem(), From: "the change of the partition", To: "now", Cure: cure}
		}
		said = append(said, l.problem()+"; run as its owner: "+l.cure)
	}
	r.cfg.Known.tell(&r.cfg, "partitions", strings.Join(said, "; "))
	return nil
}

func rels(list []captured) []uint32 {
	all := make([]uint32, len(list))
	for i := range list {
		all[i] = list[i].rel
	}
	return all
}

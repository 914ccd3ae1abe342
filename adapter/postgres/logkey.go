package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// keyColumns is the key of the events of the table c, in SQL: the numbers of its columns,
// which stay the same when one is renamed. Empty: the table is one lane, as a key that is
// generated in part is not in the log.
const keyColumns = `coalesce((SELECT CASE WHEN bool_or(a.attgenerated <> '') THEN '' ELSE string_agg(a.attnum::text, ',' ORDER BY a.attnum) END
	FROM pg_index i CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n) JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
	WHERE i.indrelid = c.oid AND k.n <= i.indnkeyatts AND i.indimmediate AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END), '')`

// unknownKey is the key of a table that was registered by an older version, or that is
// gone: it is compared with nothing.
const unknownKey = "?"

// attribute is a column as the catalogs have it now.
type attribute struct {
	num    int
	name   string
	oid    uint32
	gone   bool // dropped: its name and type are forgotten
	hidden bool // generated: not sent
	unsure bool // it may have been dropped
}

// shape is a table as the catalogs have it now; none: it is gone.
type shape struct {
	attributes  []attribute
	from        string // the table in FROM
	partitioned bool
}

func (c *catalog) shape(ctx context.Context, rel uint32) (s shape, err error) {
	rows, err := c.conn.Query(ctx, `SELECT a.attnum, a.attname::text, a.atttypid, a.attisdropped, a.attgenerated <> '', c.relkind = 'p', CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || format('%I.%I', n.nspname, c.relname)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 WHERE c.oid = $1 ORDER BY a.attnum`, rel)
	if err != nil {
		return s, explain(err)
	}
	var a attribute
	_, err = pgx.ForEachRow(rows, []any{&a.num, &a.name, &a.oid, &a.gone, &a.hidden, &s.partitioned, &s.from}, func() error {
		s.attributes = append(s.attributes, a)
		return nil
	})
	return s, explain(err)
}

// align finds out which columns those are that the log had at some place: names and types
// may be others now, columns are dropped and added, but their order never changes. nil:
// they fit in no way, as the catalogs are behind the log, or the table is gone.
//
// A column that is there now was there if one behind it was. So what is open is only
// which of the dropped ones were there still: the way is taken on which most names and
// types are the same.
func align(columns []pgoutput.RelationColumn, now []attribute) (nums []int, exact bool) {
	now = slices.DeleteFunc(slices.Clone(now), func(a attribute) bool { return a.hidden && !a.gone })
	const never = -1 << 30
	n, m := len(columns), len(now)
	best := make([]int, (n+1)*(m+1)) // of columns from i on, and attributes from j on
	at := func(i, j int) *int { return &best[i*(m+1)+j] }
	fits := func(i, j int) int {
		switch a := &now[j]; {
		case a.gone:
			return *at(i+1, j+1)
		case a.name == columns[i].Name && a.oid == columns[i].Type:
			return *at(i+1, j+1) + 3
		case a.name == columns[i].Name || a.oid == columns[i].Type:
			return *at(i+1, j+1) + 1
		}
		return *at(i+1, j+1)
	}
	for i := n - 1; i >= 0; i-- {
		for j := m; j >= 0; j-- {
			*at(i, j) = never
			if j == m {
				continue
			}
			*at(i, j) = fits(i, j)
			if now[j].gone || now[j].unsure {
				*at(i, j) = max(*at(i, j), *at(i, j+1))
			}
		}
	}
	if *at(0, 0) < 0 {
		return nil, false
	}
	nums = make([]int, 0, n)
	for i, j := 0, 0; i < n; j++ {
		if *at(i, j) == fits(i, j) {
			nums = append(nums, now[j].num)
			i++
		}
	}
	return nums, *at(0, 0) == 3*n
}

// keyNumbers is the table's key as keyColumns has it.
func (t *table) keyNumbers() string {
	if t.nums == nil {
		return unknownKey
	}
	key := make([]int, len(t.key))
	for n, i := range t.key {
		key[n] = t.nums[i]
	}
	slices.Sort(key)
	text := make([]string, len(key))
	for n := range key {
		text[n] = strconv.Itoa(key[n])
	}
	return strings.Join(text, ",")
}

// keyNames are the columns of the event's key of a table whose old rows tell nothing of
// it: the registry has their numbers, and the log their names of that time.
func keyNames(columns []tableColumn, nums []int, key string) []string {
	var names []string
	for num := range strings.SplitSeq(key, ",") {
		n, err := strconv.Atoi(num)
		if i := slices.Index(nums, n); err == nil && i >= 0 {
			names = append(names, columns[i].name)
		} else if num != "" {
			names = append(names, "") // not there at that time: the table was one lane
		}
	}
	return names
}

// compareKey notes where the log keys rows by other columns than the registry: what
// happened to a row that had another key is not told, and the rows are read again.
func (t *table) compareKey(c captured) {
	t.stray = ""
	if now := t.keyNumbers(); now == c.key || now == unknownKey || c.key == unknownKey {
		return
	}
	names := make([]string, len(t.key))
	for n, i := range t.key {
		names[n] = t.columns[i].name
	}
	t.stray = fmt.Sprintf("the key of %s was changed for some time, or its replica identity: rows were told by (%s)", t.topic, strings.Join(names, ", "))
}

// lost tells that changes of a table cannot be told, or only in part, and asks for its
// rows once more. What was committed before the last snapshot was asked for is in that
// one.
func (r *logReader) lost(t *table, why string) error {
	c := r.fill.of(t.rel)
	if r.tx.lsn < c.keyed {
		return nil
	}
	gap := &onewrite.Gap{Reason: "row changes: " + why, From: r.tx.lsn.String(), To: "now"}
	if r.cfg.HoldGap {
		gap.Cure = "run onewrite migrate --snapshot " + c.name + " as the owner of the tables: its rows are read again, and reading goes on by itself"
		return gap
	}
	gap.Reason += "; the rows of " + c.name + " are read again, but what was deleted in between, or had another key, is not told"
	r.tell(gap)
	// The next snapshot is to see this transaction.
	r.fill.noted(&change{table: t, xid: r.tx.xid}, r.fill.windows[t.rel])
	r.side.Lock()
	defer r.side.Unlock()
	_, err := r.cat.conn.Exec(r.alive, `UPDATE onewrite.captured SET wanted = greatest(wanted, finished, `+snapshotNumber+`) + 1, keyed = pg_current_wal_insert_lsn() WHERE source = $1 AND rel = $2`, r.cfg.Name, t.rel)
	if err != nil {
		return explain(err)
	}
	list, err := registry(r.alive, r.cat.conn, r.cfg.Name)
	if err == nil {
		r.fill.set(list)
	}
	return err
}

// keyless reports whether a row has no value in a column of the key, which no row of the
// table can be without: that part of it was not logged.
func (t *table) keyless(row pgoutput.Tuple) bool {
	return slices.ContainsFunc(t.key, func(i int) bool { return row[i].Kind == pgoutput.ColumnNull })
}

// partial reports whether an old row is less than the log says. The log has what the
// partition logs, and says what the root would: nulls stand for what is not there. A row
// that has nothing but its key may be whole, and is told as that key: no null is told
// that was none.
func (t *table) partial(m *pgoutput.Message) bool {
	if !t.partitioned {
		return false
	}
	more := false
	for i := range m.Old {
		null := m.Old[i].Kind == pgoutput.ColumnNull
		if null && len(m.New) > 0 && m.New[i].Kind == pgoutput.ColumnUnchanged {
			return true // a large value is no null
		}
		more = more || !null && !slices.Contains(t.key, i)
	}
	return len(t.key) > 0 && !more
}

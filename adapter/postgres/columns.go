package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/masking"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// Known is what a process saw of the captured tables when it looked first. A table that is
// captured later with rules for its columns that the process does not have would show what
// they hide, so the process does not take it up. One Known belongs to all the times that a
// process opens a source.
type Known struct {
	mu    sync.Mutex
	begun bool
	rules map[uint32]string // as migrate stored them, by table
	said  map[string]string // what is wrong with tables and rules, as it was told last

	strayed [2]pgoutput.LSN // of a place inside a transaction that the log does not have: the slot's beginning, the commit
}

// tell says what is wrong, when that is news.
func (k *Known) tell(cfg *Config, name, problem string) {
	k.mu.Lock()
	news := k.said[name] != problem
	if k.said == nil {
		k.said = map[string]string{}
	}
	k.said[name] = problem
	k.mu.Unlock()
	if news {
		cfg.trouble(name, problem)
	}
}

// snapshotOf begins the name of what is wrong with the snapshot of a table.
const snapshotOf = "snapshot of "

// settle withdraws what was told of snapshots that are not to be made any more.
func (k *Known) settle(cfg *Config, list []captured) {
	k.mu.Lock()
	var over []string
	for name, problem := range k.said {
		table, is := strings.CutPrefix(name, snapshotOf)
		if is && problem != "" && !slices.ContainsFunc(list, func(c captured) bool { return c.name == table && c.pending() }) {
			over = append(over, name)
		}
	}
	k.mu.Unlock()
	for _, name := range over {
		k.tell(cfg, name, "")
	}
}

// begin looks, the first time. It comes before the lock of the only reader: a process that
// stands by for hours goes by its own start too.
func (k *Known) begin(ctx context.Context, conn *pgx.Conn, source string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.begun {
		return nil
	}
	var there bool
	err := conn.QueryRow(ctx, `SELECT to_regclass('onewrite.captured') IS NOT NULL`).Scan(&there)
	if err != nil {
		return explain(err)
	}
	rules := map[uint32]string{}
	if there {
		list, err := registry(ctx, conn, source)
		if err != nil {
			return err
		}
		for _, c := range list {
			rules[c.rel] = c.columns
		}
	}
	k.begun, k.rules = true, rules
	return nil
}

// check returns an error if a table has rules since then that are not those of the process.
func (k *Known) check(list []captured, rules masking.Rules) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range list {
		if was, ok := k.rules[c.rel]; c.columns != c.own(rules) && !(ok && was == c.columns) {
			return fmt.Errorf("postgres: columns: of %s are other ones than this process was started with; restart onewrite", c.name)
		}
	}
	return nil
}

// own is what the rules of this process say of a table.
func (c captured) own(rules masking.Rules) string {
	schema, name, _ := strings.Cut(c.name, ".")
	return rules.Text(schema, name)
}

// ruleFault is a rule for columns that does not do what it says.
type ruleFault struct {
	text, cure string
	idle       bool // it is for all tables, and may be meant for one to come
}

func (f ruleFault) Error() string { return f.text + "; " + f.cure }

// masked is a table to which rules may apply.
type masked struct {
	rel  uint32
	name string // schema.table
}

// columnsOfTables returns the columns of tables, as they are now.
func columnsOfTables(ctx context.Context, conn *pgx.Conn, tables []masked) (map[uint32][]string, error) {
	rels := make([]uint32, len(tables))
	for i, t := range tables {
		rels[i] = t.rel
	}
	rows, err := conn.Query(ctx, `SELECT attrelid, attname::text FROM pg_attribute WHERE attrelid = ANY ($1) AND attnum > 0 AND NOT attisdropped`, rels)
	if err != nil {
		return nil, explain(err)
	}
	all := map[uint32][]string{}
	var rel uint32
	var name string
	_, err = pgx.ForEachRow(rows, []any{&rel, &name}, func() error {
		all[rel] = append(all[rel], name)
		return nil
	})
	return all, explain(err)
}

// ruleFaults compares the rules with the tables that are captured. A rule that names what
// is not there hides nothing, and nobody would know.
func ruleFaults(ctx context.Context, conn *pgx.Conn, rules masking.Rules, tables []masked) (faults []ruleFault, err error) {
	if len(rules) == 0 {
		return nil, nil
	}
	columns, err := columnsOfTables(ctx, conn, tables)
	if err != nil {
		return nil, err
	}
	for _, target := range rules.Targets() {
		if target.Schema == "" {
			if !slices.ContainsFunc(tables, func(t masked) bool { return slices.Contains(columns[t.rel], target.Columns[0]) }) {
				faults = append(faults, ruleFault{fmt.Sprintf("columns: %q matches no column of a captured table", target.Rule), "correct the rule, or take it out", true})
			}
			continue
		}
		name := target.Schema + "." + target.Table
		i := slices.IndexFunc(tables, func(t masked) bool { return t.name == name })
		if i < 0 {
			faults = append(faults, ruleFault{fmt.Sprintf("columns: %q is for a table that is not captured", target.Rule), "put " + name + " into tables: and run onewrite migrate, or correct the rule", false})
			continue
		}
		for _, column := range target.Columns {
			if !slices.Contains(columns[tables[i].rel], column) {
				faults = append(faults, noColumn(name, column))
			}
		}
	}
	return faults, nil
}

// noColumn is the fault of a rule that names a column which its table does not have.
func noColumn(table, column string) ruleFault {
	return ruleFault{fmt.Sprintf("columns: has a rule for the column %s of %s, and there is none", column, table),
		"write the name that the column has now in columns:, run onewrite migrate and restart onewrite", false}
}

// keyFaults finds tables whose key the rules leave out.
func keyFaults(ctx context.Context, conn *pgx.Conn, rules masking.Rules, tables []masked) (faults []ruleFault, err error) {
	if len(rules) == 0 {
		return nil, nil
	}
	for _, t := range tables {
		schema, name, _ := strings.Cut(t.name, ".")
		var identity string
		if err := conn.QueryRow(ctx, `SELECT coalesce((SELECT relreplident::text FROM pg_class WHERE oid = $1), 'n')`, t.rel).Scan(&identity); err != nil {
			return nil, explain(err)
		}
		parts, err := keyOf(ctx, conn, t.rel, identity[0])
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(parts, func(p keyPart) bool { return p.hidden }) {
			continue // it is no key of events
		}
		for _, p := range parts {
			if rules.Of(schema, name, p.name).Kind == masking.Drop {
				faults = append(faults, keyLeftOut(t.name, p.name))
			}
		}
	}
	return faults, nil
}

// keyLeftOut is the fault of rules that leave out a column of a key.
func keyLeftOut(table, column string) ruleFault {
	return ruleFault{fmt.Sprintf("the column %s of %s is in its key and cannot be left out of events", column, table),
		"in columns:, write hash in place of drop, or put " + column + " into the list of only", false}
}

// checkMasks is for migrate: what would hide nothing is an error, what may be meant for
// tables to come a warning.
func (c Capture) checkMasks(ctx context.Context, tx pgx.Tx, want []found) (warnings []string, err error) {
	if len(c.Tables) == 0 {
		return nil, nil
	}
	faults, err := c.faults(ctx, tx.Conn(), want)
	if err != nil {
		return nil, err
	}
	idle, err := c.leftOut(ctx, tx)
	if err != nil {
		return nil, err
	}
	faults = append(faults, idle...)
	var bad []error
	for _, f := range faults {
		if f.idle {
			warnings = append(warnings, "warning: "+f.Error())
		} else {
			bad = append(bad, fmt.Errorf("postgres: %w", f))
		}
	}
	return warnings, errors.Join(bad...)
}

func (c Capture) faults(ctx context.Context, conn *pgx.Conn, want []found) ([]ruleFault, error) {
	tables := make([]masked, len(want))
	for i, f := range want {
		tables[i] = masked{f.rel, f.full()}
	}
	faults, err := ruleFaults(ctx, conn, c.Masks, tables)
	if err != nil {
		return nil, err
	}
	keys, err := keyFaults(ctx, conn, c.Masks, tables)
	return append(faults, keys...), err
}

// leftOut finds entries that leave out a table which is not there: perhaps another was meant.
func (c Capture) leftOut(ctx context.Context, tx pgx.Tx) (faults []ruleFault, err error) {
	_, leave := splitPatterns(c.Tables)
	for _, full := range leave {
		var there bool
		schema, name := cutTable(full)
		if err := row(ctx, tx, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2)`, schema, name).Scan(&there); err != nil {
			return nil, explain(err)
		}
		if !there {
			faults = append(faults, ruleFault{fmt.Sprintf("tables: %q leaves out a table that is not there", "!"+full), "correct the name, or take the entry out", true})
		}
	}
	return faults, nil
}

// covered returns an error if a rule names a column that the table, as it is described
// here, does not have: it was renamed, and would be shown. One that the table has now is
// no matter: it is generated and not sent, or it was added later.
func covered(ctx context.Context, conn *pgx.Conn, rules masking.Rules, t *table, settle func() error) error {
	var missing []string
	for _, target := range rules.Targets() {
		if target.Schema != t.schema || target.Table != t.name {
			continue
		}
		for _, column := range target.Columns {
			if !slices.ContainsFunc(t.columns, func(c tableColumn) bool { return c.name == column }) {
				missing = append(missing, column)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if err := settle(); err != nil {
		return err
	}
	now, err := columnsOfTables(ctx, conn, []masked{{t.rel, t.topic}})
	if err != nil {
		return err
	}
	for _, column := range missing {
		if !slices.Contains(now[t.rel], column) {
			return fmt.Errorf("postgres: %w", noColumn(t.topic, column))
		}
	}
	return nil
}

// tablesNow returns the tables that are to be read. An error is a Gap, or says that this
// process has other rules for them than it needs. r.side is held, or nobody else is there.
func (r *logReader) tablesNow(ctx context.Context) ([]captured, error) {
	list, err := registry(ctx, r.cat.conn, r.cfg.Name)
	if err != nil {
		return nil, err
	}
	list, gone, err := verifyCapture(ctx, r.cat.conn, r.cfg.Name, list)
	if errors.Is(err, onewrite.ErrGap) { // it says what is wrong: a table that was dropped may be there again
		r.cfg.Known.tell(&r.cfg, "tables", "")
	}
	if err != nil {
		return nil, err
	}
	text := ""
	if len(gone) > 0 {
		text = fmt.Sprintf("the table %s was dropped; take it out of tables: and run onewrite migrate as the owner of the tables", strings.Join(namesOf(gone), ", "))
	}
	r.cfg.Known.tell(&r.cfg, "tables", text)
	if err := r.cfg.Known.check(list, r.cfg.Masks); err != nil {
		return nil, err
	}
	if err := r.partitions(ctx, list); err != nil {
		return nil, err
	}
	return list, r.tellRules(ctx, list)
}

func namesOf(list []captured) (names []string) {
	for _, c := range list {
		names = append(names, c.name)
	}
	return names
}

// tellRules says what is wrong with the rules, for as long as no change shows it.
func (r *logReader) tellRules(ctx context.Context, list []captured) error {
	var said []string
	tables := make([]masked, len(list))
	for i, c := range list {
		tables[i] = masked{c.rel, c.name}
		if c.columns != c.own(r.cfg.Masks) {
			said = append(said, "columns: of "+c.name+" are other ones than onewrite migrate was run with; run it with this configuration")
		}
	}
	faults, err := ruleFaults(ctx, r.cat.conn, r.cfg.Masks, tables)
	if err != nil {
		return err
	}
	for _, f := range faults {
		said = append(said, f.Error())
	}
	r.cfg.Known.tell(&r.cfg, "columns", strings.Join(said, ", "))
	return nil
}

// takeUp looks up a table that the log tells of and that was not captured before. The log
// may be ahead of what other sessions see, and the rules of the table come with it. r.side
// is held.
func (r *logReader) takeUp(rel uint32) error {
	if err := r.untilVisible(r.tx.xid); err != nil {
		return err
	}
	for deadline := time.Now().Add(unseen); ; {
		list, err := r.tablesNow(r.alive)
		if err != nil {
			return err
		}
		r.fill.set(list)
		if r.fill.knows(rel) || time.Now().After(deadline) {
			return nil // it was taken out since, or migrate does not know of it
		}
		var alone bool // the log describes partitions too, whose rows come as their root's
		if err := r.cat.conn.QueryRow(r.alive, `SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1 AND NOT relispartition)`, rel).Scan(&alone); err != nil || !alone {
			return explain(err)
		}
		select {
		case <-r.alive.Done():
			return r.alive.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// unseen is how long a table that is not captured is waited for: a commit that waits for a
// synchronous standby is in the log and not seen yet.
const unseen = time.Second

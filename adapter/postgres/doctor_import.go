package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
)

// looksOnly makes a session that reads as an import does, and can change nothing.
const looksOnly = `SET default_transaction_read_only = on; SET row_security = off; SET statement_timeout = '8s'; SET lock_timeout = '3s'`

// examineImports looks at the tables that are to be imported: as the role that will
// do it, with the statements that it will run, so that what they say is what the
// running import would.
func (e *examiner) examineImports(ctx context.Context, imports []Import) {
	if len(imports) == 0 || e.pooled {
		return
	}
	conn, _, err := connect(ctx, e.url)
	if err != nil {
		e.failed("import", err)
		return
	}
	defer closeSoon(ctx, conn)
	if _, err := conn.Exec(ctx, looksOnly, pgx.QueryExecModeSimpleProtocol); err != nil {
		e.failed("import", explain(err))
		return
	}
	for i := range imports {
		check := "import " + imports[i].Name
		im := importer{Import: &imports[i], waits: func(int) {}, role: conn.Config().User}
		if err := im.examine(ctx, conn, e.mayInsert(ctx)); err != nil {
			e.failed(check, withNames(err, conn))
			e.grantAlone()
			continue
		}
		does := "moved"
		if im.Keep {
			does = "copied"
		}
		e.ok(check, "the rows of %s can be %s", im.Table, does)
	}
}

// grantAlone leaves of a cure the SQL, and nothing else.
func (e *examiner) grantAlone() {
	f := &e.found[len(e.found)-1]
	if sql, is := strings.CutPrefix(f.Cure, "run as its owner: "); is {
		f.Cure = sql + ";"
	}
}

// mayInsert reports whether the role can put events into the outbox. Where it cannot,
// another finding says so.
func (e *examiner) mayInsert(ctx context.Context) (may bool) {
	if !e.objects["outbox"] {
		return false
	}
	before := e.found
	e.look(ctx, "rights", func(ctx context.Context, tx pgx.Tx) error {
		missing, err := lacks(ctx, tx, e.role, append(rightsOf(aSchema, "onewrite:USAGE"), rightsOf(aTable, "outbox:INSERT")...))
		may = err == nil && len(missing) == 0
		return err
	})
	e.found = before
	return may
}

// examine has the statements of an import understood and planned, which is when the
// server looks at rights; nothing is run. whole: those of the outbox too.
func (i *importer) examine(ctx context.Context, conn *pgx.Conn, whole bool) error {
	binary, err := i.describe(ctx, conn)
	if err != nil {
		return err
	}
	plan := func(sql string, args ...any) error {
		_, err := conn.Exec(ctx, "EXPLAIN "+sql, args...)
		return err
	}
	if !i.Keep {
		if err = plan(i.lockSQL(), importAtOnce); err == nil {
			err = plan("DELETE FROM " + i.Table + i.where())
		}
	}
	if err == nil && whole {
		into := i.moveSQL(binary)
		if i.Keep {
			into = i.copySQL(binary)
		}
		err = plan(into, []int64{}, []string{})
	}
	if err != nil {
		return i.cure(err)
	}
	return nil
}

package postgres

import (
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestExamineImports finds, before anything runs, what an import would stop at, and
// with the same cure.
func TestExamineImports(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		w := newWard(t, pg)
		w.sql(`CREATE TABLE old (id bigserial PRIMARY KEY, topic text, payload bytea); INSERT INTO old (topic) VALUES ('a')`)
		good := Import{Name: "x", Table: "old", Order: []string{"id"}, ID: "id", Topic: "topic", Payload: "payload"}
		with := func(change func(*Import)) findings {
			im := good
			change(&im)
			return w.examine(func(e *examiner) { e.imports = []Import{im} })
		}
		same := func(*Import) {}

		// Each right that is missing alone is noticed, and the cure is enough.
		move := `GRANT SELECT, UPDATE, DELETE ON old TO "` + w.relay.Name + `";`
		for _, has := range []string{"", "SELECT", "SELECT, UPDATE", "SELECT, DELETE", "UPDATE, DELETE"} {
			if has != "" {
				w.sql(`GRANT ` + has + ` ON old TO {{relay}}`)
			}
			if f := with(same).want(t, diagnosis.Problem, "import x", "permission denied for table old"); f.Cure != move {
				t.Errorf("with %q: %s", has, f.Cure)
			}
			w.sql(`REVOKE ALL ON old FROM {{relay}}`)
		}
		keep := func(i *Import) { i.Keep = true }
		w.sql(with(keep).want(t, diagnosis.Problem, "import x", "permission denied").Cure)
		with(keep).want(t, diagnosis.OK, "import x", "copied")
		w.sql(with(same).want(t, diagnosis.Problem, "import x", "GRANT SELECT, UPDATE").Cure)
		found := with(same)
		if found.want(t, diagnosis.OK, "import x", "moved"); len(found.bad()) > 0 {
			t.Errorf("%v", found.bad())
		}

		for holds, change := range map[string]func(*Import){
			`name a table that is there`:                func(i *Import) { i.Table = "none" },
			`quote a constant for SQL`:                  func(i *Import) { i.Topic = "order.placed" },
			`import.x.columns.key: function lowercase`:  func(i *Import) { i.Key = "lowercase(topic)" },
			`import.x.order: column "n" does not exist`: func(i *Import) { i.Order = []string{"id", "n"} },
			`import.x.where: column "sent" does not`:    func(i *Import) { i.Where = "sent IS NULL" },
		} {
			with(change).want(t, diagnosis.Problem, "import x", holds)
		}
		// What row security would hide, the import would miss.
		w.sql(`ALTER TABLE old ENABLE ROW LEVEL SECURITY`)
		with(same).want(t, diagnosis.Problem, "import x", "row-level security")
		w.sql(`ALTER TABLE old DISABLE ROW LEVEL SECURITY`)

		// That the outbox takes no events is said once, by another finding.
		w.sql(`REVOKE INSERT ON onewrite.outbox FROM {{relay}}`)
		found = with(same)
		found.want(t, diagnosis.Problem, "rights", "GRANT INSERT ON onewrite.outbox")
		found.want(t, diagnosis.OK, "import x", "moved")
		w.sql(`GRANT INSERT ON onewrite.outbox TO {{relay}}`)
		if n := one[int](t, dial(t, w.admin), `SELECT count(*) FROM old`); n != 1 {
			t.Errorf("%d rows are left", n)
		}

		// Before migrate too.
		bare := &ward{t: t, pg: pg, admin: pg.NewDatabase(t), app: w.app, relay: w.relay, o: w.o}
		bare.sql(`CREATE TABLE old (id bigserial PRIMARY KEY, topic text, payload bytea); GRANT SELECT, UPDATE, DELETE ON old TO {{relay}}`)
		look := func(e *examiner) { e.imports = []Import{good} }
		bare.examine(look).want(t, diagnosis.OK, "import x", "moved")
		bare.sql(`REVOKE DELETE ON old FROM {{relay}}`)
		bare.examine(look).want(t, diagnosis.Problem, "import x", strings.TrimSuffix(move, ";"))
	})
}

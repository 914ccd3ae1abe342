package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// right is what a role may do with an object; column is set for a right on one
// column only.
type right struct{ kind, object, column, privilege string }

// The kinds of objects, as GRANT writes them; a table has none.
const (
	aDatabase = "DATABASE"
	aSchema   = "SCHEMA"
	aTable    = "TABLE"
	aSequence = "SEQUENCE"
	aFunction = "FUNCTION"
)

const validFunction = "valid(uuid, text, text, text, text, jsonb, text, bytea, integer)"

// rightsOf lists rights on objects of one kind: each name, and after a colon the
// privileges.
func rightsOf(kind string, list ...string) (out []right) {
	for _, l := range list {
		object, privileges, _ := strings.Cut(l, ":")
		for _, p := range strings.Fields(privileges) {
			out = append(out, right{kind: kind, object: object, privilege: p})
		}
	}
	return out
}

func columnsOf(table, list string) (out []right) {
	for column := range strings.SplitSeq(list, ", ") {
		out = append(out, right{aTable, table, column, "INSERT"})
	}
	return out
}

// relayNeeds is what onewrite run uses.
func relayNeeds() []right {
	tables := []string{"outbox:SELECT INSERT", "bus:SELECT INSERT UPDATE", "migration:SELECT", "scheduled:SELECT UPDATE DELETE"}
	for i := range leaves {
		tables = append(tables, fmt.Sprintf("outbox_%d:SELECT INSERT TRUNCATE", i))
	}
	return slices.Concat(
		rightsOf(aSchema, "onewrite:USAGE"), rightsOf(aTable, tables...),
		rightsOf(aSequence, "seq:SELECT USAGE", "slot:SELECT UPDATE", "asleep:SELECT UPDATE", "epoch:SELECT UPDATE", "freed:SELECT UPDATE"),
		rightsOf(aFunction, validFunction+":EXECUTE", "summarize():EXECUTE"))
}

// appNeeds is what an application uses that writes events.
func appNeeds() []right {
	return slices.Concat(
		rightsOf(aSchema, "onewrite:USAGE"), columnsOf("outbox", columns), columnsOf("scheduled", columns+", deliver_at"),
		rightsOf(aSequence, "seq:USAGE", "slot:SELECT", "asleep:SELECT"),
		rightsOf(aFunction, validFunction+":EXECUTE", "cancel(uuid):EXECUTE",
			"publish(text, text, text):EXECUTE", "publish(text, text, jsonb):EXECUTE", "publish(text, text, bytea):EXECUTE"))
}

// emitNeeds is what it uses too where the functions for the log are there.
func emitNeeds() (out []right) {
	for _, m := range emitters {
		out = append(out, right{aFunction, strings.TrimPrefix(m.name(), "onewrite."), "", "EXECUTE"})
	}
	return out
}

// lacksSQL returns those of the rights that a role does not have. Objects are found
// in the catalogue, which everybody may read; those that are missing are no matter here.
const lacksSQL = `SELECT r.i::text FROM unnest($2::text[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY AS r(kind, object, col, privilege, i)
	LEFT JOIN pg_namespace n ON n.nspname = 'onewrite'
	LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = r.object AND r.kind IN ('TABLE', 'SEQUENCE')
	LEFT JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname || '(' || oidvectortypes(p.proargtypes) || ')' = r.object AND r.kind = 'FUNCTION'
	WHERE NOT coalesce(CASE
		WHEN r.kind = 'DATABASE' THEN has_database_privilege($1::name, current_database(), r.privilege)
		WHEN r.kind = 'SCHEMA' THEN has_schema_privilege($1::name, n.oid, r.privilege)
		WHEN r.kind = 'TABLE' AND r.col <> '' THEN has_column_privilege($1::name, c.oid, r.col, r.privilege)
		WHEN r.kind = 'TABLE' THEN has_table_privilege($1::name, c.oid, r.privilege)
		WHEN r.kind = 'SEQUENCE' THEN has_sequence_privilege($1::name, c.oid, r.privilege)
		WHEN r.kind = 'FUNCTION' THEN has_function_privilege($1::name, p.oid, r.privilege) END, true) ORDER BY r.i`

func lacks(ctx context.Context, tx pgx.Tx, role string, needs []right) (missing []right, err error) {
	var cols [4][]string
	for _, r := range needs {
		for i, v := range []string{r.kind, r.object, r.column, r.privilege} {
			cols[i] = append(cols[i], v)
		}
	}
	found, err := rowsOf(ctx, tx, lacksSQL, role, cols[0], cols[1], cols[2], cols[3])
	if err != nil {
		return nil, err
	}
	for _, r := range found {
		var i int
		if _, err := fmt.Sscan(r[0], &i); err != nil {
			return nil, err
		}
		missing = append(missing, needs[i-1])
	}
	return missing, nil
}

// statements writes rights as GRANT or REVOKE, as few as will do: format has the
// place of the privileges, then of the objects.
func statements(rights []right, format string) string {
	type group struct{ kind, privileges string }
	privileges := map[[2]string][]string{} // of an object
	var order [][2]string
	add := func(key [2]string, p string) {
		if _, ok := privileges[key]; !ok {
			order = append(order, key)
		}
		if !slices.Contains(privileges[key], p) {
			privileges[key] = append(privileges[key], p)
		}
	}
	listed := map[right]bool{}
	for _, r := range rights {
		p := r.privilege
		if r.column != "" {
			whole := right{r.kind, r.object, "", r.privilege}
			if listed[whole] {
				continue
			}
			listed[whole] = true
			var names []string
			for _, c := range rights {
				if c.column != "" && c.kind == r.kind && c.object == r.object && c.privilege == r.privilege {
					names = append(names, c.column)
				}
			}
			p += " (" + strings.Join(names, ", ") + ")"
		}
		add([2]string{r.kind, r.object}, p)
	}
	objects := map[group][]string{}
	var groups []group
	for _, key := range order {
		g := group{key[0], strings.Join(privileges[key], ", ")}
		if objects[g] == nil {
			groups = append(groups, g)
		}
		objects[g] = append(objects[g], named(key[0], key[1]))
	}
	var out []string
	for _, g := range groups {
		on := strings.Join(objects[g], ", ")
		if g.kind != aTable {
			on = g.kind + " " + on
		}
		out = append(out, fmt.Sprintf(format, g.privileges, on))
	}
	return strings.Join(out, " ")
}

// named is an object as SQL names it.
func named(kind, object string) string {
	switch kind {
	case aSchema:
		return object
	case aDatabase:
		return pgx.Identifier{object}.Sanitize()
	}
	return "onewrite." + object
}

// grants are the statements that give a role rights.
func grants(role string, rights []right) string {
	return statements(rights, "GRANT %s ON %s TO "+quoted(role)+";")
}

// quoted is a role's name as SQL writes it: PUBLIC is none.
func quoted(role string) string {
	if role == public {
		return role
	}
	return pgx.Identifier{role}.Sanitize()
}

// rightsText names some of the rights for a person.
func rightsText(rights []right) string {
	var out []string
	for i, r := range rights {
		same := func(o right) bool {
			return o.kind == r.kind && o.object == r.object && o.privilege == r.privilege && o.column != ""
		}
		if r.column == "" {
			out = append(out, r.privilege+" on "+named(r.kind, r.object))
		} else if !slices.ContainsFunc(rights[:i], same) {
			var names []string
			for _, o := range rights {
				if same(o) {
					names = append(names, o.column)
				}
			}
			if len(names) > 3 {
				names = []string{names[0], "…"}
			}
			out = append(out, fmt.Sprintf("%s (%s) on %s", r.privilege, strings.Join(names, ", "), named(r.kind, r.object)))
		}
	}
	const most = 3
	if len(out) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(out[:most], ", "), len(out)-most)
	}
	return strings.Join(out, ", ")
}

// rights looks at what the roles may do: enough, and no more.
func (e *examiner) rights(ctx context.Context, tx pgx.Tx) error {
	for key, role := range map[string]string{"app": e.o.AppRole, "relay": e.o.RelayRole} {
		var there bool
		if role == "" {
			continue
		}
		if err := row(ctx, tx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, role).Scan(&there); err != nil {
			return err
		}
		if there {
			continue
		}
		e.problem("rights of roles."+key, "CREATE ROLE "+quoted(role)+" LOGIN; -- then: onewrite migrate", "there is no role %s", role)
		if key == "app" {
			e.o.AppRole = ""
		} else {
			e.o.RelayRole = ""
		}
	}
	if !e.objects["outbox"] {
		return nil
	}
	if err := e.relayRights(ctx, tx); err != nil {
		return err
	}
	if err := e.publicRights(ctx, tx); err != nil || e.o.AppRole == "" {
		return err
	}
	return e.appRights(ctx, tx)
}

func (e *examiner) relayRights(ctx context.Context, tx pgx.Tx) error {
	roles := []string{e.role}
	if e.o.RelayRole != "" && e.o.RelayRole != e.role {
		roles = append(roles, e.o.RelayRole)
	}
	for i, role := range roles {
		check := []string{"rights", "rights of roles.relay"}[i]
		needs := relayNeeds()
		if i > 0 {
			needs = append(needs, right{aDatabase, e.database, "", "CONNECT"})
		}
		missing, err := lacks(ctx, tx, role, needs)
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			e.problem(check, grants(role, missing), "%s lacks %s", role, rightsText(missing))
		} else {
			e.ok(check, "%s has what it needs", role)
		}
		if i == 0 && slices.ContainsFunc(missing, keepsFromReading) {
			e.grant = grants(role, missing)
		}
		temporary := []right{{aDatabase, e.database, "", "TEMPORARY"}}
		if missing, err = lacks(ctx, tx, role, temporary); err != nil {
			return err
		}
		if len(missing) > 0 {
			e.warn(check, grants(role, temporary), "%s may make no temporary table, which is how events of a restored dump are taken over", role)
		}
	}
	return nil
}

// keepsFromReading reports whether onewrite run cannot even read without a right.
func keepsFromReading(r right) bool {
	return r.object != "scheduled" && (r.privilege == "USAGE" && r.kind == aSchema || r.privilege == "SELECT")
}

const public = "PUBLIC"

// heldSQL returns the rights on the outbox that a role holds by itself or by what it
// is a member of, and those of PUBLIC: kind, object, column, privilege, the holder,
// and whether that is the owner.
const heldSQL = `WITH n AS (SELECT oid, nspowner, nspacl FROM pg_namespace WHERE nspname = 'onewrite'),
	c AS (SELECT c.* FROM pg_class c JOIN n ON c.relnamespace = n.oid WHERE c.relname = ANY ($2::text[])),
	held AS (
		SELECT 'SCHEMA' AS kind, 'onewrite' AS object, '' AS col, a.privilege_type, a.grantee, nspowner AS owner FROM n, aclexplode(coalesce(nspacl, acldefault('n', nspowner))) a
		UNION ALL SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, relname::text, '', a.privilege_type, a.grantee, relowner
			FROM c, aclexplode(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))) a
		UNION ALL SELECT 'TABLE', relname::text, attname::text, a.privilege_type, a.grantee, relowner
			FROM c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a WHERE t.attnum > 0 AND NOT t.attisdropped AND c.relkind <> 'S'
		UNION ALL SELECT 'FUNCTION', p.proname || '(' || oidvectortypes(p.proargtypes) || ')', '', a.privilege_type, a.grantee, p.proowner
			FROM pg_proc p JOIN n ON p.pronamespace = n.oid, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a)
	SELECT kind, object, col, privilege_type, coalesce(r.rolname::text, 'PUBLIC'), (grantee = owner)::text
	FROM held LEFT JOIN pg_roles r ON r.oid = grantee
	WHERE CASE WHEN $1 = 'PUBLIC' THEN grantee = 0 WHEN grantee <> 0 THEN pg_has_role($1::name, grantee, 'MEMBER') END
	ORDER BY kind = 'TABLE' DESC, object = 'outbox' DESC, object, col, privilege_type`

// held returns what a role holds, by holder.
func held(ctx context.Context, tx pgx.Tx, role string, surplus func(right) bool) (too map[string][]right, owns bool, err error) {
	found, err := rowsOf(ctx, tx, heldSQL, role, append(slices.Clone(parts), "scheduled"))
	if err != nil {
		return nil, false, err
	}
	too = map[string][]right{}
	for _, f := range found {
		r := right{f[0], f[1], f[2], f[3]}
		if f[5] == "true" {
			owns = true
		} else if surplus(r) {
			too[f[4]] = append(too[f[4]], r)
		}
	}
	return too, owns, nil
}

// revokes takes rights away, and gives the application back what goes with them:
// taking a right on a table takes it on its columns too.
func (e *examiner) revokes(holder string, rights []right) string {
	out := []string{statements(rights, "REVOKE %s ON %s FROM "+quoted(holder)+";")}
	if e.o.AppRole == "" {
		return out[0]
	}
	var back []right
	for _, need := range appNeeds() {
		if slices.ContainsFunc(rights, func(r right) bool {
			return r.kind == need.kind && r.object == need.object && r.privilege == need.privilege
		}) {
			back = append(back, need)
		}
	}
	if len(back) > 0 {
		out = append(out, grants(e.o.AppRole, back))
	}
	return strings.Join(out, " ")
}

// publicRights looks at what everybody may do.
func (e *examiner) publicRights(ctx context.Context, tx pgx.Tx) error {
	too, _, err := held(ctx, tx, public, func(r right) bool {
		switch r.kind {
		case aFunction:
			return r.object == "summarize()" || r.object == "cancel(uuid)"
		case aSequence:
			return r.privilege != "SELECT" || r.object != "slot" && r.object != "asleep"
		}
		return true
	})
	if err != nil {
		return err
	}
	all := too[public]
	if len(all) == 0 {
		e.ok("rights of PUBLIC", "none")
		return nil
	}
	severity, says := diagnosis.Problem, "every role of the server has "
	if len(all) == 1 && all[0].kind == aSchema && all[0].privilege == "USAGE" {
		severity = diagnosis.Warning // nothing can be written with it alone
	}
	e.add(severity, "rights of PUBLIC", says+rightsText(all), e.revokes(public, all))
	return nil
}

// appRights looks at the application's role.
func (e *examiner) appRights(ctx context.Context, tx pgx.Tx) error {
	const check = "rights of roles.app"
	app := e.o.AppRole
	missing, err := lacks(ctx, tx, app, append(append(appNeeds(), emitNeeds()...), right{aDatabase, e.database, "", "CONNECT"}))
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		e.problem(check, grants(app, missing), "%s lacks %s", app, rightsText(missing))
	}
	var super bool
	if err := row(ctx, tx, `SELECT rolsuper FROM pg_roles WHERE rolname = $1`, app).Scan(&super); err != nil {
		return err
	}
	switch {
	case super:
		e.problem(check, "ALTER ROLE "+quoted(app)+" NOSUPERUSER;", "%s is a superuser: nothing keeps it from changing the order of events", app)
		return nil
	case app == e.role || app == e.o.RelayRole:
		e.warn(check, splitRoles, "onewrite itself connects as %s too, so the application may do to the outbox all that the relay may", app)
		return nil
	}
	too, owns, err := held(ctx, tx, app, appSurplus)
	if err != nil {
		return err
	}
	if owns {
		return e.appOwns(ctx, tx)
	}
	well := len(missing) == 0 && len(too) == 0
	for _, all := range []string{"pg_read_all_data", "pg_write_all_data"} {
		var member bool
		if err := row(ctx, tx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $2::name AND pg_has_role($1::name, oid, 'MEMBER'))`, app, all).Scan(&member); err != nil {
			return err
		}
		if member {
			well = false
			e.problem(check, "REVOKE "+all+" FROM "+quoted(app)+";", "%s is a member of %s, which reaches into the outbox", app, all)
		}
	}
	for _, holder := range slices.Sorted(maps.Keys(too)) {
		by := ""
		if holder != app {
			by = " as a member of " + holder
		}
		e.problem(check, e.revokes(holder, too[holder]), "%s has more than it needs%s, and could lose events or break their order: %s", app, by, rightsText(too[holder]))
	}
	if well {
		e.ok(check, "%s may write events and nothing else", app)
	}
	return nil
}

// appSurplus reports whether an application does not need a right, and could do harm
// with it.
func appSurplus(r right) bool {
	switch {
	case r.kind == aFunction, r.kind == aSchema && r.privilege == "USAGE", r.kind == aSequence && r.privilege == "SELECT",
		r.kind == aSequence && r.object == "seq" && r.privilege == "USAGE":
		return false
	}
	return !slices.Contains(appNeeds(), r)
}

// appOwns is about an application that owns what it must not change.
func (e *examiner) appOwns(ctx context.Context, tx pgx.Tx) error {
	var owner string
	err := row(ctx, tx, `SELECT coalesce((SELECT r.rolname FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = current_database() AND NOT pg_has_role($1::name, r.oid, 'MEMBER')),
		(SELECT rolname FROM pg_roles WHERE oid = 10))::text`, e.o.AppRole).Scan(&owner)
	if err != nil {
		return err
	}
	cure := strings.ReplaceAll(`DO $$ DECLARE s text; BEGIN FOR s IN
 SELECT format('ALTER TABLE %s OWNER TO {{owner}}', oid::regclass) FROM pg_class WHERE relnamespace = 'onewrite'::regnamespace AND relkind IN ('r', 'p', 'S')
 UNION ALL SELECT format('ALTER FUNCTION %s OWNER TO {{owner}}', oid::regprocedure) FROM pg_proc WHERE pronamespace = 'onewrite'::regnamespace
 UNION ALL SELECT 'ALTER SCHEMA onewrite OWNER TO {{owner}}' LOOP EXECUTE s; END LOOP; END $$;`, "{{owner}}", strings.ReplaceAll(quoted(owner), "'", "''"))
	e.problem("rights of roles.app", strings.ReplaceAll(cure, "\n", "")+" "+grants(e.o.AppRole, appNeeds()),
		"%s owns the outbox, and may do with it whatever it likes", e.o.AppRole)
	return nil
}

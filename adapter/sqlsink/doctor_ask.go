package sqlsink

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/onewrite/onewrite/internal/disk"
)

func (p *pgDB) server(ctx context.Context) (v string, err error) {
	err = p.conn.QueryRow(ctx, "SELECT 'PostgreSQL ' || current_setting('server_version') || ', database ' || current_database()").Scan(&v)
	return v, err
}

func (p *pgDB) readOnly(ctx context.Context) (is bool, err error) {
	err = p.conn.QueryRow(ctx, "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool").Scan(&is)
	return is, err
}

func (p *pgDB) lacks(ctx context.Context, t *table) (list []string, err error) {
	if t == nil {
		var may bool
		err = p.conn.QueryRow(ctx, "SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)").Scan(&may)
		if err == nil && !may {
			list = []string{"CREATE"}
		}
		return list, err
	}
	err = p.conn.QueryRow(ctx, `SELECT coalesce(array_agg(r ORDER BY o), '{}') FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) WITH ORDINALITY u(r, o)
 WHERE NOT has_table_privilege($1::regclass, r)`, t.quoted).Scan(&list)
	return list, err
}

func (p *pgDB) room(ctx context.Context, schema string) (there, may bool, err error) {
	err = p.conn.QueryRow(ctx, "SELECT count(*) > 0, coalesce(bool_and(has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE')), false) FROM pg_namespace WHERE nspname = $1", schema).Scan(&there, &may)
	return there, may, err
}

func (p *pgDB) mayMake(ctx context.Context) (text string, err error) {
	err = p.conn.QueryRow(ctx, "SELECT format('GRANT CREATE ON SCHEMA %I TO %I;', coalesce(current_schema(), 'public'), current_user)").Scan(&text)
	return text, err
}

func (p *pgDB) holder(ctx context.Context, destination string) (at string, err error) {
	err = p.conn.QueryRow(ctx, "SELECT coalesce(max(written)::text, '') FROM onewrite_places WHERE destination = $1", destination).Scan(&at)
	return at, err
}

func (m *mysqlDB) server(ctx context.Context) (v string, err error) {
	err = m.conn.QueryRowContext(ctx, "SELECT concat(version(), ', database ', database())").Scan(&v)
	if err == nil && !strings.Contains(v, "MariaDB") {
		v = "MySQL " + v
	}
	return v, err
}

func (m *mysqlDB) readOnly(ctx context.Context) (is bool, err error) {
	err = m.conn.QueryRowContext(ctx, "SELECT @@global.read_only").Scan(&is)
	return is, err
}

const mysqlRights = `SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = ?
UNION SELECT PRIVILEGE_TYPE FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = ? AND coalesce(nullif(?, ''), DATABASE()) LIKE TABLE_SCHEMA
UNION SELECT PRIVILEGE_TYPE FROM information_schema.TABLE_PRIVILEGES WHERE GRANTEE = ? AND TABLE_SCHEMA = coalesce(nullif(?, ''), DATABASE()) AND TABLE_NAME = ?`

// lacks looks at what the user was granted. Rights that come by a role do not show
// there, so that nothing is said of a user without any.
func (m *mysqlDB) lacks(ctx context.Context, t *table) (list []string, err error) {
	schema, named, need := "", "", []string{"CREATE", "ALTER"}
	if t != nil {
		schema, named = t.name.schema, t.name.table
	}
	if named != "" {
		need = []string{"SELECT", "INSERT", "UPDATE", "DELETE"}
	}
	rows, err := m.conn.QueryContext(ctx, mysqlRights, m.user, m.user, schema, m.user, schema, named)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var have []string
	for rows.Next() {
		var right string
		if err := rows.Scan(&right); err != nil {
			return nil, err
		}
		have = append(have, strings.ToUpper(right))
	}
	if len(have) <= 1 { // USAGE
		return nil, rows.Err()
	}
	return slices.DeleteFunc(need, func(r string) bool { return slices.Contains(have, r) }), rows.Err()
}

func (m *mysqlDB) room(ctx context.Context, schema string) (there, may bool, err error) {
	if err = m.conn.QueryRowContext(ctx, "SELECT count(*) > 0 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ?", schema).Scan(&there); err != nil || !there {
		return there, false, err
	}
	lacks, err := m.lacks(ctx, &table{name: name{schema: schema}})
	return true, len(lacks) == 0, err
}

func (m *mysqlDB) mayMake(ctx context.Context) (text string, err error) {
	err = m.conn.QueryRowContext(ctx, "SELECT concat('GRANT CREATE, ALTER ON `', replace(database(), '`', '``'), '`.* TO ''', replace(current_user(), '@', '''@'''), ''';')").Scan(&text)
	return text, err
}

func (m *mysqlDB) holder(ctx context.Context, destination string) (at string, err error) {
	err = m.conn.QueryRowContext(ctx, "SELECT coalesce(max(written), '') FROM onewrite_places WHERE destination = ?", destination).Scan(&at)
	return at, err
}

func (s *sqliteDB) room(context.Context, string) (there, may bool, err error) { return true, true, nil }

func (s *sqliteDB) mayMake(context.Context) (string, error) { return "", nil }

func (s *sqliteDB) server(ctx context.Context) (v string, err error) {
	err = s.conn.QueryRowContext(ctx, "SELECT 'SQLite ' || sqlite_version()").Scan(&v)
	if err == nil {
		var n int
		if err = s.conn.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master").Scan(&n); err == nil {
			v += ", " + s.path
		}
	}
	return v, err
}

func (s *sqliteDB) readOnly(context.Context) (bool, error) {
	if why, cure := disk.Unwritable(s.path); why != "" {
		return false, errors.New(why + "; cure: " + cure)
	}
	return false, nil
}

// lacks: whoever can write the file may do all.
func (s *sqliteDB) lacks(context.Context, *table) ([]string, error) { return nil, nil }

func (s *sqliteDB) holder(ctx context.Context, destination string) (at string, err error) {
	err = s.conn.QueryRowContext(ctx, "SELECT coalesce(max(written), '') FROM onewrite_places WHERE destination = ?", destination).Scan(&at)
	return at, err
}

package sqlsink

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// mysqlDB is a connection to MySQL or MariaDB.
type mysqlDB struct {
	pool   *sql.DB // of one connection
	conn   *sql.Conn
	text   string // the collation in which texts are equal only to themselves
	dead   bool
	packet int    // the largest statement, in bytes
	user   string // as GRANT names it
	name   string // of the database
}

// mysqlSession refuses what the server would change without a word, and leaves zeros
// in columns that count up.
const mysqlSession = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO,ERROR_FOR_DIVISION_BY_ZERO', time_zone = '+00:00', innodb_lock_wait_timeout = 30"

var errMySQLURL = errors.New("sqlsink: url is not the address of a MySQL server; cure: write mysql://user:password@host:3306/database?tls=true")

// mysqlConfig reads the URL. Nothing of it is in an error.
func mysqlConfig(c Config) (*mysql.Config, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "mysql" && u.Scheme != "mariadb" || strings.Trim(u.Path, "/") == "" {
		return nil, errMySQLURL
	}
	cfg := mysql.NewConfig()
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	port := u.Port()
	if port == "" {
		port = "3306"
	}
	cfg.Net, cfg.Addr, cfg.DBName = "tcp", net.JoinHostPort(u.Hostname(), port), strings.TrimPrefix(u.Path, "/")
	if socket := u.Query().Get("socket"); socket != "" {
		cfg.Net, cfg.Addr = "unix", socket
	}
	switch u.Query().Get("tls") {
	case "", "false":
	case "true":
		cfg.TLS = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
	default:
		return nil, errors.New("sqlsink: tls in the url is neither true nor false; write certificates under tls: in the destination")
	}
	if c.TLS != nil {
		cfg.TLS = c.TLS.Clone()
		if cfg.TLS.ServerName == "" {
			cfg.TLS.ServerName = u.Hostname()
		}
	}
	cfg.InterpolateParams, cfg.ClientFoundRows, cfg.MaxAllowedPacket = true, true, 0
	cfg.Timeout, cfg.Logger, cfg.Collation = 10*time.Second, &mysql.NopLogger{}, "utf8mb4_general_ci"
	return cfg, nil
}

func openMySQL(ctx context.Context, c Config) (database, error) {
	m, err := dialMySQL(ctx, c)
	if err != nil {
		return nil, err
	}
	if err = m.prepare(ctx); err != nil {
		_ = m.close() // the error says more
		return nil, fmt.Errorf("sqlsink: %w", err)
	}
	return m, nil
}

// dialMySQL connects and changes nothing.
func dialMySQL(ctx context.Context, c Config) (*mysqlDB, error) {
	cfg, err := mysqlConfig(c)
	if err != nil {
		return nil, err
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, errMySQLURL
	}
	m := &mysqlDB{pool: sql.OpenDB(connector), name: cfg.DBName}
	m.pool.SetMaxOpenConns(1)
	if m.conn, err = m.pool.Conn(ctx); err == nil {
		err = m.session(ctx)
	}
	if err != nil {
		_ = m.close() // the error says more
		return nil, fmt.Errorf("sqlsink: connect to %s: %w; cure: %s", cfg.Addr, err, mysqlUnreached(err, cfg))
	}
	return m, nil
}

func (m *mysqlDB) session(ctx context.Context) error {
	if _, err := m.conn.ExecContext(ctx, mysqlSession); err != nil {
		return err
	}
	var version string
	if err := m.conn.QueryRowContext(ctx, "SELECT version(), @@max_allowed_packet, concat('''', replace(current_user(), '@', '''@'''), '''')").Scan(&version, &m.packet, &m.user); err != nil {
		return err
	}
	m.text = "utf8mb4_0900_bin"
	if strings.Contains(version, "MariaDB") {
		m.text = "utf8mb4_nopad_bin"
	}
	return nil
}

const mysqlPlaces = "CREATE TABLE IF NOT EXISTS onewrite_places (destination VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY, owner VARCHAR(64) NOT NULL, record LONGBLOB, written DATETIME(6) NOT NULL) ENGINE=InnoDB"

// prepare makes the table of places; a user who may not make tables can use one that
// is there.
func (m *mysqlDB) prepare(ctx context.Context) error {
	t, err := m.describe(ctx, name{"", placesTable})
	if err != nil || t != nil {
		return err
	}
	if _, err = m.conn.ExecContext(ctx, mysqlPlaces); err != nil {
		return fmt.Errorf("make the table of places: %w; cure, as a user who may: %s; GRANT SELECT, INSERT, UPDATE ON onewrite_places TO %s;", err, mysqlPlaces, m.user)
	}
	return nil
}

func tick(s string) string { return "`" + strings.ReplaceAll(s, "`", "``") + "`" }

const mysqlColumns = `SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, coalesce(GENERATION_EXPRESSION, '') <> ''
FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = coalesce(nullif(?, ''), DATABASE()) AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION`

const mysqlUnique = `SELECT INDEX_NAME, COLUMN_NAME, SUB_PART IS NOT NULL
FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = coalesce(nullif(?, ''), DATABASE()) AND TABLE_NAME = ? AND NON_UNIQUE = 0 ORDER BY INDEX_NAME, SEQ_IN_INDEX`

func (m *mysqlDB) describe(ctx context.Context, n name) (*table, error) {
	if len([]rune(n.table)) > 64 || len([]rune(n.schema)) > 64 {
		return nil, refuse("the name "+n.String()+" is longer than 64 characters", "name the table in the destination: table: \"SHORT_NAME\", with topics: for it alone")
	}
	t := &table{name: n, quoted: n.quote(tick)}
	rows, err := m.conn.QueryContext(ctx, mysqlColumns, n.schema, n.table)
	if err != nil {
		return nil, m.noted(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name, data, full string
		c := &column{}
		if err := rows.Scan(&name, &data, &full, &c.generated); err != nil {
			return nil, m.noted(err)
		}
		c.name, c.quoted, c.kind = name, tick(name), mysqlKind(strings.ToLower(data))
		if c.kind == kindDecimal { // a text would be compared as a float
			c.typ = strings.TrimSuffix(strings.TrimSuffix(full, " zerofill"), " unsigned")
		}
		t.columns = append(t.columns, c)
	}
	if err := rows.Err(); err != nil || len(t.columns) == 0 {
		return nil, m.noted(err)
	}
	if err := m.transactional(ctx, t); err != nil {
		return nil, err
	}
	return t, m.indexes(ctx, t)
}

const mysqlEngine = `SELECT coalesce(max(t.ENGINE), '') FROM information_schema.TABLES t JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE
WHERE t.TABLE_SCHEMA = coalesce(nullif(?, ''), DATABASE()) AND t.TABLE_NAME = ? AND e.TRANSACTIONS = 'NO'`

// transactional refuses a table whose engine has no transactions (MyISAM, Aria, MEMORY):
// rows in it would stay when the transaction with the place is rolled back, and come twice.
func (m *mysqlDB) transactional(ctx context.Context, t *table) error {
	var engine string
	if err := m.conn.QueryRowContext(ctx, mysqlEngine, t.name.schema, t.name.table).Scan(&engine); err != nil {
		return m.noted(err)
	}
	if engine != "" {
		return refuse("the engine "+engine+" of table "+t.name.String()+" has no transactions, so a crash could leave rows without their place, or half of a write", "ALTER TABLE "+t.quoted+" ENGINE=InnoDB")
	}
	return nil
}

func (m *mysqlDB) indexes(ctx context.Context, t *table) error {
	rows, err := m.conn.QueryContext(ctx, mysqlUnique, t.name.schema, t.name.table)
	if err != nil {
		return m.noted(err)
	}
	defer rows.Close()
	parts := map[string][]string{}
	broken := map[string]bool{}
	for rows.Next() {
		var index string
		var column *string // nil: an expression
		var prefix bool
		if err := rows.Scan(&index, &column, &prefix); err != nil {
			return m.noted(err)
		}
		if column == nil || prefix {
			broken[index] = true
			column = new(string)
		}
		parts[index] = append(parts[index], *column)
	}
	t.primary, t.guarded = slices.Clone(parts["PRIMARY"]), len(parts) > 1
	for index, names := range parts {
		if !broken[index] {
			slices.Sort(names)
			t.unique = append(t.unique, names)
		}
	}
	return m.noted(rows.Err())
}

func mysqlKind(data string) columnKind {
	switch data {
	case "tinyint", "smallint", "mediumint", "int", "bigint", "bit", "year":
		return kindInteger
	case "decimal":
		return kindDecimal
	case "float", "double":
		return kindFloat
	case "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob":
		return kindBinary
	case "json":
		return kindJSON
	case "datetime", "timestamp":
		return kindTime
	}
	return kindText
}

func (m *mysqlDB) alter(ctx context.Context, sql string) error {
	_, err := m.conn.ExecContext(ctx, sql)
	switch mysqlCode(err) {
	case 1050, 1060: // somebody made it meanwhile
		return nil
	}
	return m.noted(err)
}

func (m *mysqlDB) column(s *shape) (string, error) {
	if len([]rune(s.field)) > 64 {
		return "", refuse(fmt.Sprintf("the name of the column %q is longer than 64 characters", s.field), "leave the column out at the source: columns:")
	}
	typ := "LONGTEXT CHARACTER SET utf8mb4 COLLATE " + m.text
	switch f := s.form(); {
	case f == formInteger:
		typ = "BIGINT"
	case f == formHuge:
		typ = "DECIMAL(65,0)"
	case f == formReal:
		typ = "DOUBLE"
	case f == formBoolean:
		typ = "BOOLEAN"
	case f == formDocument:
		typ = "JSON"
	case s.key:
		typ = "VARCHAR(255) CHARACTER SET utf8mb4 COLLATE " + m.text
	}
	return tick(s.field) + " " + typ, nil
}

func (m *mysqlDB) create(w *want) (string, int, error) {
	return createTable(w, tick, m.column, " ENGINE=InnoDB CHARACTER SET utf8mb4")
}

func (m *mysqlDB) createMessages(n name) string {
	return "CREATE TABLE " + n.quote(tick) + " (id VARCHAR(255) COLLATE " + m.text + ", source VARCHAR(64) COLLATE " + m.text +
		", topic VARCHAR(255) NOT NULL, `key` LONGTEXT COLLATE " + m.text + ", type TEXT NOT NULL, `time` DATETIME(6), data LONGTEXT COLLATE " + m.text +
		", data_bytes LONGBLOB, content_type TEXT, `sequence` TEXT, headers JSON, txid TEXT, txindex BIGINT, txlast BOOLEAN," +
		" arrived BIGINT NOT NULL AUTO_INCREMENT UNIQUE, PRIMARY KEY (id, source)) ENGINE=InnoDB CHARACTER SET utf8mb4"
}

func (m *mysqlDB) addColumn(t *table, s *shape) (string, error) {
	def, err := m.column(s)
	return "ALTER TABLE " + t.quoted + " ADD COLUMN " + def, err
}

func (m *mysqlDB) folds() bool { return true }

func (m *mysqlDB) take(ctx context.Context, destination, owner string) (record []byte, err error) {
	tx, err := m.conn.BeginTx(ctx, nil)
	if err != nil {
		return nil, m.noted(err)
	}
	defer func() { _ = tx.Rollback() }() // after the commit it does nothing
	if _, err = tx.ExecContext(ctx, "INSERT INTO onewrite_places (destination, owner, written) VALUES (?, ?, utc_timestamp(6)) ON DUPLICATE KEY UPDATE owner = ?", destination, owner, owner); err != nil {
		return nil, m.noted(err)
	}
	if err = tx.QueryRowContext(ctx, "SELECT record FROM onewrite_places WHERE destination = ? FOR UPDATE", destination).Scan(&record); err != nil {
		return nil, m.noted(err)
	}
	return record, m.noted(tx.Commit())
}

func (m *mysqlDB) owns(ctx context.Context, destination, owner string) error {
	var n int
	err := m.conn.QueryRowContext(ctx, "SELECT count(*) FROM onewrite_places WHERE destination = ? AND owner = ?", destination, owner).Scan(&n)
	if err == nil && n == 0 {
		return errFenced(destination)
	}
	return m.noted(err)
}

// noted gives the connection up after an error that did not come from the server, and
// after one of rights: those in a database are read when a connection enters it, so that a
// GRANT would change nothing.
func (m *mysqlDB) noted(err error) error {
	if err != nil && (mysqlCode(err) == 0 && !errors.Is(err, mysql.ErrPktTooLarge) || m.judge(err) == denied) {
		m.dead = true
	}
	return err
}

func (m *mysqlDB) usable() bool { return !m.dead }

func (m *mysqlDB) close() error {
	if m.conn != nil {
		_ = m.conn.Close() // that the goodbye did not get through is no loss
	}
	_ = m.pool.Close()
	return nil
}

func mysqlCode(err error) uint16 {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

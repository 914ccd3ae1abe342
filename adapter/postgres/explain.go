package postgres

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/internal/disk"
)

// serverError is an error of the server with its cure. It keeps no DETAIL, which
// may quote a row.
type serverError struct {
	says, cure string // in the cure, the marks below stand for names
	role, db   string // of the session, once they are known
	grant      string // another cure, for one that owns what it works on
	relay      string // the role that onewrite run is to have, where it is another
	asks       string // what else onewrite migrate was asked, as words of the shell
}

// Marks in cures. With names they become SQL, or a word of the shell.
const (
	markRole      = "{role}"
	markDatabase  = "{database}"
	markShellRole = "{shell role}"
	markShellDB   = "{shell database}"
	markAsks      = "{asks}"
)

// cureOwner is the cure for a role that does not own what it works on.
const cureOwner = "run onewrite migrate" + markAsks + " --relay-role " + markShellRole + " with the owner of the tables as the user of the source's url, or let an administrator run: onewrite migrate --print" + markAsks +
	" --relay-role " + markShellRole + " | psql -v ON_ERROR_STOP=1 " + markShellDB

func (e *serverError) Error() string {
	if e.cure == "" {
		return e.says
	}
	role, db, shellRole, shellDB := "role", "name", "ROLE", "DATABASE"
	if e.role != "" {
		role, shellRole = pgx.Identifier{e.role}.Sanitize(), disk.Quote(e.role)
	}
	if e.relay != "" {
		shellRole = disk.Quote(e.relay)
	}
	if e.db != "" {
		db, shellDB = pgx.Identifier{e.db}.Sanitize(), disk.Quote(e.db)
	}
	cure := e.cure
	if e.role == "" || e.role != e.relay { // the relay's role is to get no more rights
		cure += e.grant
	}
	return e.says + "; " + strings.NewReplacer(markRole, role, markDatabase, db, markShellRole, shellRole, markShellDB, shellDB, markAsks, e.asks).Replace(cure)
}

// explain adds the cure to an error of the server and drops its DETAIL, which
// may quote a row.
func explain(err error) error {
	var pe *pgconn.PgError
	if err == nil || !errors.As(err, &pe) {
		return err
	}
	cure := map[string]string{
		"42501": cureOwner,
		"42704": "make what is missing, for example CREATE ROLE name LOGIN",
		"42P01": "create the outbox with onewrite migrate",
		"3F000": "create the outbox with onewrite migrate",
		"28P01": "check the user and password in the url",
		"28000": "check the user in the url and pg_hba.conf",
		"3D000": "check the database name in the url",
		"53300": "raise max_connections, or free a connection",
		"55P03": "another session holds a lock; end it and try again",
		"57P03": "the server is starting or stopping; wait",
	}[pe.Code]
	grant := ""
	switch {
	case pe.Code == "42501" && strings.HasPrefix(pe.Message, "permission denied for database"):
		grant = ", or run as the owner of the database: GRANT CREATE ON DATABASE " + markDatabase + " TO " + markRole
	case pe.Code == "42704" && strings.HasPrefix(pe.Message, "publication "):
		cure = cureMigrate
	case pe.Code == "42704":
		if what := missing.FindStringSubmatch(pe.Message); what != nil && what[1] == "role" {
			cure = "make it: CREATE ROLE " + quoted(what[2]) + " LOGIN"
		}
	}
	return &serverError{says: fmt.Sprintf("postgres: %s (SQLSTATE %s)", pe.Message, pe.Code), cure: cure, grant: grant}
}

// ungranted takes the cure away that gives a role more rights, which would not help one that
// does not own the tables.
func ungranted(err error) error {
	var e *serverError
	if errors.As(err, &e) {
		e.grant = ""
	}
	return err
}

// withNames puts the names of the session into the cure of its error.
func withNames(err error, conn *pgx.Conn) error {
	if err == nil {
		return nil
	}
	return withNamesOf(err, conn.Config())
}

// withOptions puts what migrate was asked into the cure: the role that the configuration has
// for the relay, as the one that runs migrate is none of onewrite run, and the snapshots.
func withOptions(err error, o MigrateOptions) error {
	var e *serverError
	if errors.As(err, &e) {
		e.relay = o.RelayRole
		if c := o.Capture; len(c.Again) > 0 {
			e.asks = " --source " + disk.Quote(c.Source) + " --snapshot " + disk.Quote(strings.Join(c.Again, ","))
			if c.AgainWhere != "" {
				e.asks += " --where " + disk.Quote(c.AgainWhere)
			}
		}
	}
	return err
}

func withNamesOf(err error, c *pgx.ConnConfig) error {
	var e *serverError
	if errors.As(err, &e) && e.role == "" {
		e.role, e.db = c.User, databaseOf(c)
	}
	return err
}

// databaseOf is the database of a session; a url without one means that of the
// user's name.
func databaseOf(c *pgx.ConnConfig) string { return cmp.Or(c.Database, c.User) }

// unreached is a failure to connect.
type unreachedError struct {
	text  string
	cause error
}

func (e *unreachedError) Error() string { return e.text }
func (e *unreachedError) Unwrap() error { return e.cause }

// unreachable says where no connection could be made, and why: each reason once,
// without the connection string that the driver puts into its errors. It tries an
// address with TLS and without, and each address of a name.
func unreachable(err error, where string) error {
	var reasons []string
	var look func(err error, at string)
	look = func(err error, at string) {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Addr != nil && !joined(err) {
			at = op.Addr.String() + ": "
		}
		switch x := err.(type) {
		case interface{ Unwrap() []error }:
			for _, e := range x.Unwrap() {
				look(e, at)
			}
			return
		case interface{ Unwrap() error }:
			if next := x.Unwrap(); next != nil {
				look(next, at)
				return
			}
		}
		if text := at + err.Error(); !slices.Contains(reasons, text) {
			reasons = append(reasons, text)
		}
	}
	look(err, "")
	if len(reasons) == 1 {
		reasons[0] = strings.TrimPrefix(reasons[0], where+": ")
	}
	return &unreachedError{where + ": " + strings.Join(reasons, ", "), rootCause(err)}
}

// joined reports whether err holds several errors.
func joined(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if _, is := err.(interface{ Unwrap() []error }); is {
			return true
		}
	}
	return false
}

// rootCause drops the connection string that pgconn puts into its errors.
func rootCause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

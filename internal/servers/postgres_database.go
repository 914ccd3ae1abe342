package servers

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// NewDatabase makes an empty database, dropped when the test ends, and returns
// the superuser's URL of it.
func (p *PG) NewDatabase(tb testing.TB) string {
	tb.Helper()
	name := "onewrite_" + randomName(6)
	if err := p.exec("", "CREATE DATABASE "+name); err != nil {
		tb.Fatalf("servers: create a database: %v", err)
	}
	tb.Cleanup(func() {
		if p.gone() {
			return // with all that it holds
		}
		if err := p.dropDatabase(name); err != nil {
			tb.Errorf("servers: drop %s: %v", name, err)
		}
		p.dropRoles(tb)
	})
	return p.URL(name)
}

// gone reports whether a test stopped its own server for good. A server that it
// left paused is thawed.
func (p *PG) gone() bool {
	if !p.alone {
		return false
	}
	p.proc.thaw()
	return !p.proc.running()
}

// dropDatabase drops a database with all that would keep it: prepared
// transactions, replication slots and sessions.
func (p *PG) dropDatabase(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.URL(""))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT 'ROLLBACK PREPARED ' || quote_literal(gid) FROM pg_prepared_xacts WHERE database = $1", name)
	if err != nil {
		return err
	}
	rollbacks, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if len(rollbacks) > 0 {
		if err := p.exec(name, rollbacks...); err != nil {
			return err
		}
	}
	for {
		_, err = conn.Exec(ctx, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active", name)
		if err == nil {
			_, err = conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND NOT temporary", name)
		}
		if err == nil {
			_, err = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
		}
		if !hasCode(err, "55006") { // object_in_use: a slot's session is still going
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func hasCode(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}

// Role is a login made for one test.
type Role struct {
	// Name needs no quotes.
	Name string
	// Password was made at run time.
	Password string
}

// NewRole makes a role that may log in and nothing else; attributes
// ("REPLICATION", "CREATEDB", "IN ROLE x") add to it. It is dropped with the
// test, or with the last database where it owns or may do something.
func (p *PG) NewRole(tb testing.TB, attributes ...string) Role {
	tb.Helper()
	r := Role{Name: "role_" + randomName(6), Password: randomName(16)}
	sql := fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", r.Name, r.Password)
	for _, a := range attributes {
		sql += " " + a
	}
	if err := p.exec("", sql); err != nil {
		tb.Fatalf("servers: create a role: %v", err)
	}
	tb.Cleanup(func() {
		p.mu.Lock()
		p.roles = append(p.roles, r.Name)
		p.mu.Unlock()
		if !p.gone() {
			p.dropRoles(tb)
		}
	})
	return r
}

// dropRoles drops the roles whose tests have ended and keeps those that a
// database still refers to.
func (p *PG) dropRoles(tb testing.TB) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roles = slices.DeleteFunc(p.roles, func(name string) bool {
		err := p.exec("", "DROP ROLE IF EXISTS "+name)
		if err != nil && !hasCode(err, "2BP01") { // dependent_objects_still_exist
			tb.Errorf("servers: drop %s: %v", name, err)
		}
		return err == nil
	})
}

// URL returns base, the URL of a database, with this role's login.
func (r Role) URL(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return base // the caller's connect will name it
	}
	u.User = url.UserPassword(r.Name, r.Password)
	return u.String()
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite"
)

// lockClass is the first number of onewrite's advisory locks ("onew"). The
// second is 1 for the reader of the outbox and 2 for migrations.
const lockClass = 0x6f6e6577

// connect opens a direct session that notices a dead network within seconds.
func connect(ctx context.Context, url string) (*pgx.Conn, *wire, error) {
	return connectWith(ctx, url, func(*pgx.ConnConfig) {})
}

// connectWith is connect for a session with settings of its own.
func connectWith(ctx context.Context, url string, with func(*pgx.ConnConfig)) (*pgx.Conn, *wire, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, nil, errors.New("postgres: the url is not understood; write postgres://user@host:5432/database?sslmode=verify-full") // the text may hold a password
	}
	d := &net.Dialer{Timeout: 10 * time.Second, Control: deadNetwork, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3}}
	var w *wire
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		w = newWire(c)
		return w, nil
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "onewrite"
	}
	cfg.RuntimeParams["standard_conforming_strings"] = "on" // pgx needs it, and a database may be set otherwise
	with(cfg)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		var pe *pgconn.PgError
		if errors.As(err, &pe) {
			if cfg.RuntimeParams["replication"] != "" {
				return nil, nil, withNamesOf(explainSlot(pe), cfg)
			}
			return nil, nil, withNamesOf(explain(pe), cfg)
		}
		cure := "check that the server runs and that the url is right"
		if strings.Contains(err.Error(), noTLS) {
			cure = turnOnTLS
		}
		return nil, nil, fmt.Errorf("postgres: cannot connect to %w; %s", unreachable(err, net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))), cure)
	}
	return conn, w, nil
}

const (
	// noTLS is what the driver says of a server that has no TLS where the url wants it.
	noTLS     = "server refused TLS connection"
	turnOnTLS = "let the server encrypt (ssl = on, with server.crt and server.key, in postgresql.conf), or write sslmode=disable in the source's url where nobody is on the way"
)

// settings of the relay's session. Plans: the leaves have no statistics, an
// index is always right, planning anew costs more than reading, and so does the
// start of parallel workers.
const settings = `SET enable_seqscan = off; SET jit = off; SET max_parallel_workers_per_gather = 0; SET plan_cache_mode = force_generic_plan;
SET default_transaction_isolation = 'read committed'; SET synchronous_commit = on; SET work_mem = '32MB';
SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 3; SET tcp_keepalives_count = 3;
SET idle_in_transaction_session_timeout = '10s'; SET statement_timeout = 0; SET lock_timeout = 0; SET search_path = pg_catalog; ` + noLimits

// prepare checks that the session can do the work and sets it up.
func prepare(ctx context.Context, conn *pgx.Conn) error {
	var version int
	var standby, there bool
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), to_regclass('onewrite.outbox') IS NOT NULL`).Scan(&version, &standby, &there)
	switch {
	case err != nil:
		return explain(err)
	case version < 130000:
		return fmt.Errorf("postgres: the server has version %d, the outbox needs 13 or newer", version/10000)
	case standby:
		return errors.New("postgres: this server is a read-only standby; name the primary in the source's url, for example with host=a,b target_session_attrs=read-write")
	case !there:
		return errors.New("postgres: there is no outbox in this database; create it with onewrite migrate")
	}
	_, err = conn.Exec(ctx, settings, pgx.QueryExecModeSimpleProtocol)
	return explain(err)
}

// frozenAfter is how long a holder of the lock may be silent. An active relay
// says something at least once a second.
const frozenAfter = 6 * time.Second

// lead takes the lock of the outbox's only reader. A holder that says nothing
// any more is frozen: its session is ended, and when it thaws the bus refuses
// what it writes.
func lead(ctx context.Context, conn *pgx.Conn, warn func(msg string, args ...any)) error {
	for range 2 {
		var got bool
		if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, 1)`, lockClass).Scan(&got); err != nil {
			return explain(err)
		}
		if got {
			return nil
		}
		var pid int
		var silent time.Duration
		var busy bool // the server works for it; a long query is no silence
		err := conn.QueryRow(ctx, `SELECT l.pid, coalesce(clock_timestamp() - greatest(a.query_start, a.state_change, a.backend_start), interval '0'),
				coalesce(a.state = 'active' AND a.wait_event_type IS DISTINCT FROM 'Client', true)
			FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			WHERE l.locktype = 'advisory' AND l.classid = $1::bigint::oid AND l.objid = 1 AND l.objsubid = 2 AND l.granted
			AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`, lockClass).Scan(&pid, &silent, &busy)
		if errors.Is(err, pgx.ErrNoRows) {
			continue // it went just now
		}
		if err != nil {
			return fmt.Errorf("%w (session unknown: %w)", onewrite.ErrStandby, explain(err))
		}
		if busy || silent < frozenAfter {
			return fmt.Errorf("%w: session %d reads this outbox", onewrite.ErrStandby, pid)
		}
		warn("the session that reads this outbox is frozen, ending it", "pid", pid, "silent", silent.Round(time.Millisecond))
		if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend($1)`, pid); err != nil {
			return fmt.Errorf("%w: session %d is frozen and cannot be ended: %w; run as superuser: SELECT pg_terminate_backend(%d)", onewrite.ErrStandby, pid, explain(err), pid)
		}
		deadline := time.Now().Add(3 * time.Second)
		for gone := false; !gone && time.Now().Before(deadline); {
			if err := conn.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1) OR pg_sleep(0.02) IS NULL`, pid).Scan(&gone); err != nil {
				return explain(err)
			}
		}
	}
	return onewrite.ErrStandby
}

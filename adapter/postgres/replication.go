package postgres

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// textForm are the settings under which values become text, the same in the log and
// in a snapshot.
var textForm = map[string]string{
	"client_encoding": "UTF8", "TimeZone": "UTC", "DateStyle": "ISO, YMD", "IntervalStyle": "postgres",
	"extra_float_digits": "3", "bytea_output": "hex", "lc_monetary": "C", "search_path": "pg_catalog", "xmloption": "content", "quote_all_identifiers": "off",
	// A snapshot takes as long as it takes, and is refused rather than filtered. Its
	// plans are made to look expensive, which is no reason to compile them.
	"statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0", "default_transaction_read_only": "off", "row_security": "off", "jit": "off",
}

// noLimits ends what a database or a role may have set for its applications: the one
// transaction of a snapshot takes as long as it takes, and a session waits for events. Not
// every server has both, and none starts a session with a setting that it does not know.
const noLimits = `SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN ('transaction_timeout', 'idle_session_timeout')`

// connectUnlimited is connectWith for a session that is held for long.
func connectUnlimited(ctx context.Context, url string, with func(*pgx.ConnConfig)) (*pgx.Conn, error) {
	conn, _, err := connectWith(ctx, url, with)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, noLimits, pgx.QueryExecModeSimpleProtocol); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, explain(err)
	}
	return conn, nil
}

// connectText opens a session whose values have the form of the log's.
func connectText(ctx context.Context, url, name string) (*pgx.Conn, error) {
	return connectUnlimited(ctx, url, func(c *pgx.ConnConfig) {
		for k, v := range textForm {
			c.RuntimeParams[k] = v
		}
		c.RuntimeParams["application_name"] = name
		c.DefaultQueryExecMode = pgx.QueryExecModeExec
	})
}

// connectSender opens a session of replication, which knows more commands, and one
// statement at a time. A test may change its settings.
func connectSender(ctx context.Context, url, name string, with ...func(*pgx.ConnConfig)) (*pgx.Conn, error) {
	return connectUnlimited(ctx, url, func(c *pgx.ConnConfig) {
		for _, f := range with {
			f(c)
		}
		for k, v := range textForm {
			c.RuntimeParams[k] = v
		}
		c.RuntimeParams["application_name"] = name
		c.RuntimeParams["replication"] = "database"
		c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	})
}

// replication is a connection that streams the log. One goroutine receives, another
// sends what is confirmed, at least each interval, whatever the receiver waits for:
// a server that hears nothing hangs up.
type replication struct {
	conn      net.Conn
	pid       uint32
	in        *bufio.Reader
	last      int    // bytes that the last read got
	gathering bool   // the server sends as fast as it can
	frame     []byte // of a message larger than in's buffer
	interval  time.Duration

	received  atomic.Uint64 // the newest place that the server spoke of
	confirmed atomic.Uint64 // what it may forget
	heard     atomic.Int64  // when bytes came last
	waiting   atomic.Bool   // the receiver waits for bytes
	now       chan struct{} // holds a token when a status is due at once
	stop      chan struct{}
	done      sync.WaitGroup
	once      sync.Once
}

// connectReplication opens the connection. Nothing is sent on it before start.
func connectReplication(ctx context.Context, url, name string, with ...func(*pgx.ConnConfig)) (*replication, error) {
	conn, err := connectSender(ctx, url, name, with...)
	if err != nil {
		return nil, err
	}
	var timeout int
	err = conn.QueryRow(ctx, `SELECT setting::int FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'`).Scan(&timeout)
	if err != nil {
		_ = conn.Close(ctx)
		return nil, explain(err)
	}
	// Where a write took long, as on a busy machine, the driver reads in the background,
	// and would take the answer to START_REPLICATION away.
	if err := conn.PgConn().SyncConn(ctx); err != nil {
		_ = conn.Close(ctx)
		return nil, fmt.Errorf("postgres: replication connection: %w", err)
	}
	h, err := conn.PgConn().Hijack()
	if err != nil {
		return nil, fmt.Errorf("postgres: replication connection: %w", err)
	}
	r := &replication{conn: h.Conn, pid: h.PID, interval: 10 * time.Second, now: make(chan struct{}, 1), stop: make(chan struct{})}
	r.in = bufio.NewReaderSize(readFunc(r.read), 256<<10)
	if timeout > 0 {
		r.interval = min(r.interval, time.Duration(timeout)*time.Millisecond/3)
	}
	return r, nil
}

// start asks for the log from a place on. The place is one that the server sent. more are
// options of the plugin beside the usual ones.
func (r *replication) start(ctx context.Context, slot, publication string, from pgoutput.LSN, more string) error {
	text := fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL %s (proto_version '1', publication_names '%s', messages 'true'%s)", pgx.Identifier{slot}.Sanitize(), from, pgx.Identifier{publication}.Sanitize(), more)
	q := append(binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(text)+5)), text...)
	release := context.AfterFunc(ctx, func() { _ = r.conn.SetDeadline(time.Unix(1, 0)) })
	defer release()
	if _, err := r.conn.Write(append(q, 0)); err != nil {
		return fmt.Errorf("postgres: replication connection: %w", err)
	}
	for {
		kind, data, err := r.message()
		if err != nil {
			return err
		}
		if kind == 'W' {
			break
		}
		switch kind {
		case 'E':
			return refusal(data)
		case 'N', 'S':
		default:
			return fmt.Errorf("postgres: the server answers START_REPLICATION with a message %q", kind)
		}
	}
	if !release() {
		return ctx.Err()
	}
	r.heard.Store(time.Now().UnixNano())
	r.done.Go(r.report)
	return nil
}

// refusal is an error that the server sent.
func refusal(data []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(data); err != nil {
		return fmt.Errorf("postgres: replication connection: %w", err)
	}
	return explain(pgconn.ErrorResponseToPgError(&e))
}

// message reads one message of the protocol. The data is good until the next.
func (r *replication) message() (kind byte, data []byte, err error) {
	head, err := r.peek(5)
	if err != nil {
		return 0, nil, err
	}
	kind, n := head[0], int(binary.BigEndian.Uint32(head[1:]))-4
	if n < 0 || n > 1<<30 {
		return 0, nil, fmt.Errorf("postgres: replication connection: a message of %d bytes", n)
	}
	_, _ = r.in.Discard(5)
	if n <= r.in.Size() {
		if data, err = r.peek(n); err == nil {
			_, _ = r.in.Discard(n) // data stays in the buffer until the next read
		}
		return kind, data, err
	}
	if cap(r.frame) < n {
		r.frame = make([]byte, n)
	}
	data = r.frame[:n]
	r.waiting.Store(true)
	_, err = io.ReadFull(r.in, data)
	r.waiting.Store(false)
	r.heard.Store(time.Now().UnixNano())
	if n > 1<<20 {
		r.frame = nil // a rare one shall not stay
	}
	return kind, data, broken(err)
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

const (
	// flood is how much one read gets when the server sends as fast as it can; drops
	// is what it gets when it does not any more.
	flood, drops = 8 << 10, 2 << 10
	// gather is how long a flood is left to gather.
	gather = 300 * time.Microsecond
)

// read reads from the connection. In a flood it waits a moment first: waking for each
// few hundred bytes costs the server, which wakes us, as much as its decoding.
func (r *replication) read(p []byte) (n int, err error) {
	if r.last >= drops && r.gathering {
		time.Sleep(gather)
	}
	n, err = r.conn.Read(p)
	r.last = n
	if n >= flood {
		r.gathering = true
	} else if n < drops {
		r.gathering = false
	}
	return n, err
}

func (r *replication) peek(n int) ([]byte, error) {
	if r.in.Buffered() >= n {
		b, err := r.in.Peek(n)
		return b, err
	}
	r.waiting.Store(true)
	b, err := r.in.Peek(n)
	r.waiting.Store(false)
	r.heard.Store(time.Now().UnixNano())
	return b, broken(err)
}

func broken(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("postgres: the server closed the replication connection; its log says why")
	}
	return fmt.Errorf("postgres: replication connection: %w", err)
}

// buffered reports whether a message has begun to arrive.
func (r *replication) buffered() bool { return r.in.Buffered() > 0 }

// next returns the payload of the next CopyData: XLogData or a keepalive.
func (r *replication) next() ([]byte, error) {
	for {
		kind, data, err := r.message()
		if err != nil {
			return nil, err
		}
		switch kind {
		case 'd':
			if len(data) == 0 {
				return nil, errors.New("postgres: replication connection: an empty frame")
			}
			return data, nil
		case 'E':
			return nil, refusal(data)
		case 'N', 'S':
		default:
			return nil, fmt.Errorf("postgres: the server ended the stream of the log (message %q)", kind)
		}
	}
}

// confirm lets the server forget the log up to a place that it sent.
func (r *replication) confirm(at pgoutput.LSN) {
	if uint64(at) > r.confirmed.Load() {
		r.confirmed.Store(uint64(at))
	}
}

// reply makes a status due at once.
func (r *replication) reply() {
	select {
	case r.now <- struct{}{}:
	default:
	}
}

// silentStream is how long a server that was asked may say nothing.
const silentStream = 60 * time.Second

// report sends the status until the connection is closed.
func (r *replication) report() {
	tick := time.NewTicker(min(time.Second, r.interval))
	defer tick.Stop()
	var sent uint64
	last := time.Now()
	for {
		due := false
		select {
		case <-r.stop:
			return
		case <-r.now:
			due = true
		case <-tick.C:
		}
		at := r.confirmed.Load()
		if !due && at == sent && time.Since(last) < r.interval {
			continue
		}
		silent := time.Since(time.Unix(0, r.heard.Load()))
		if r.waiting.Load() && silent > silentStream {
			_ = r.conn.Close() // the receiver returns with an error
			return
		}
		if err := r.send(pgoutput.LSN(at), r.waiting.Load() && silent > silentStream/2); err != nil {
			_ = r.conn.Close()
			return
		}
		sent, last = at, time.Now()
	}
}

func (r *replication) send(at pgoutput.LSN, ask bool) error {
	status := pgoutput.AppendStatus(nil, pgoutput.Status{
		Write: pgoutput.LSN(max(r.received.Load(), uint64(at))), Flush: at, Apply: at, Clock: pgoutput.TimestampOf(time.Now()), ReplyRequested: ask,
	})
	b := binary.BigEndian.AppendUint32([]byte{'d'}, uint32(len(status)+4))
	_ = r.conn.SetWriteDeadline(time.Now().Add(r.interval))
	_, err := r.conn.Write(append(b, status...))
	return err
}

// close ends the connection. A clean end says first what is confirmed, so that the
// next reader need not skip what was read.
func (r *replication) close(clean bool) {
	r.once.Do(func() {
		close(r.stop)
		r.done.Wait()
		if clean {
			_ = r.send(pgoutput.LSN(r.confirmed.Load()), false)
			_ = r.conn.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = r.conn.Write([]byte{'c', 0, 0, 0, 4, 'X', 0, 0, 0, 4})
		}
		_ = r.conn.Close()
	})
}

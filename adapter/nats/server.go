package nats

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
)

// format is the version of the store's layout. A change that an older program
// would misread raises it and brings the upgrade with it.
const format = 2

// embedded is a NATS server in this process that owns a folder.
type embedded struct {
	dir      string
	lock     *flock.Flock
	user     string // of the connection of this process
	password string // made at start, known to nobody else
	ill      *illness

	mu  sync.Mutex
	srv *server.Server // nil while it is started again
}

// InProcessConn connects to the server that runs now.
func (e *embedded) InProcessConn() (net.Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.srv == nil {
		return nil, errors.New("the embedded bus is being started again")
	}
	return e.srv.InProcessConn()
}

// startEmbedded locks the folder, checks its format and starts the server.
func startEmbedded(ctx context.Context, c *Config) (_ *embedded, err error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, short(filepath.Dir(c.Dir), fmt.Errorf("nats: bus folder: %w", err))
	}
	e := &embedded{dir: c.Dir, user: "onewrite", password: randomID(), ill: newIllness(c.Dir)}
	if e.lock, err = lockDir(c.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = e.lock.Close()
		}
	}()
	if err := checkFormat(c.Dir); err != nil {
		return nil, short(c.Dir, err)
	}
	err = inspect(c.Dir, c.say)
	var bad damaged
	if errors.As(err, &bad) {
		err = setAside(c, bad)
	}
	if err != nil {
		return nil, err
	}
	e.srv, err = e.start(ctx, c)
	return e, err
}

// start waits until the store is recovered, which takes seconds after a crash
// with many events, or until ctx ends.
func (e *embedded) start(ctx context.Context, c *Config) (*server.Server, error) {
	opts, err := e.options(c)
	if err != nil {
		return nil, err
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("nats: embedded server: %w", err)
	}
	log := &serverLog{log: c.Logger, hear: e.ill.hear}
	srv.SetLoggerV2(log, false, false, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Start()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		srv.Shutdown()
		<-done
		return nil, context.Cause(ctx)
	}
	wait := 5 * time.Second
	if !srv.JetStreamEnabled() {
		wait = time.Millisecond
	}
	if !srv.ReadyForConnections(wait) || !srv.JetStreamEnabled() {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil, short(c.Dir, fmt.Errorf("nats: the embedded bus did not start: %s; look at the folder %s and at bus.listen", log.last(), c.Dir))
	}
	if err := e.ill.settle(); err != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil, err
	}
	return srv, nil
}

// restart stops the server and starts another one on the same folder, whose lock
// stays. drop ends the connection to the old one.
func (e *embedded) restart(ctx context.Context, c *Config, drop func()) error {
	e.halt(drop)
	srv, err := e.start(ctx, c)
	e.mu.Lock()
	e.srv = srv
	e.mu.Unlock()
	return err
}

// halt stops the server.
func (e *embedded) halt(drop func()) {
	e.mu.Lock()
	old := e.srv
	e.srv = nil
	e.mu.Unlock()
	drop()
	if old != nil {
		old.Shutdown()
		old.WaitForShutdown()
	}
}

func (e *embedded) close() error {
	e.mu.Lock()
	srv := e.srv
	e.mu.Unlock()
	if srv != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
		seal(e.dir)
	}
	return e.lock.Close()
}

func (e *embedded) options(c *Config) (*server.Options, error) {
	// A header is at most 64 KiB; an event whose attributes are larger is stored
	// as JSON, where a byte can need seven.
	payload := 7*int64(c.MaxEvent) + 256<<10
	opts := &server.Options{
		ServerName: c.Name, DontListen: c.Listen == "", NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: c.Dir, SyncAlways: true,
		JetStreamMaxMemory: 1 << 20,
		JetStreamMaxStore:  math.MaxInt64 / 4, // the room is counted here, so that cursors move when events do not fit
		MaxPayload:         int32(min(payload, math.MaxInt32/2)),
		MaxPending:         max(server.MAX_PENDING_SIZE, 4*payload),
	}
	if c.Listen == "" {
		return opts, nil
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("nats: bus.listen: %w", err)
	}
	if opts.Port, err = strconv.Atoi(port); err != nil {
		return nil, fmt.Errorf("nats: bus.listen: the port %q is not a number", port)
	}
	if opts.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	opts.Host = host
	if c.User == e.user {
		e.user += "-" + e.password[:8]
	}
	opts.Users = []*server.User{
		{Username: e.user, Password: e.password},
		{Username: c.User, Password: c.Password, Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{
				"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.MSG.GET.*",
				"$JS.API.DIRECT.GET.>", "$JS.API.CONSUMER.>", "$JS.ACK.>", "$JS.FC.>",
			}},
		}},
	}
	return opts, nil
}

// lockDir makes this process the only one to use the folder. The lock goes with
// the process, however that ends.
func lockDir(dir string) (*flock.Flock, error) {
	path := filepath.Join(dir, "lock")
	l := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("nats: lock the bus folder %s: %w", dir, err)
	}
	if !ok {
		_ = l.Close()
		holder := "another process"
		if text, err := os.ReadFile(path); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
				holder = "process " + strconv.Itoa(pid)
			}
		}
		return nil, fmt.Errorf("nats: the bus folder %s is in use by %s; stop it, give this copy a bus.dir of its own, or share an external bus with bus.url", dir, holder)
	}
	// The number is only for people; the lock does not need it, and where a
	// locked file cannot be written it is left out.
	_ = os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600)
	return l, nil
}

// writeWhole writes a file so that it is there with all of data or as it was, be
// the disk full or the power gone.
func writeWhole(path string, data []byte) error {
	fresh := path + ".new"
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		_ = os.Remove(fresh)
	}
	return err
}

// checkFormat refuses a store of a newer program and marks a new one.
func checkFormat(dir string) error {
	path := filepath.Join(dir, "format")
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := writeWhole(path, []byte(strconv.Itoa(format)+"\n")); err != nil {
			return fmt.Errorf("nats: bus folder: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("nats: bus folder: %w", err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || v < 1 {
		return fmt.Errorf("nats: %s does not hold a version number; restore the folder from its backup, or move it away: what is not confirmed is read from the outbox again", path)
	}
	if v > format {
		return fmt.Errorf("nats: the bus folder %s was written by a newer onewrite (format %d, this program knows %d); run the newer program", dir, v, format)
	}
	if v < format { // what is written from now on an older program would pass over
		if err := writeWhole(path, []byte(strconv.Itoa(format)+"\n")); err != nil {
			return fmt.Errorf("nats: bus folder: %w", err)
		}
	}
	return nil
}

// serverLog passes the server's warnings on; its notices are for nobody.
type serverLog struct {
	log  *slog.Logger
	hear func(text string) // is told of every error

	mu   sync.Mutex
	text string // the last error, for the one who starts the server
}

func (l *serverLog) Noticef(string, ...any) {}
func (l *serverLog) Debugf(string, ...any)  {}
func (l *serverLog) Tracef(string, ...any)  {}
func (l *serverLog) Warnf(f string, v ...any) {
	if strings.HasPrefix(f, "Maximum payloads over") {
		return // the size of events is the operator's choice
	}
	text := "embedded bus: " + fmt.Sprintf(f, v...)
	if strings.Contains(f, "state outdated") { // after each kill: its index is made anew from the messages
		l.log.Info(text)
		return
	}
	l.log.Warn(text)
}
func (l *serverLog) Errorf(f string, v ...any) { l.error(f, v) }
func (l *serverLog) Fatalf(f string, v ...any) { l.error(f, v) }

func (l *serverLog) error(f string, v []any) {
	text := fmt.Sprintf(f, v...)
	l.mu.Lock()
	l.text = text
	l.mu.Unlock()
	l.log.Error("embedded bus: " + text)
	l.hear(text)
}

func (l *serverLog) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text == "" {
		return "no reason was given"
	}
	return l.text
}

// randomID returns 128 random bits as text.
func randomID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

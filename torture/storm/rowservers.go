package storm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/torture/history"
)

// copied copies the data folder of a server that is down to a place where there may be
// something.
func copied(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

// exchangeData puts another data folder into the place of that of the server, which is
// down, and starts it.
func (s *storm) exchangeData(ctx context.Context, with string) error {
	data := s.db.server.Data()
	if err := os.RemoveAll(data); err != nil {
		return err
	}
	if err := os.Rename(with, data); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(data, "postmaster.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := s.db.server.Up(); err != nil {
		return err
	}
	return s.until(ctx, "the server answers", func() bool { return s.db.PingContext(ctx) == nil })
}

// settled waits until all that is committed has arrived. The writers wait.
func (s *storm) settled(ctx context.Context) error {
	if err := s.read(ctx); err != nil {
		return err
	}
	return s.until(ctx, "all has arrived", func() bool { return s.state().idle })
}

// restore puts a cold copy back that is older than what was read. What was changed and
// read since is of no history any more.
func (s *storm) restore(ctx context.Context, f *history.Fault) error {
	s.gate.hold()
	defer s.gate.release()
	time.Sleep(latest) // what is scheduled is due by then
	if err := s.settled(ctx); err != nil {
		return err
	}
	server := s.db.server
	if err := server.Down(false); err != nil {
		return err
	}
	backup := server.Data() + ".copy"
	if err := errors.Join(copied(server.Data(), backup), server.Up()); err != nil {
		return err
	}
	var n int64
	if err := s.until(ctx, "the server answers", func() bool {
		return s.db.QueryRowContext(ctx, `SELECT max(n) FROM shadow.log`).Scan(&n) == nil
	}); err != nil {
		return err
	}
	s.scribble(ctx, 1500)
	if err := s.settled(ctx); err != nil {
		return err
	}
	was := len(s.lost)
	if err := s.noted(ctx, n, func(c *history.Change) { c.Lost = true; s.lost = append(s.lost, *c) }); err != nil {
		return err
	}
	f.At, f.Again = s.now(), int(s.committed.Load()+s.doubtful.Load())
	if err := server.Down(true); err != nil {
		return err
	}
	if err := s.exchangeData(ctx, backup); err != nil {
		return err
	}
	f.Proof = fmt.Sprintf("%d changes that were read are gone", len(s.lost)-was)
	s.scribble(ctx, 1500) // as if nothing had been, over the same places of the log
	return nil
}

// reload dumps the database and loads it into another cluster, which takes the place of
// the first.
func reload(version int) func(*storm, context.Context, *history.Fault) error {
	return func(s *storm, ctx context.Context, f *history.Fault) error {
		s.gate.hold()
		defer s.gate.release()
		s.scribble(ctx, 50) // not all of it is read
		was := s.db.server
		if version == 0 {
			version = was.Version
		}
		to, err := servers.Launch(version)
		if err != nil {
			return err
		}
		u, err := url.Parse(s.db.url)
		var dump []byte
		if err == nil {
			dump, err = tool(ctx, "pg_dump", nil, "-d", s.db.url)
		}
		if err == nil {
			_, err = tool(ctx, "psql", nil, "-d", to.URL("postgres"), "-c", "CREATE DATABASE "+u.Path[1:])
		}
		if err == nil {
			_, err = tool(ctx, "psql", dump, "-q", "-v", "ON_ERROR_STOP=1", "-d", to.URL(u.Path[1:]))
		}
		if err == nil {
			err = errors.Join(to.Down(false), was.Down(false), trusting(to.Data()), to.Replace(was))
		}
		if err != nil {
			return errors.Join(err, to.Shutdown())
		}
		s.db.server = to
		f.Proof, f.Again = fmt.Sprintf("%d bytes of SQL were loaded", len(dump)), int(s.committed.Load()+s.doubtful.Load())
		return errors.Join(was.Shutdown(), s.until(ctx, "the server answers", func() bool { return s.db.PingContext(ctx) == nil }))
	}
}

// tool runs a program of PostgreSQL.
func tool(ctx context.Context, name string, in []byte, args ...string) ([]byte, error) {
	path, err := servers.Tool(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = bytes.NewReader(in)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, said.Bytes())
	}
	return out, nil
}

// trusting lets everybody on this machine in: the passwords are those of another.
func trusting(data string) error {
	return os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"), 0o644)
}

// standBy makes a standby of the server, from a cold copy without its slots.
func (s *storm) standBy(ctx context.Context) (*servers.PG, error) {
	primary := s.db.server
	standby, err := servers.Launch(primary.Version)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*servers.PG, error) { return nil, errors.Join(err, standby.Shutdown()) }
	_, _ = s.db.ExecContext(ctx, `SELECT pg_create_physical_replication_slot('standby', true)`)
	s.gate.hold()
	defer s.gate.release()
	err = errors.Join(standby.Down(false), primary.Down(false))
	if err == nil {
		err = errors.Join(copied(primary.Data(), standby.Data()), primary.Up())
	}
	if err != nil {
		return fail(err)
	}
	slots, _ := filepath.Glob(filepath.Join(standby.Data(), "pg_replslot", "*"))
	for _, slot := range slots {
		err = errors.Join(err, os.RemoveAll(slot))
	}
	u, e := url.Parse(s.db.url)
	if err = errors.Join(err, e, os.WriteFile(filepath.Join(standby.Data(), "standby.signal"), nil, 0o644)); err != nil {
		return fail(err)
	}
	password, _ := u.User.Password()
	options := []servers.Option{servers.Set("primary_slot_name", "standby"), servers.Set("hot_standby_feedback", "on"),
		servers.Set("primary_conninfo", fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=postgres", u.Hostname(), u.Port(), u.User.Username(), password))}
	if primary.Version >= 17 {
		options = append(options, servers.Set("sync_replication_slots", "on"))
	}
	// The password is the primary's now, which the standby's url does not have.
	if err := errors.Join(trusting(standby.Data()), standby.Up(options...)); err != nil {
		return fail(err)
	}
	return standby, s.until(ctx, "the server answers", func() bool { return s.db.PingContext(ctx) == nil })
}

// promote lets a standby take the place of the server in the middle of the load, with
// changes that nobody has read.
func (s *storm) promote(ctx context.Context, f *history.Fault) (err error) {
	standby, err := s.standBy(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if s.db.server != standby {
			err = errors.Join(err, standby.Shutdown())
		}
	}()
	behind, err := openAt(standby.URL("postgres"))
	if err != nil {
		return err
	}
	defer behind.Close()
	if s.db.server.Version >= 17 {
		if err := s.until(ctx, "the standby has the slot", func() bool {
			_ = s.db.simply(ctx, `SELECT pg_log_standby_snapshot()`) // lets the slot move
			var there bool
			err := behind.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'logical' AND synced AND NOT temporary AND invalidation_reason IS NULL)`).Scan(&there)
			return err == nil && there
		}); err != nil {
			return err
		}
	}
	if _, err := s.copies[0].freeze(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.copies[0].signal(sigCont, false)) }()
	f.At = s.now()
	s.scribble(ctx, 100)
	s.gate.hold()
	defer s.gate.release()
	var at string
	if err := s.db.QueryRowContext(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&at); err != nil {
		return err
	}
	if err := s.until(ctx, "the standby has all", func() bool {
		var has bool
		return behind.QueryRowContext(ctx, `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, at).Scan(&has) == nil && has
	}); err != nil {
		return err
	}
	f.Again = s.pace.recent(s.committed.Load() + s.doubtful.Load())
	was := s.db.server
	if err := errors.Join(was.Down(true), standby.Down(false), standby.Replace(was)); err != nil {
		return err
	}
	s.db.server = standby
	if err := errors.Join(was.Shutdown(), s.until(ctx, "the server answers", func() bool { return s.db.PingContext(ctx) == nil })); err != nil {
		return err
	}
	var done bool
	if err := s.db.QueryRowContext(ctx, `SELECT pg_promote()`).Scan(&done); err != nil || !done {
		return fmt.Errorf("the standby is not promoted: %w", err)
	}
	return s.db.QueryRowContext(ctx, `SELECT 'the log is that of ' || pg_walfile_name(pg_current_wal_lsn())`).Scan(&f.Proof)
}

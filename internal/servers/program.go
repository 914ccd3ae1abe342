package servers

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// What follows is for programs that are no test: they start a server that destinations
// write to, kill it, start it again, and end it.

// LaunchKafka starts a broker; Shutdown ends it. The error says how to get what is not
// there.
func LaunchKafka() (*KafkaServer, error) {
	k, err := launchKafka()
	if err == nil {
		k.alone = true
	}
	return k, err
}

// Strike ends the broker as SIGKILL does. Its data stays.
func (k *KafkaServer) Strike() error { return k.proc.kill() }

// Revive starts a broker that was struck, on its ports and its data, and returns when it
// takes transactions.
func (k *KafkaServer) Revive() error { return k.launch() }

// Shutdown ends a broker of [LaunchKafka] and removes what it held.
func (k *KafkaServer) Shutdown() error { return k.proc.close() }

// LaunchRedis starts a Redis with more lines of configuration; Shutdown ends it.
func LaunchRedis(lines ...string) (*RedisServer, error) {
	r, err := startRedis(lines...)
	if err == nil {
		r.alone = true
	}
	return r, err
}

// Pid returns the server's process, or 0 if it does not run.
func (r *RedisServer) Pid() int { return r.proc.pid() }

// Strike ends the server as SIGKILL does. Its data stays.
func (r *RedisServer) Strike() error { return r.proc.kill() }

// Revive starts a server that was struck, on its port and its data.
func (r *RedisServer) Revive() error { return r.start() }

// Shutdown ends a server of [LaunchRedis] and removes what it held.
func (r *RedisServer) Shutdown() error { return r.proc.close() }

// Pid returns the broker's process, or 0 if it does not run.
func (r *Rabbit) Pid() int { return r.proc.pid() }

// Strike is Kill.
func (r *Rabbit) Strike() error { return r.Kill() }

// Revive is Start.
func (r *Rabbit) Revive() error { return r.Start() }

// Pid returns the process that all others of the server come from, or 0 if it does not
// run.
func (p *PG) Pid() int { return p.proc.pid() }

// Strike ends that process as SIGKILL does. The others notice and end; the data stays.
func (p *PG) Strike() error { return p.proc.kill() }

// Revive starts a server that was struck. It waits until the last process of before has
// gone, for as long as one is there the data is in use.
func (p *PG) Revive() error {
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = p.start(); err == nil {
			return nil
		}
		if p.proc.running() {
			return errors.Join(err, p.proc.stop(true))
		}
	}
	return fmt.Errorf("servers: PostgreSQL %d does not start after a kill: %w", p.Version, err)
}

// LaunchMariaDB starts a MariaDB; Shutdown ends it.
func LaunchMariaDB(flags ...string) (*Maria, error) {
	m, err := startMaria(flags...)
	if err == nil {
		m.alone = true
	}
	return m, err
}

// Pid returns the server's process, or 0 if it does not run.
func (m *Maria) Pid() int { return m.proc.pid() }

// Strike ends the server as SIGKILL does. Its data stays.
func (m *Maria) Strike() error { return m.proc.kill() }

// Revive starts a server that was struck, on its port and its data.
func (m *Maria) Revive() error {
	server, err := findProgram("mariadbd")
	if err != nil {
		return err
	}
	return m.start(server)
}

// Shutdown ends a server of [LaunchMariaDB] and removes what it held.
func (m *Maria) Shutdown() error { return m.proc.close() }

// Make makes an empty database and returns the URL of the user who may do everything.
func (m *Maria) Make(name string) (string, error) {
	if err := m.exec("CREATE DATABASE " + name); err != nil {
		return "", fmt.Errorf("servers: create a database: %w", err)
	}
	return m.URL(name), nil
}

// Needs ends a test as a missing server does, where a launch says that something is not
// installed. Any other error is left to the test.
func Needs(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	}
}

// Stop ends the broker in order, as a service manager does; Revive starts it again.
func (r *Rabbit) Stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.proc.terminate()
}

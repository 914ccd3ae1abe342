package servers

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// ApicurioVersion is the one that scripts/install-servers.sh fetches.
const ApicurioVersion = "2.5.11.Final"

const apicurioPatience = 2 * time.Minute

// ApicurioServer is a registry of schemas with Confluent's API, in memory, without
// log in.
type ApicurioServer struct {
	java, dir string
	port      int
	proc      *process
	alone     bool // made by NewApicurio: one test may do to it what it likes
}

var sharedApicurio = sync.OnceValues(launchApicurio)

// Apicurio returns the test process's own registry, started by the first call. Tests
// that kill one take [NewApicurio]. What is not installed ends the test as a missing
// server does.
func Apicurio(tb testing.TB) *ApicurioServer {
	tb.Helper()
	return apicurioOr(tb, sharedApicurio)
}

// NewApicurio starts a registry for this test alone.
func NewApicurio(tb testing.TB) *ApicurioServer {
	tb.Helper()
	s := apicurioOr(tb, launchApicurio)
	s.alone = true
	tb.Cleanup(func() {
		if err := s.proc.close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func apicurioOr(tb testing.TB, launch func() (*ApicurioServer, error)) *ApicurioServer {
	tb.Helper()
	s, err := launch()
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	} else if err != nil {
		tb.Fatal(err)
	}
	return s
}

// apicurioJar is the file that scripts/install-servers.sh looks for as well.
func apicurioJar() string {
	return filepath.Join(cacheDir(), "apicurio-"+ApicurioVersion, "apicurio-registry-app-"+ApicurioVersion+"-runner.jar")
}

func launchApicurio() (*ApicurioServer, error) {
	jar := apicurioJar()
	if !isProgram(jar) {
		return nil, fmt.Errorf("Apicurio Registry %s is %w: %s", ApicurioVersion, errMissing, installHint)
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, fmt.Errorf("java, for Apicurio Registry, is %w: %s", errMissing, installHint)
	}
	for range 5 { // another process may take a port between the look and the start
		s := &ApicurioServer{java: java, dir: filepath.Dir(jar)}
		if s.port, err = freePort(); err != nil {
			return nil, err
		}
		if s.proc, err = newProcess("apicurio", "pid", "KILL"); err != nil {
			return nil, err
		}
		if err = s.launch(); err == nil {
			return s, nil
		}
		err = errors.Join(err, s.proc.close())
	}
	return nil, err
}

// URL returns the root of Confluent's API.
func (s *ApicurioServer) URL() string { return "http://" + loopback(s.port) + "/apis/ccompat/v7" }

// launch starts the registry and waits until it answers.
func (s *ApicurioServer) launch() error {
	if err := s.proc.start(s.java, "-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-Djava.io.tmpdir="+s.proc.dir, // by which the watcher knows it, too
		"-Dquarkus.http.host=127.0.0.1", fmt.Sprintf("-Dquarkus.http.port=%d", s.port), "-Dquarkus.log.level=WARN",
		"-jar", apicurioJar()); err != nil {
		return err
	}
	// The registry writes no such file; the watcher needs it.
	if err := s.proc.write("pid", fmt.Sprintln(s.proc.pid())); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	var err error
	for deadline := time.Now().Add(apicurioPatience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if !s.proc.running() {
			return fmt.Errorf("servers: Apicurio Registry ended at its start:\n%s", s.proc.logTail())
		}
		if err = s.answers(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("servers: Apicurio Registry does not answer: %w\n%s", err, s.proc.logTail())
}

func (s *ApicurioServer) answers() error {
	conn, err := net.DialTimeout("tcp", loopback(s.port), time.Second)
	if err != nil {
		return err
	}
	_ = conn.Close()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := c.Get(s.URL() + "/subjects")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// Kill ends the registry as SIGKILL does. What it holds is gone with it.
func (s *ApicurioServer) Kill(tb testing.TB) {
	tb.Helper()
	if !s.alone {
		tb.Fatal("servers: other tests use this registry too; take NewApicurio")
	}
	if err := s.proc.kill(); err != nil {
		tb.Fatal(err)
	}
}

// Restart starts a killed registry again, on its port.
func (s *ApicurioServer) Restart(tb testing.TB) {
	tb.Helper()
	if err := s.launch(); err != nil {
		tb.Fatal(err)
	}
}

// Freeze stops the registry as SIGSTOP does, until the returned function is called.
func (s *ApicurioServer) Freeze(tb testing.TB) (thaw func()) {
	tb.Helper()
	if !s.alone {
		tb.Fatal("servers: other tests use this registry too; take NewApicurio")
	}
	if err := s.proc.freeze(); err != nil {
		tb.Fatal(err)
	}
	return s.proc.thaw
}

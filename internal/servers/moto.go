package servers

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// S3Server is moto's: an emulation of S3 whose objects are in its memory, so a kill
// loses them. It takes any credentials, and has conditional writes.
type S3Server struct {
	python string
	port   int
	proc   *process
}

// sharedMoto is the server of this test process.
var sharedMoto = sync.OnceValues(launchMoto)

// Moto returns the test process's own S3, started by the first call.
func Moto(tb testing.TB) *S3Server {
	tb.Helper()
	m, err := sharedMoto()
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// motoPath is the folder of Python's packages.
func motoPath() string { return filepath.Join(cacheDir(), "moto") }

// motoPython is the interpreter that install-servers.sh takes too: that of PATH may be
// in a home that is closed to the server's user.
func motoPython() (string, error) {
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		cmd := exec.Command(python, "-c", "import moto.server, sys; print(sys.executable)")
		cmd.Env = append(os.Environ(), "PYTHONPATH="+motoPath(), "PYTHONDONTWRITEBYTECODE=1")
		if out, err := output(cmd); err == nil {
			return string(out), nil
		}
	}
	return "", fmt.Errorf("moto is %w: %s", errMissing, installHint)
}

func launchMoto() (*S3Server, error) {
	python, err := motoPython()
	if err != nil {
		return nil, err
	}
	for range 5 { // another process may take the port between the look and the start
		var m *S3Server
		if m, err = startMoto(python); err == nil {
			return m, nil
		}
	}
	return nil, err
}

func startMoto(python string) (*S3Server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	proc, err := newProcess("moto", "pid", "KILL")
	if err != nil {
		return nil, err
	}
	m := &S3Server{python: python, port: port, proc: proc}
	// The folder is in the command line: so the watcher knows the process.
	script := "import sys; sys.path.insert(0, " + strconv.Quote(motoPath()) + "); sys.dont_write_bytecode = True\n" +
		"from moto.server import main; main(['-H', '127.0.0.1', '-p', '" + strconv.Itoa(port) + "'])\n"
	if err = proc.write("moto.py", script); err == nil {
		err = proc.start(python, proc.path("moto.py"))
	}
	if err == nil {
		err = proc.write("pid", strconv.Itoa(proc.pid())+"\n")
	}
	if err == nil {
		err = m.answers()
	}
	if err != nil {
		return nil, errors.Join(err, proc.close())
	}
	return m, nil
}

func (m *S3Server) answers() error {
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = m.do(http.MethodGet, "/moto-api/data.json"); err == nil {
			return nil
		}
		if !m.proc.running() {
			return fmt.Errorf("servers: moto ended at its start:\n%s", m.proc.logTail())
		}
	}
	return fmt.Errorf("servers: moto does not answer: %w\n%s", err, m.proc.logTail())
}

// URL returns the endpoint.
func (m *S3Server) URL() string { return "http://" + loopback(m.port) }

// Bucket makes a bucket.
func (m *S3Server) Bucket(tb testing.TB, name string) {
	tb.Helper()
	if err := m.do(http.MethodPut, "/"+name); err != nil {
		tb.Fatal(err)
	}
}

// Python returns a command that runs a program with boto3 at hand.
func (m *S3Server) Python(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(m.python, append([]string{"-c", program}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+motoPath(), "PYTHONDONTWRITEBYTECODE=1")
	return cmd
}

func (m *S3Server) do(method, path string) error {
	req, err := http.NewRequest(method, m.URL()+path, nil)
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	// moto takes a request without a signature for one of S3 only if it looks like it.
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0")
	resp, err := natsMonitor.Do(req) // a client that keeps no connection
	if err != nil {
		return fmt.Errorf("servers: moto: %w", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("servers: moto: %s %s: %s %.200s", method, path, resp.Status, strings.TrimSpace(string(text)))
	}
	return nil
}

package storm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// program is onewrite as a process of its own.
type program struct {
	s    *storm
	addr string
	log  *os.File
	http http.Client

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

func newProgram(s *storm) (*program, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	_ = l.Close()
	var b strings.Builder
	fmt.Fprintf(&b, "sources: {shop: %s}\ndestinations:\n", s.db.source)
	for _, k := range s.sinks {
		fmt.Fprintf(&b, "  %s: %s\n", k.name(), k.yaml())
	}
	fmt.Fprintf(&b, "listen: %s\n", addr)
	if err := os.WriteFile(s.path(configFile), []byte(b.String()), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(s.path("onewrite.log"))
	if err != nil {
		return nil, err
	}
	return &program{s: s, addr: addr, log: log, http: http.Client{Timeout: 2 * time.Second}}, nil
}

func (p *program) make(args ...string) *exec.Cmd {
	cmd := exec.Command(p.s.Binary, append(args, "-c", configFile)...)
	cmd.Dir = p.s.Dir
	cmd.Env = append(os.Environ(), p.s.Env...)
	return cmd
}

// command runs a command of the program to its end.
func (p *program) command(_ context.Context, args ...string) error {
	if out, err := p.make(args...).CombinedOutput(); err != nil {
		return fmt.Errorf("onewrite %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (p *program) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := p.make("run")
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() { defer close(exited); _ = cmd.Wait() }()
	p.cmd, p.exited = cmd, exited
	return nil
}

func (p *program) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// signal sends a signal; end waits until the process is gone.
func (p *program) signal(sig syscall.Signal, end bool) error {
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	p.mu.Unlock()
	if cmd == nil {
		return errors.New("onewrite does not run")
	}
	if err := cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("onewrite ended by itself: %w; see %s", err, p.log.Name())
	}
	if !end {
		return nil
	}
	select {
	case <-exited:
		return nil
	case <-time.After(time.Minute):
		return fmt.Errorf("onewrite does not end by %v", sig)
	}
}

// stop ends it cleanly, kill at once.
func (p *program) stop() error {
	p.mu.Lock()
	running := p.cmd != nil
	p.mu.Unlock()
	if !running {
		return nil
	}
	if err := p.signal(syscall.SIGTERM, true); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	code := p.cmd.ProcessState.ExitCode()
	p.cmd = nil
	if code != 0 {
		return fmt.Errorf("onewrite ended with %d when it was asked to stop; see %s", code, p.log.Name())
	}
	return nil
}

func (p *program) kill() {
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	p.cmd = nil
	p.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Signal(sigCont)
		_ = cmd.Process.Kill()
		<-exited
	}
	_ = p.log.Close()
}

// status is what onewrite says of itself.
type status struct {
	Sources map[string]struct {
		State  string  `json:"state"`
		Events uint64  `json:"events"`
		Gap    *string `json:"gap"`
	} `json:"sources"`
	Destinations map[string]struct {
		State     string `json:"state"`
		Position  string `json:"position"`
		Epoch     uint64 `json:"epoch"`
		Delivered uint64 `json:"delivered"`
		Pending   uint64 `json:"pending"`
		Parked    uint64 `json:"parked"`
		Filtered  uint64 `json:"filtered"`
		Skipped   uint64 `json:"skipped"`
	} `json:"destinations"`
}

func (p *program) status() (*status, error) {
	res, err := p.http.Get("http://" + p.addr + "/api/status")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, errors.New(res.Status)
	}
	st := &status{}
	return st, json.NewDecoder(res.Body).Decode(st)
}

// idle reports whether onewrite says that all is done.
func (p *program) idle() bool {
	st, err := p.status()
	if err != nil {
		return false
	}
	for _, src := range st.Sources {
		if src.State != "ok" {
			return false
		}
		for _, d := range st.Destinations {
			if d.State != "ok" || d.Pending > 0 || d.Delivered+d.Parked+d.Filtered+d.Skipped != src.Events {
				return false
			}
		}
	}
	return len(st.Sources) > 0
}

// place is the number in a position like "shop=42".
func place(position string) uint64 {
	_, n, _ := strings.Cut(position, "=")
	v, _ := strconv.ParseUint(n, 10, 64)
	return v
}

// rss is the resident memory of the process in bytes; 0 where it is not known.
func (p *program) rss() int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10
		}
	}
	return 0
}

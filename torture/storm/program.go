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

// program is one copy of onewrite as a process of its own.
type program struct {
	s     *storm
	n     int // from 1
	addr  string
	wires *wires
	log   *os.File
	http  http.Client

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

// stateDir is the folder of the embedded bus, in the folder of the run.
const stateDir = "state"

// writeConfig writes the one configuration of all copies.
func (s *storm) writeConfig() error {
	var b strings.Builder
	source := s.db.source
	if s.Pushed {
		source = strings.TrimSuffix(source, "}") + ", outbox: log}"
	}
	if s.Rows != "" {
		source = strings.TrimSuffix(source, "}") + `, tables: ["rows.*"]}`
	}
	fmt.Fprintf(&b, "sources: {shop: %s}\n", source)
	if s.bus != nil {
		b.WriteString("bus: {url: \"${env:OW_BUS}\"}\n")
	} else if s.Kafka {
		fmt.Fprintf(&b, "bus: {type: kafka, brokers: [%q]}\n", s.kafkaAddr())
	} else {
		keep := ""                          // so little that the bus purges in a small storm
		if s.Point != "" && s.Olders == 0 { // what is to be sent again has to be there
			keep = ", keep: 1MB"
		}
		if s.Open {
			keep += `, listen: "127.0.0.1:0", user: reader, password: "${env:OW_BUS_PASSWORD}"`
		}
		b.WriteString("bus: {dir: " + stateDir + keep + "}\n")
	}
	b.WriteString("destinations:\n")
	for _, k := range s.sinks {
		text := k.yaml()
		if s.Rows != "" {
			topics := "ledger.>"
			if k.kind().Rows {
				topics = "rows.>"
			}
			text = strings.Replace(text, "{", "{topics: [\""+topics+"\"], ", 1)
		}
		fmt.Fprintf(&b, "  %s: %s\n", k.name(), text)
	}
	b.WriteString("listen: \"${env:OW_LISTEN}\"\n")
	return os.WriteFile(s.path(configFile), []byte(b.String()), 0o600)
}

func newProgram(s *storm, n int) (*program, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	_ = l.Close()
	w, err := newWires(s, n)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(s.path(fmt.Sprintf("onewrite-%d.log", n)))
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return &program{s: s, n: n, addr: addr, wires: w, log: log, http: http.Client{Timeout: 2 * time.Second}}, nil
}

func (p *program) make(args ...string) *exec.Cmd {
	cmd := exec.Command(p.s.Binary, append(args, "-c", configFile)...)
	cmd.Dir = p.s.Dir
	cmd.Env = append(append(append(os.Environ(), p.s.Env...), p.wires.env...), "OW_LISTEN="+p.addr)
	return cmd
}

// command runs a command of the program to its end.
func (p *program) command(_ context.Context, args ...string) error {
	if out, err := p.make(args...).CombinedOutput(); err != nil {
		return fmt.Errorf("onewrite %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// start starts the process with more in its environment.
func (p *program) start(env ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := p.make("run")
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() { defer close(exited); _ = cmd.Wait() }()
	p.cmd, p.exited = cmd, exited
	return nil
}

// ended reports whether the process is gone though nobody stopped it.
func (p *program) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
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

// stop ends it cleanly.
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

// close ends the process, if it runs, and its ways.
func (p *program) close() error {
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	p.cmd = nil
	p.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Signal(sigCont)
		_ = cmd.Process.Kill()
		<-exited
	}
	return errors.Join(p.wires.close(), p.log.Close())
}

// status is what onewrite says of itself.
type status struct {
	Bus struct {
		ID string `json:"id"`
	} `json:"bus"`
	Sources map[string]struct {
		State  string  `json:"state"`
		Events uint64  `json:"events"`
		Gap    *string `json:"gap"`
	} `json:"sources"`
	Destinations map[string]destination `json:"destinations"`
	Warnings     []string               `json:"warnings"`
}

type destination struct {
	State     string `json:"state"`
	Position  string `json:"position"`
	Epoch     uint64 `json:"epoch"`
	Delivered uint64 `json:"delivered"`
	Pending   uint64 `json:"pending"`
	Parked    uint64 `json:"parked"`
	Filtered  uint64 `json:"filtered"`
	Skipped   uint64 `json:"skipped"`
}

// all is what was handed to it.
func (d *destination) all() uint64 {
	return d.Delivered + d.Pending + d.Parked + d.Filtered + d.Skipped
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

// state is what all copies together say: of a source the copy that reads it, of a
// destination the one that delivers to it.
type state struct {
	events       uint64
	source       string // its state
	gap          string
	warnings     int
	destinations map[string]destination
	owner        map[string]int // of each destination, and of the source under ""
	parked       uint64
	idle         bool // all is done
}

func (s *storm) state() *state {
	out := &state{destinations: map[string]destination{}, owner: map[string]int{}}
	for _, p := range s.copies {
		st, err := p.status()
		if err != nil {
			continue
		}
		out.add(p.n, st)
	}
	out.idle = out.source == "ok" && len(out.destinations) == len(s.sinks)
	for _, d := range out.destinations {
		out.parked += d.Parked
		out.idle = out.idle && d.State == "ok" && d.Pending == 0 && d.all() == out.events && (d.Parked == 0 || !s.Refuse)
	}
	return out
}

// add takes the answer of one copy.
func (st *state) add(n int, of *status) {
	for _, src := range of.Sources {
		if st.source == "" || src.State != "waiting" {
			st.source, st.events, st.gap = src.State, src.Events, ""
			st.owner[""] = n
			if src.Gap != nil {
				st.gap = *src.Gap
			}
		}
	}
	for name, d := range of.Destinations {
		if d.Epoch > st.destinations[name].Epoch { // 0: it has not taken over
			st.destinations[name], st.owner[name] = d, n
		}
	}
	st.warnings += len(of.Warnings)
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

//go:build unix

package servers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// watch is the script that outlives the test process. It waits for the end of
// its standard input, which only the test process holds; then it stops what the
// pid file names, if that still is our server, and removes the folder.
const watch = `
trap '' INT TERM HUP QUIT
dir=$1 pidfile=$2 signal=$3
while read -r line; do :; done
ours() {
	args=$(ps -o args= -p "$pid" 2>/dev/null) || args=$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)
	case $args in *"$dir"*) return 0 ;; esac
	return 1
}
pid=$(head -n 1 "$dir/$pidfile" 2>/dev/null)
if [ -n "$pid" ] && ours; then
	kill -s "$signal" "$pid"
	kill -s CONT "$pid"
	n=0
	while ours && [ $n -lt 200 ]; do sleep 0.05; n=$((n + 1)); done
	if ours; then kill -s KILL "$pid"; fi
fi
rm -rf "$dir"
`

// process is one server program with its folder. It has no goroutine: tests
// count goroutines.
type process struct {
	dir     string
	env     []string            // more of the environment
	cred    *syscall.Credential // nil: the current user
	watcher *exec.Cmd
	leash   io.Closer // closing it, or dying, stops everything
	frozen  []int     // children last; used by one test only

	mu  sync.Mutex
	cmd *exec.Cmd // nil while the server is stopped; mu, since parallel tests share a server
}

// newProcess makes the folder and its watcher. pidfile is relative to the
// folder; signal (a name as kill -s takes it) ends the server at once.
func newProcess(name, pidfile, signal string) (*process, error) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		return nil, fmt.Errorf("servers: %w", err)
	}
	p := &process{}
	if p.cred, err = serverUser(); err != nil {
		return nil, err
	}
	if p.dir, err = os.MkdirTemp("", "onewrite-"+name+"-"); err != nil {
		return nil, fmt.Errorf("servers: %w", err)
	}
	if err := p.give(p.dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(p.dir))
	}
	p.watcher = exec.Command(sh, "-c", watch, "watch", p.dir, pidfile, signal)
	p.watcher.Dir = "/"
	p.watcher.SysProcAttr = p.attr()
	if p.leash, err = p.watcher.StdinPipe(); err == nil {
		err = p.watcher.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("servers: start the watcher: %w", err), os.RemoveAll(p.dir))
	}
	return p, nil
}

// serverUser is who the server runs as. PostgreSQL and PgBouncer refuse root.
func serverUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("servers: user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("servers: root needs a user postgres or nobody to run servers as; cure: useradd --system postgres")
}

// attr keeps a terminal's Ctrl-C away: the watcher ends the server in order.
func (p *process) attr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: p.cred, Setpgid: true}
}

// give hands a file of ours to the server's user.
func (p *process) give(path string) error {
	if p.cred == nil {
		return nil
	}
	return os.Chown(path, int(p.cred.Uid), int(p.cred.Gid))
}

// path returns the place of a file in the folder.
func (p *process) path(name string) string { return filepath.Join(p.dir, name) }

// write stores a file that only the server's user can read.
func (p *process) write(name, text string) error {
	if err := os.WriteFile(p.path(name), []byte(text), 0o600); err != nil {
		return err
	}
	return p.give(p.path(name))
}

func (p *process) command(bin string, args ...string) *exec.Cmd {
	cmd := exec.Command(bin, args...)
	cmd.Dir = p.dir
	cmd.Env = append(append(os.Environ(), "LC_ALL=C", "TZ=UTC", "HOME="+p.dir), p.env...)
	cmd.SysProcAttr = p.attr()
	return cmd
}

// run runs a program to its end as the server's user.
func (p *process) run(bin string, args ...string) error {
	out, err := p.command(bin, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("servers: %s: %w: %s", filepath.Base(bin), err, bytes.TrimSpace(out))
	}
	return nil
}

// start runs the server; its output goes to the file "log" in the folder.
func (p *process) start(bin string, args ...string) error {
	log, err := os.OpenFile(p.path("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	defer log.Close()
	cmd := p.command(bin, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = cmd
	return nil
}

// running reports whether the server was started and has not ended. It collects
// an ended one.
func (p *process) running() bool { return p.pid() != 0 }

// pid returns the running server's, or 0.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	var status syscall.WaitStatus
	ended, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WNOHANG, nil)
	if ended == 0 && err == nil || errors.Is(err, syscall.EINTR) {
		return p.cmd.Process.Pid
	}
	_ = p.cmd.Process.Release() // collected above
	p.cmd = nil
	return 0
}

// stop ends the server, in order or at once, and waits for its end. The folder
// stays.
func (p *process) stop(atOnce bool) error {
	if atOnce {
		return p.stopBy(syscall.SIGQUIT)
	}
	return p.stopBy(syscall.SIGINT)
}

// terminate is stop for a server that takes SIGTERM for the order to end.
func (p *process) terminate() error { return p.stopBy(syscall.SIGTERM) }

func (p *process) stopBy(signal syscall.Signal) error {
	p.thaw()
	pid := p.pid()
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	for deadline := time.Now().Add(60 * time.Second); p.running(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("servers: pid %d did not stop within 60 s; cure: kill -9 %[1]d", pid)
		}
	}
	return nil
}

// kill ends the server by SIGKILL and waits for its end. The folder stays.
func (p *process) kill() error {
	pid := p.pid()
	if pid == 0 {
		return errors.New("servers: the server is not running")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	for p.running() {
		time.Sleep(time.Millisecond) // the kernel is about to end it
	}
	return nil
}

// freeze stops every process of the server as SIGSTOP does: connections stay
// open and nothing answers.
func (p *process) freeze() error {
	pid := p.pid()
	if pid == 0 {
		return errors.New("servers: the server is not running")
	}
	// The parent first: from then on no child is added.
	p.frozen = append(p.frozen, pid)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	children, err := childrenOf(pid)
	if err != nil {
		return err
	}
	for _, child := range children {
		if syscall.Kill(child, syscall.SIGSTOP) == nil { // else it has just ended
			p.frozen = append(p.frozen, child)
		}
	}
	return nil
}

// thaw lets a frozen server go on: children first, so that the parent finds
// them answering.
func (p *process) thaw() {
	for i := len(p.frozen) - 1; i >= 0; i-- {
		_ = syscall.Kill(p.frozen[i], syscall.SIGCONT) // gone is as good
	}
	p.frozen = nil
}

func childrenOf(parent int) ([]int, error) {
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		return nil, fmt.Errorf("servers: ps: %w", err)
	}
	var pids []int
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 2 || f[1] != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(f[0]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// close stops the server at once and removes the folder.
func (p *process) close() error {
	p.thaw()
	err := errors.Join(p.leash.Close(), p.watcher.Wait())
	p.running() // collects what the watcher stopped
	return err
}

// logTail returns the end of the server's log.
func (p *process) logTail() string {
	b, err := os.ReadFile(p.path("log"))
	if err != nil {
		return ""
	}
	return string(b[max(0, len(b)-2000):])
}

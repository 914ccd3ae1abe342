package shop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// process is a child of the demo.
type process struct {
	name   string
	stdin  io.WriteCloser
	target *os.Process   // what kill kills
	done   chan struct{} // closed when the child has ended
	err    error         // how; read it after done
	stderr *tail
}

// startProcess starts self as a child and gives it its settings. If hello, it
// waits for the child's first line and returns it. When ctx ends, the child's
// stdin is closed, which ends it.
func startProcess(ctx context.Context, self string, settings any, hello bool, args ...string) (*process, string, error) {
	p := &process{name: strings.Join(args, " "), done: make(chan struct{}), stderr: &tail{}}
	line, err := json.Marshal(settings)
	if err != nil {
		return nil, "", err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"demo-child"}, args...)...)
	cmd.Stderr = p.stderr
	cmd.WaitDelay = 5 * time.Second // then it is killed
	cmd.Cancel = func() error { return p.stdin.Close() }
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, "", err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", fmt.Errorf("shop: start %s: %w", p.name, err)
	}
	p.target = cmd.Process
	said := make(chan string, 1)
	go func() {
		first, _ := bufio.NewReader(stdout).ReadString('\n')
		said <- strings.TrimSpace(first)
		_, _ = io.Copy(io.Discard, stdout)
		p.err = cmd.Wait()
		close(p.done)
	}()
	if _, err := p.stdin.Write(append(line, '\n')); err != nil {
		p.stop()
		return nil, "", p.failure()
	}
	if !hello {
		return p, "", nil
	}
	select {
	case word := <-said:
		if word == "" {
			p.stop()
			return nil, "", p.failure()
		}
		return p, word, nil
	case <-time.After(20 * time.Second):
		p.stop()
		return nil, "", fmt.Errorf("shop: %s does not start: nothing was heard of it for 20 s", p.name)
	}
}

// kill ends the process as a crash or the kernel would, with no warning, and
// waits until it is gone. It reports whether it was alive before.
func (p *process) kill() bool {
	select {
	case <-p.done:
		return false
	default:
	}
	alive := p.target.Kill() == nil
	<-p.done
	return alive
}

// stop lets the process end by itself, and kills it if it takes too long.
func (p *process) stop() {
	p.stdin.Close()
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.kill()
	}
}

// failure says how a process ended that was not to end.
func (p *process) failure() error {
	<-p.done
	err := p.err
	if err == nil {
		err = errors.New("it ended")
	}
	if text := p.stderr.String(); text != "" {
		return fmt.Errorf("shop: %s: %w: %s", p.name, err, text)
	}
	return fmt.Errorf("shop: %s: %w", p.name, err)
}

// tail keeps the end of what a child prints.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if extra := len(t.text) - 2000; extra > 0 {
		t.text = t.text[extra:]
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.text))
}

// freeAddress finds an address that nobody listens on, below the ports that
// systems give to outgoing connections: a consumer that was killed must find its
// port free again.
func freeAddress() (string, error) {
	for range 200 {
		a := net.JoinHostPort("127.0.0.1", strconv.Itoa(15000+rand.IntN(16000)))
		if l, err := net.Listen("tcp", a); err == nil {
			return a, l.Close()
		}
	}
	return "", errors.New("shop: no free port between 15000 and 31000 on 127.0.0.1")
}

package servers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// NATS is a server of NATS with JetStream, or a cluster of them, each a process
// of its own: it can be killed and comes back with what it had stored. Clients are
// not told of the other servers, so that they stay behind the proxies of a test.
type NATS struct {
	nodes []*natsNode
}

type natsNode struct {
	proc                  *process
	client, peer, monitor int // ports, kept for good
}

// LaunchNATS starts so many servers, 1 or 3, and returns when JetStream takes
// streams. [NATS.Shutdown] ends them. The program is built from the module that
// embeds it.
func LaunchNATS(nodes int) (*NATS, error) {
	program, err := natsProgram()
	if err != nil {
		return nil, err
	}
	for range 3 { // another process may take a port between the look and the start
		var n *NATS
		if n, err = launchNATS(program, nodes); err == nil {
			return n, nil
		}
	}
	return nil, err
}

// natsProgram builds the server once a process.
var natsProgram = sync.OnceValues(func() (program []byte, err error) {
	dir, err := os.MkdirTemp("", "onewrite-nats-program-")
	if err != nil {
		return nil, fmt.Errorf("servers: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bin := filepath.Join(dir, "nats-server")
	out, err := exec.Command("go", "build", "-o", bin, "github.com/nats-io/nats-server/v2").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("servers: build nats-server: %w: %s", err, out)
	}
	return os.ReadFile(bin)
})

func launchNATS(program []byte, nodes int) (*NATS, error) {
	n := &NATS{}
	err := func() error {
		var routes []string
		for range nodes {
			proc, err := newProcess("nats", "pid", "KILL")
			if err != nil {
				return err
			}
			node := &natsNode{proc: proc}
			n.nodes = append(n.nodes, node)
			for _, port := range []*int{&node.client, &node.peer, &node.monitor} {
				if *port, err = freePort(); err != nil {
					return err
				}
			}
			routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", node.peer))
		}
		for i, node := range n.nodes {
			if err := node.prepare(i, program, routes); err != nil {
				return err
			}
			if err := node.start(); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return n.ready(ctx)
	}()
	if err != nil {
		return nil, errors.Join(err, n.Shutdown())
	}
	return n, nil
}

// prepare writes the configuration and a copy of the program: one that lies in the
// folder is one that the watcher knows by its command line.
func (n *natsNode) prepare(i int, program []byte, routes []string) error {
	if err := os.WriteFile(n.proc.path("nats-server"), program, 0o755); err != nil {
		return err
	}
	if err := n.proc.give(n.proc.path("nats-server")); err != nil {
		return err
	}
	text := fmt.Sprintf(`server_name: n%d
listen: "127.0.0.1:%d"
http: "127.0.0.1:%d"
pid_file: %q
max_payload: 8MB
jetstream { store_dir: %q, sync_interval: always }
`, i+1, n.client, n.monitor, n.proc.path("pid"), n.proc.path("data"))
	if len(routes) > 1 {
		text += fmt.Sprintf("cluster { name: test, listen: \"127.0.0.1:%d\", no_advertise: true, routes: [%s] }\n", n.peer, strings.Join(routes, ", "))
	}
	return n.proc.write("nats.conf", text)
}

func (n *natsNode) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", n.client) }

// start starts the process and waits until it takes clients.
func (n *natsNode) start() error {
	if err := n.proc.start(n.proc.path("nats-server"), "-c", n.proc.path("nats.conf")); err != nil {
		return err
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		c, err := natsgo.Connect(n.url(), natsgo.NoReconnect())
		if err == nil {
			c.Close()
			return nil
		}
		if !n.proc.running() {
			break
		}
	}
	return fmt.Errorf("servers: nats-server does not start:\n%s", n.proc.logTail())
}

// ready waits until a stream with a copy on every server can be made.
func (n *NATS) ready(ctx context.Context) error {
	nc, err := natsgo.Connect(n.URL())
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second) // a cluster without a leader does not answer
		_, err := js.CreateOrUpdateStream(try, jetstream.StreamConfig{Name: "ready", Replicas: len(n.nodes)})
		if err == nil {
			err = js.DeleteStream(try, "ready")
		}
		cancel()
		if err == nil {
			return n.Healthy(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("servers: JetStream does not take a stream: %w\n%s", err, n.nodes[0].proc.logTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// URL names all servers, as clients take it.
func (n *NATS) URL() string { return strings.Join(n.URLs(), ",") }

// URLs names each server.
func (n *NATS) URLs() (list []string) {
	for _, node := range n.nodes {
		list = append(list, node.url())
	}
	return list
}

// Pid is the process of a server; 0 while it does not run.
func (n *NATS) Pid(i int) int { return n.nodes[i].proc.pid() }

// Kill ends a server by SIGKILL and waits until it is gone.
func (n *NATS) Kill(i int) error { return n.nodes[i].proc.kill() }

// Start starts a server again, on its ports and its data, and returns when it
// takes clients.
func (n *NATS) Start(i int) error { return n.nodes[i].start() }

// Healthy waits until every server says that its JetStream has caught up.
func (n *NATS) Healthy(ctx context.Context) error {
	for _, node := range n.nodes {
		for {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/healthz", node.monitor), nil)
			if err != nil {
				return fmt.Errorf("servers: %w", err)
			}
			res, err := http.DefaultClient.Do(req)
			if err == nil {
				_ = res.Body.Close()
				if res.StatusCode == http.StatusOK {
					break
				}
				err = errors.New(res.Status)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("servers: nats-server is not healthy: %w\n%s", err, node.proc.logTail())
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

// Shutdown ends all servers and removes what they held.
func (n *NATS) Shutdown() error {
	var errs []error
	for _, node := range n.nodes {
		errs = append(errs, node.proc.close())
	}
	return errors.Join(errs...)
}

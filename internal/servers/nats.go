package servers

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// natsPatience is how long a node may take to come up, and a cluster to elect
// its first leader. An election alone takes up to 9 s.
const natsPatience = 60 * time.Second

// natsRoutes is how many connections two nodes hold: a pool of pool_size and one
// for the system's own traffic. JetStream elects over the latter alone, so that
// a cluster has a leader before its nodes can pass on what clients send.
const natsRoutes = natsPool + 1

const natsPool = 3

// errNATSEnded: the node ended at its start, mostly since another process took
// a port of it.
var errNATSEnded = errors.New("nats-server ended at its start")

// NATS is a server, or a cluster of servers, of NATS with JetStream, each a
// process of its own on the loopback. A publication is acknowledged after an
// fsync, so that what is acknowledged outlives a killed node. Clients are told
// of no other node: a proxy in front of each sees all there is. The name of node
// i, which is what JetStream calls a leader by, ends in -i.
type NATS struct {
	nodes []*natsNode
	end   func() error // once
}

// natsNode is one process. It keeps its name, ports and folder across restarts.
type natsNode struct {
	name                     string
	bin                      string
	client, cluster, monitor int // ports
	proc                     *process

	mu sync.Mutex // Kill and Start exclude each other
	up bool       // started, and not killed since; it may have ended by itself
}

// LaunchNATS starts 1, 3 or 5 nodes and returns when streams with a replica on
// each can be made. The first election of a cluster takes half a second, and
// seconds when it is undecided. The program is built from the module of this
// repository; that takes the go command.
func LaunchNATS(nodes int) (*NATS, error) {
	if !slices.Contains([]int{1, 3, 5}, nodes) {
		return nil, fmt.Errorf("servers: %d nodes of NATS have no use; take 1, 3 or 5", nodes)
	}
	home, err := natsHome()
	if err != nil {
		return nil, err
	}
	bin := home.path("nats-server")
	for range 5 { // another process may take a port between the look and the start
		var n *NATS
		if n, err = launchNATS(bin, nodes); !errors.Is(err, errNATSEnded) {
			return n, err
		}
	}
	return nil, err
}

// natsHome builds nats-server, once for this process, and holds it for as long as
// this process lives; its watcher removes it then.
var natsHome = sync.OnceValues(func() (*process, error) {
	home, err := newProcess("nats-server", "pid", "KILL")
	if err != nil {
		return nil, err
	}
	path := home.path("nats-server")
	cmd := exec.Command("go", "build", "-o", path, "github.com/nats-io/nats-server/v2")
	// A test may have left the module's folders; the source knows where they are,
	// unless the build trimmed its path.
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		if _, err := os.Stat(file); err == nil {
			cmd.Dir = filepath.Dir(file)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("servers: build nats-server: %w: %s", err, strings.TrimSpace(string(out))), home.close())
	}
	return home, nil
})

func launchNATS(bin string, nodes int) (*NATS, error) {
	n, err := prepareNATS(bin, nodes)
	// One after the other: nodes that dial each other at the same moment hang up on
	// each other as well, and try again a second later. And whoever greets has its
	// ports, so that no stranger is asked below.
	for _, node := range n.nodes {
		if err == nil {
			err = node.launch()
		}
		if err == nil {
			err = node.accepts()
		}
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), natsPatience)
		defer cancel()
		if err = n.Healthy(ctx); err == nil {
			err = n.poll(ctx, n.places)
		}
	}
	if err != nil {
		return nil, errors.Join(err, n.Shutdown())
	}
	return n, nil
}

// prepareNATS makes the folders and what is in them. After an error it returns
// the nodes that are to be shut down.
func prepareNATS(bin string, nodes int) (*NATS, error) {
	n := &NATS{}
	n.end = sync.OnceValue(n.shutdown)
	ports, err := freePorts(3 * nodes)
	if err != nil {
		return n, err
	}
	// A name that no other cluster of this machine has: nodes of two clusters
	// never join, and an answer of a stranger is known as one.
	cluster := "onewrite-" + randomName(4)
	var routes []string
	for i := range nodes {
		routes = append(routes, "nats://"+loopback(ports[3*i+1]))
	}
	for i := range nodes {
		proc, err := newProcess("nats", "pid", "KILL")
		if err != nil {
			return n, err
		}
		node := &natsNode{name: cluster + "-" + strconv.Itoa(i), bin: bin, proc: proc,
			client: ports[3*i], cluster: ports[3*i+1], monitor: ports[3*i+2]}
		n.nodes = append(n.nodes, node)
		if err := proc.write("nats.conf", node.config(cluster, routes)); err != nil {
			return n, fmt.Errorf("servers: %w", err)
		}
	}
	return n, nil
}

// freePorts returns so many different ones.
func freePorts(count int) ([]int, error) {
	var ports []int
	for len(ports) < count {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// config leaves out the cluster where there is but one node: it would wait for
// others. Routes that broke are tried again every second; the server has no
// setting for that, and connect_backoff, which would slow them down, is off.
func (n *natsNode) config(cluster string, routes []string) string {
	text := fmt.Sprintf(`server_name: %q
listen: %q
http: %q
max_payload: 8MB
jetstream {
	store_dir: %q
	sync_interval: always
}
`, n.name, loopback(n.client), loopback(n.monitor), n.proc.path("data"))
	if len(routes) == 1 {
		return text
	}
	others := slices.DeleteFunc(slices.Clone(routes), func(r string) bool { return r == "nats://"+loopback(n.cluster) })
	return text + fmt.Sprintf(`cluster {
	name: %q
	listen: %q
	no_advertise: true
	connect_backoff: false
	pool_size: %d
	routes: [%s]
}
`, cluster, loopback(n.cluster), natsPool, strings.Join(others, ", "))
}

// URL returns the URLs of all nodes, comma separated, as nats.go takes them.
func (n *NATS) URL() string { return strings.Join(n.URLs(), ",") }

// URLs returns the URL of each node.
func (n *NATS) URLs() []string {
	var urls []string
	for _, node := range n.nodes {
		urls = append(urls, "nats://"+loopback(node.client))
	}
	return urls
}

// Pid returns the process of node i, or 0 if it does not run.
func (n *NATS) Pid(i int) int { return n.nodes[i].proc.pid() }

// Kill ends node i as SIGKILL does and waits until it is gone. Its data stays.
func (n *NATS) Kill(i int) error {
	node := n.nodes[i]
	node.mu.Lock()
	defer node.mu.Unlock()
	node.up = false
	return node.kill()
}

// Start starts node i again, on its ports and its data, and returns when it
// accepts clients; [NATS.Healthy] says when it has caught up. A running node is
// left alone.
func (n *NATS) Start(i int) error {
	node := n.nodes[i]
	node.mu.Lock()
	defer node.mu.Unlock()
	if node.proc.running() {
		return nil
	}
	err := node.launch()
	if err == nil {
		err = node.accepts()
	}
	if err != nil {
		node.up = false
		return errors.Join(err, node.kill())
	}
	return nil
}

// Healthy waits until all nodes that run say that JetStream is ready, that is
// that it has a leader and the node's streams and consumers have caught up, and
// are connected with each other. A node that ended without [NATS.Kill] is an
// error.
func (n *NATS) Healthy(ctx context.Context) error { return n.poll(ctx, n.healthy) }

func (n *NATS) healthy(ctx context.Context) error {
	var up []*natsNode
	for _, node := range n.nodes {
		if expected, _ := node.state(); expected {
			up = append(up, node)
		}
	}
	if len(up) == 0 {
		return fmt.Errorf("servers: %w: no node of NATS runs", errNATSEnded)
	}
	for _, node := range up {
		var health struct{ Status string }
		if err := node.ask(ctx, "/healthz", &health); err != nil {
			return err
		}
		var routes struct {
			Count int `json:"num_routes"`
		}
		if err := node.ask(ctx, "/routez", &routes); err != nil {
			return err
		}
		want := natsRoutes * (len(up) - 1)
		if health.Status != "ok" || routes.Count != want {
			return fmt.Errorf("servers: nats-server %s is %q with %d connections to other nodes, want %d", node.name, health.Status, routes.Count, want)
		}
	}
	return nil
}

// Shutdown ends all nodes and removes their data. A second call does nothing.
func (n *NATS) Shutdown() error { return n.end() }

func (n *NATS) shutdown() error {
	var errs []error
	for i := range n.nodes { // all before the first folder goes, so that none sees another go
		errs = append(errs, n.Kill(i))
	}
	for _, node := range n.nodes {
		errs = append(errs, node.proc.close())
	}
	return errors.Join(errs...)
}

// poll asks until the answer is nil, a node has ended or ctx is done.
func (n *NATS) poll(ctx context.Context, question func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := question(ctx)
		if err == nil || errors.Is(err, errNATSEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// places makes a stream with a replica on each node and deletes it. No page of
// the monitoring port tells whether the leader would: it takes a node as one only
// after a report of it, and clusters of healthy nodes refused streams at first.
func (n *NATS) places(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // one answer may be lost
	defer cancel()
	conn, err := nats.Connect(n.URL(), nats.NoReconnect())
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	config := jetstream.StreamConfig{Name: "onewrite-launch", Replicas: len(n.nodes)}
	if _, err := js.CreateStream(ctx, config); err != nil {
		return fmt.Errorf("servers: make a stream with %d replicas: %w", config.Replicas, err)
	}
	if err := js.DeleteStream(ctx, config.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("servers: delete a stream: %w", err)
	}
	return nil
}

// state returns whether the node should run, and whether it does. It waits for
// a start or a kill under way: in between, the two differ.
func (n *natsNode) state() (expected, running bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.up, n.proc.running()
}

// launch starts the process and does not wait for it.
func (n *natsNode) launch() error {
	if err := n.proc.start(n.bin, "-c", n.proc.path("nats.conf")); err != nil {
		return err
	}
	n.up = true
	// The server writes such a file too, but later: should this process be killed
	// before that, the watcher would not know whom to stop.
	return n.proc.write("pid", strconv.Itoa(n.proc.pid())+"\n")
}

// accepts waits until the node greets clients.
func (n *natsNode) accepts() error {
	var err error
	for deadline := time.Now().Add(natsPatience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = n.greets(); err == nil {
			return nil
		}
		if !n.proc.running() {
			return n.ended()
		}
	}
	return fmt.Errorf("servers: nats-server %s does not answer: %w\n%s", n.name, err, n.proc.logTail())
}

// greets connects as a client does. The greeting has the name of the server.
func (n *natsNode) greets() error {
	conn, err := net.DialTimeout("tcp", loopback(n.client), time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "INFO ") || !strings.Contains(line, strconv.Quote(n.name)) {
		return fmt.Errorf("servers: a stranger answers on %s: %q", loopback(n.client), line)
	}
	return nil
}

// natsMonitor keeps no connection: an idle one is a goroutine, and tests count
// them.
var natsMonitor = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}

// ask fills answer from a page of the monitoring port.
func (n *natsNode) ask(ctx context.Context, page string, answer any) error {
	switch expected, running := n.state(); {
	case !expected:
		return fmt.Errorf("servers: nats-server %s was killed", n.name)
	case !running:
		return n.ended()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+loopback(n.monitor)+page, nil)
	if err != nil {
		return err
	}
	resp, err := natsMonitor.Do(req)
	if err != nil {
		return fmt.Errorf("servers: nats-server %s: %w\n%s", n.name, err, n.proc.logTail())
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err == nil {
		err = json.Unmarshal(body, answer)
	}
	if err != nil {
		return fmt.Errorf("servers: nats-server %s: %s: %w: %s\n%s", n.name, page, err, body, n.proc.logTail())
	}
	return nil
}

func (n *natsNode) ended() error {
	return fmt.Errorf("servers: %s: %w:\n%s", n.name, errNATSEnded, n.proc.logTail())
}

// kill ends the process at once and waits until it is gone. One that is gone
// already is as good.
func (n *natsNode) kill() error {
	if err := n.proc.kill(); err != nil && n.proc.running() {
		return err
	}
	return nil
}

package servers_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite/internal/servers"
)

func launchNATS(t *testing.T, nodes int) *servers.NATS {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("servers are watched by a POSIX shell, and there is none here")
	}
	start := time.Now()
	n, err := servers.LaunchNATS(nodes)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("nodes: %d, ready after %v", nodes, time.Since(start).Round(time.Millisecond))
	t.Cleanup(func() {
		if err := n.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func natsStream(t *testing.T, url string, replicas int) (jetstream.JetStream, jetstream.Stream) {
	t.Helper()
	conn, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: replicas})
	if err != nil {
		t.Fatal(err)
	}
	return js, stream
}

func healthy(t *testing.T, n *servers.NATS) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.Healthy(ctx); err != nil {
		t.Fatal(err)
	}
}

// restart kills a node, looks that it is gone, calls meanwhile, and starts it.
func restart(t *testing.T, n *servers.NATS, i int, meanwhile func()) {
	t.Helper()
	before := n.Pid(i)
	if err := n.Kill(i); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("ps", "-p", strconv.Itoa(before)).Run(); err == nil || n.Pid(i) != 0 {
		t.Fatalf("node %d runs after its kill: pid %d", i, n.Pid(i))
	}
	meanwhile()
	if err := n.Start(i); err != nil {
		t.Fatal(err)
	}
	if after := n.Pid(i); after == 0 || after == before {
		t.Fatalf("node %d has pid %d after a restart, %d before", i, after, before)
	}
}

func TestNATSKeepsItsData(t *testing.T) {
	before := runtime.NumGoroutine()
	n := launchNATS(t, 1)
	// The monitor's last connection may still be closing.
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines after a launch, %d before", runtime.NumGoroutine(), before)
		}
	}
	js, stream := natsStream(t, n.URL(), 1)
	body := make([]byte, 7<<20) // more than the default allows
	if _, err := js.Publish(t.Context(), "s", body); err != nil {
		t.Fatal(err)
	}
	restart(t, n, 0, func() {
		if err := n.Healthy(t.Context()); err == nil {
			t.Error("no node runs, and all are healthy")
		}
	})
	healthy(t, n)
	msg, err := stream.GetMsg(t.Context(), 1)
	for deadline := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		msg, err = stream.GetMsg(t.Context(), 1) // the client may not have noticed yet
	}
	if err != nil || len(msg.Data) != len(body) {
		t.Fatalf("the message is gone after a kill: %v", err)
	}
}

// A node that ends without Kill is found, with what it said last.
func TestNATSTellsOfANodeThatEnded(t *testing.T) {
	n := launchNATS(t, 1)
	p, err := os.FindProcess(n.Pid(0))
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for err == nil { // it may answer once more
		err = n.Healthy(ctx)
	}
	if ctx.Err() != nil || !strings.Contains(err.Error(), "Server is ready") {
		t.Errorf("the node ended: %v", err)
	}
}

// publisher publishes numbers, one after the other, each until it is
// acknowledged.
type publisher struct {
	stop context.CancelFunc
	done chan struct{}

	mu    sync.Mutex
	acked int // the numbers below are
}

func publishOn(t *testing.T, js jetstream.JetStream) *publisher {
	ctx, cancel := context.WithCancel(t.Context())
	p := &publisher{stop: cancel, done: make(chan struct{})}
	t.Cleanup(func() { p.end() })
	go func() {
		defer close(p.done)
		for i := 0; ctx.Err() == nil; {
			once, cancel := context.WithTimeout(ctx, time.Second)
			_, err := js.Publish(once, "s", []byte(strconv.Itoa(i)), jetstream.WithMsgID(strconv.Itoa(i)))
			cancel()
			if err != nil {
				continue // jetstream pauses by itself while nobody responds
			}
			i++
			p.mu.Lock()
			p.acked = i
			p.mu.Unlock()
		}
	}()
	return p
}

func (p *publisher) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.acked
}

// more waits for so many further acknowledgements.
func (p *publisher) more(t *testing.T, n int) {
	t.Helper()
	want := p.count() + n
	for deadline := time.Now().Add(time.Minute); p.count() < want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d acknowledgements within a minute, want %d", p.count()-want+n, n)
		}
	}
}

// end stops publishing and returns how many numbers were acknowledged.
func (p *publisher) end() int {
	p.stop()
	<-p.done
	return p.count()
}

// TestNATSLosesNoAcknowledgement kills the leader of the stream last, so that
// the stream waits for one election: each takes up to 9 s.
func TestNATSLosesNoAcknowledgement(t *testing.T) {
	t.Parallel()
	n := launchNATS(t, 3)
	js, stream := natsStream(t, n.URL(), 3)
	for _, url := range n.URLs() { // a client that knew all would not say what it is told
		conn, err := nats.Connect(url)
		if err != nil {
			t.Fatal(err)
		}
		if found := conn.DiscoveredServers(); len(found) != 0 {
			t.Errorf("clients are told of %v, which leads around a proxy", found)
		}
		conn.Close()
	}
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name := info.Cluster.Leader
	leader, err := strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:])
	if err != nil {
		t.Fatal(err)
	}
	p := publishOn(t, js)
	for _, i := range []int{(leader + 1) % 3, (leader + 2) % 3, leader} {
		p.more(t, 20)
		start := time.Now()
		restart(t, n, i, func() { p.more(t, 20) })
		acked := time.Since(start)
		healthy(t, n)
		t.Logf("node %d of leader %s: acknowledgements go on after %v, healthy after %v", i, name,
			acked.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	}
	acked := p.end()
	lost := make(map[string]bool)
	for i := range acked {
		lost[strconv.Itoa(i)] = true
	}
	consumer, err := stream.OrderedConsumer(t.Context(), jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(lost) > 0 {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			t.Fatalf("%d of %d acknowledged messages are lost: %v", len(lost), acked, err)
		}
		delete(lost, string(msg.Data()))
	}
	t.Logf("%d messages were acknowledged", acked)
}

// natsFolder returns where a node lives: the place of its configuration.
func natsFolder(t *testing.T, n *servers.NATS, i int) string {
	t.Helper()
	out, err := exec.Command("ps", "-o", "args=", "-p", strconv.Itoa(n.Pid(i))).Output()
	args := strings.Fields(string(out))
	if err != nil || len(args) == 0 || filepath.Base(args[len(args)-1]) != "nats.conf" {
		t.Fatalf("node %d runs as %q: %v", i, out, err)
	}
	return filepath.Dir(args[len(args)-1])
}

func TestNATSLeavesNothing(t *testing.T) {
	t.Parallel()
	n := launchNATS(t, 3)
	var dirs []string
	for i := range n.URLs() {
		dirs = append(dirs, natsFolder(t, n, i))
	}
	if err := n.Kill(1); err != nil { // its folder must go too
		t.Fatal(err)
	}
	if err := errors.Join(n.Shutdown(), n.Shutdown()); err != nil {
		t.Fatal(err)
	}
	for i, dir := range dirs {
		if n.Pid(i) != 0 || len(processesWith(t, dir)) != 0 {
			t.Errorf("node %d still runs", i)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the folder of node %d is still there: %v", i, err)
		}
	}
	if err := n.Start(0); err == nil {
		t.Error("a node starts after the shutdown")
	}
	if _, err := servers.LaunchNATS(2); err == nil {
		t.Error("two nodes, which can lose none, are started")
	}
}

// A cluster must end with its test process even when that is killed, and so must
// the program that the process built.
func TestNATSDoesNotSurviveAKill(t *testing.T) {
	if os.Getenv("ONEWRITE_TEST_VICTIM") == "1" {
		n := launchNATS(t, 3)
		if err := errors.Join(n.Kill(0), n.Start(0)); err != nil { // a new pid is followed too
			t.Fatal(err)
		}
		fmt.Println("\nready")
		<-t.Context().Done() // until killed
		return
	}
	t.Parallel()
	temp := openTempDir(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestNATSDoesNotSurviveAKill$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "ONEWRITE_TEST_VICTIM=1", "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := false
	for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
		ready = lines.Text() == "ready"
	}
	entries, _ := os.ReadDir(temp)
	if running := processesWith(t, filepath.Join(temp, "onewrite-nats-server-")); !ready || len(entries) != 4 || len(running) < 3 {
		t.Errorf("ready: %t, folders: %v, processes: %q", ready, entries, running)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		entries, err := os.ReadDir(temp)
		if err == nil && len(entries) == 0 && len(processesWith(t, temp)) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: folders %v, processes %q", entries, processesWith(t, temp))
		}
	}
}

package servers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// rabbitPatience is how long a broker may take to come up, on a machine with other
// things to do.
const rabbitPatience = 120 * time.Second

// rabbitScripts is where packages put the programs themselves: those in /usr/sbin
// change the user.
const rabbitScripts = "/usr/lib/rabbitmq/bin"

// Rabbit is a RabbitMQ broker of one node, with an epmd of its own. Its user may do
// everything on the virtual host /, and has a password made at run time. It listens
// in clear and with TLS, by a certificate for 127.0.0.1 of an authority of its own.
type Rabbit struct {
	proc, epmd              *process
	node, user, password    string
	port, tls, dist, mapper int

	mu sync.Mutex // Kill and Start exclude each other
}

var sharedRabbit struct {
	sync.Mutex
	server *Rabbit
	err    error
}

// RabbitMQ returns the test process's own broker, started by the first call; it is
// there until the process ends. Tests that kill it, or change what it may use, take
// [NewRabbitMQ]. A broker that is not installed ends the test.
func RabbitMQ(tb testing.TB) *Rabbit {
	tb.Helper()
	sharedRabbit.Lock()
	defer sharedRabbit.Unlock()
	if sharedRabbit.server == nil && sharedRabbit.err == nil {
		sharedRabbit.server, sharedRabbit.err = LaunchRabbitMQ()
	}
	if err := sharedRabbit.err; errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	} else if err != nil {
		tb.Fatal(err)
	}
	return sharedRabbit.server
}

// NewRabbitMQ starts a broker for this test alone and ends it with the test.
func NewRabbitMQ(tb testing.TB) *Rabbit {
	tb.Helper()
	r, err := LaunchRabbitMQ()
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.Shutdown(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

// LaunchRabbitMQ starts a broker; Shutdown ends it. The error says how to get one
// that is not there.
func LaunchRabbitMQ() (*Rabbit, error) {
	if !isProgram(filepath.Join(rabbitScripts, "rabbitmq-server")) {
		return nil, fmt.Errorf("RabbitMQ is %w: %s", errMissing, installHint)
	}
	epmd, err := exec.LookPath("epmd")
	if err != nil {
		return nil, fmt.Errorf("epmd, which RabbitMQ needs, is %w: %s", errMissing, installHint)
	}
	for range 3 { // another process may take a port between the look and the start
		var r *Rabbit
		if r, err = launchRabbit(epmd); err == nil {
			return r, nil
		}
	}
	return nil, err
}

func launchRabbit(epmd string) (*Rabbit, error) {
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	r := &Rabbit{port: ports[0], tls: ports[1], dist: ports[2], mapper: ports[3],
		node: "onewrite-" + randomName(4) + "@localhost", user: "onewrite", password: randomName(16)}
	if r.epmd, err = newProcess("epmd", "pid", "KILL"); err != nil {
		return nil, err
	}
	if r.proc, err = newProcess("rabbitmq", "pid", "KILL"); err != nil {
		return nil, errors.Join(err, r.epmd.close())
	}
	if err = r.launchEPMD(epmd); err == nil {
		err = r.prepare()
	}
	if err == nil {
		err = r.Start()
	}
	if err != nil {
		return nil, errors.Join(err, r.Shutdown())
	}
	return r, nil
}

// launchEPMD starts the mapper of node names. The broker would start one that
// outlives it. Its name has the folder in it, by which the watcher knows it.
func (r *Rabbit) launchEPMD(program string) error {
	bin := r.epmd.path("epmd")
	if err := os.Symlink(program, bin); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	if err := r.epmd.start(bin, "-port", strconv.Itoa(r.mapper), "-address", "127.0.0.1"); err != nil {
		return err
	}
	if err := r.epmd.write("pid", strconv.Itoa(r.epmd.pid())+"\n"); err != nil {
		return err
	}
	return r.answers(r.epmd, r.mapper, "epmd")
}

// answers waits until a port takes connections.
func (r *Rabbit) answers(p *process, port int, name string) error {
	for deadline := time.Now().Add(rabbitPatience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", loopback(port), time.Second)
		if err == nil {
			return conn.Close()
		}
		if !p.running() {
			return fmt.Errorf("servers: %s ended at its start:\n%s", name, p.logTail())
		}
	}
	return fmt.Errorf("servers: %s does not answer:\n%s", name, p.logTail())
}

// prepare writes what the broker reads. The user is made at the first start.
func (r *Rabbit) prepare() error {
	r.proc.env = []string{
		"RABBITMQ_NODENAME=" + r.node,
		"RABBITMQ_CONFIG_FILE=" + r.proc.path("rabbitmq"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + r.proc.path("none.config"),
		"RABBITMQ_CONF_ENV_FILE=" + r.proc.path("none.conf"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + r.proc.path("plugins"),
		"RABBITMQ_MNESIA_BASE=" + r.proc.path("data"),
		"RABBITMQ_LOG_BASE=" + r.proc.path("logs"),
		"RABBITMQ_PID_FILE=" + r.proc.path("own.pid"),
		"RABBITMQ_DIST_PORT=" + strconv.Itoa(r.dist),
		"ERL_EPMD_PORT=" + strconv.Itoa(r.mapper),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RUNNING_UNDER_SYSTEMD=true", // the script becomes the broker: our child is who is killed
		// No waiting by spinning, and the folder among the words of the command line.
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -onewrite " + r.proc.dir,
	}
	err := r.proc.write("plugins", "[].\n")
	if err == nil {
		err = r.certify()
	}
	if err == nil {
		err = r.proc.write("rabbitmq.conf", fmt.Sprintf(`listeners.tcp.1 = %s
listeners.ssl.1 = %s
ssl_options.cacertfile = %s
ssl_options.certfile = %s
ssl_options.keyfile = %s
ssl_options.verify = verify_none
default_user = %s
default_pass = %s
loopback_users = none
max_message_size = 16777216
disk_free_limit.absolute = 50MB
log.console = true
log.file = false
`, loopback(r.port), loopback(r.tls), r.CA(), r.proc.path("cert.pem"), r.proc.path("key.pem"), r.user, r.password))
	}
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	return nil
}

// certify makes an authority, and a certificate of it for 127.0.0.1.
func (r *Rabbit) certify() error {
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true}
	}
	ca, leaf := template("onewrite tests", 1), template("rabbitmq", 2)
	ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		r.proc.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}))),
		r.proc.write("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		r.proc.write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))))
}

// Start starts the broker again, on its ports and its data, and returns when it
// takes clients. A running one is left alone.
func (r *Rabbit) Start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proc.running() {
		return nil
	}
	from := r.logged("")
	if err := r.proc.start(filepath.Join(rabbitScripts, "rabbitmq-server")); err != nil {
		return err
	}
	// The broker writes such a file too, but later: should this process be killed
	// before that, the watcher would not know whom to stop.
	if err := r.proc.write("pid", strconv.Itoa(r.proc.pid())+"\n"); err != nil {
		return err
	}
	for deadline := time.Now().Add(rabbitPatience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if r.logged("Server startup complete") > from {
			return r.answers(r.proc, r.port, "RabbitMQ")
		}
		if !r.proc.running() {
			return fmt.Errorf("servers: RabbitMQ ended at its start:\n%s", r.proc.logTail())
		}
	}
	return fmt.Errorf("servers: RabbitMQ does not start:\n%s", r.proc.logTail())
}

// logged returns where in the log text stands last; -1: nowhere. The end of the log
// for no text.
func (r *Rabbit) logged(text string) int {
	b, _ := os.ReadFile(r.proc.path("log")) // not there before the first start
	return strings.LastIndex(string(b), text)
}

// Kill ends the broker as SIGKILL does and waits until it is gone. Its data stays.
func (r *Rabbit) Kill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.proc.kill()
}

// Pause freezes the broker: connections stay open and nothing answers.
func (r *Rabbit) Pause() error { return r.proc.freeze() }

// Resume lets a paused broker go on.
func (r *Rabbit) Resume() { r.proc.thaw() }

// Shutdown ends broker and mapper and removes their data.
func (r *Rabbit) Shutdown() error {
	return errors.Join(r.proc.close(), r.epmd.close())
}

// Control runs rabbitmqctl, which takes a second or two, and returns what it prints.
func (r *Rabbit) Control(ctx context.Context, args ...string) (string, error) {
	cmd := r.proc.command(filepath.Join(rabbitScripts, "rabbitmqctl"), append([]string{"-q", "-n", r.node}, args...)...)
	out, err := outputOf(ctx, cmd)
	if err != nil {
		return "", fmt.Errorf("servers: rabbitmqctl %s: %w", args[0], err)
	}
	return out, nil
}

// Sync writes down what the broker was told of exchanges, queues and bindings. One
// that is killed within seconds of that has forgotten a part after its restart
// (RabbitMQ 3.10): bindings are gone, or a quorum queue elects no leader, so that
// nothing published to it is confirmed.
func (r *Rabbit) Sync(ctx context.Context) error {
	_, err := r.Control(ctx, "eval", "mnesia:sync_log(), mnesia:dump_log(), [dets:sync(T) || T <- dets:all()].")
	return err
}

// outputOf runs a command that ends with ctx.
func outputOf(ctx context.Context, cmd *exec.Cmd) (string, error) {
	stop := context.AfterFunc(ctx, func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill() // gone is as good
		}
	})
	defer stop()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// URL returns the user's URL of the virtual host /.
func (r *Rabbit) URL() string { return r.UserURL(r.user, r.password) }

// UserURL returns the URL of another user.
func (r *Rabbit) UserURL(user, password string) string {
	u := url.URL{Scheme: "amqp", User: url.UserPassword(user, password), Host: loopback(r.port), Path: "/"}
	return u.String()
}

// TLSURL returns the user's URL of the port that speaks TLS.
func (r *Rabbit) TLSURL() string {
	u := url.URL{Scheme: "amqps", User: url.UserPassword(r.user, r.password), Host: loopback(r.tls), Path: "/"}
	return u.String()
}

// CA returns the path of the certificate of the authority.
func (r *Rabbit) CA() string { return r.proc.path("ca.pem") }

// User returns the user's name and password.
func (r *Rabbit) User() (name, password string) { return r.user, r.password }

// Addr returns host:port of the broker, for proxies in between.
func (r *Rabbit) Addr() string { return loopback(r.port) }

package servers

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// kafkaPatience is how long a broker may take to come up; after a kill it has to
// wait for its own old session first.
const kafkaPatience = 90 * time.Second

// KafkaServer is an Apache Kafka of one node, broker and controller in one, each
// topic with one copy. Topics are not made by themselves; a new one has 3
// partitions. Whoever comes without a name may do everything.
type KafkaServer struct {
	java, libs string
	proc       *process
	ports      [5]int // plain, controller, SASL, TLS, SASL and TLS
	alone      bool   // made by NewKafka: one test may do to it what it likes

	// CA is a PEM file with the authority of the TLS listeners; a client that shows
	// ClientCert and ClientKey is known as User:CN=client there.
	CA, ClientCert, ClientKey string
	// User may do everything, Limited nothing that is not allowed to it. They log in
	// by PLAIN and SCRAM with Password; by OAUTHBEARER with an unsigned token.
	User, Limited, Password string
}

var sharedKafka struct {
	sync.Mutex
	k   *KafkaServer
	err error
}

// Kafka returns the test process's own broker, started by the first call. Tests that
// kill or freeze one take [NewKafka]. Missing jars or a missing Java end the test as
// a missing server does.
func Kafka(tb testing.TB) *KafkaServer {
	tb.Helper()
	sharedKafka.Lock()
	defer sharedKafka.Unlock()
	if sharedKafka.k == nil && sharedKafka.err == nil {
		sharedKafka.k, sharedKafka.err = launchKafka()
	}
	if errors.Is(sharedKafka.err, errMissing) {
		missing(tb, "%v", sharedKafka.err)
	} else if sharedKafka.err != nil {
		tb.Fatal(sharedKafka.err)
	}
	return sharedKafka.k
}

// NewKafka starts a broker for this test alone.
func NewKafka(tb testing.TB) *KafkaServer {
	tb.Helper()
	k, err := launchKafka()
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	} else if err != nil {
		tb.Fatal(err)
	}
	k.alone = true
	tb.Cleanup(func() {
		if err := k.proc.close(); err != nil {
			tb.Error(err)
		}
	})
	return k
}

// kafkaJar is the file that scripts/install-servers.sh looks for as well.
const kafkaJar = "kafka_2.13-4.4.0.jar"

// kafkaLibs is where the jars are.
func kafkaLibs() string { return filepath.Join(cacheDir(), "kafka") }

func launchKafka() (*KafkaServer, error) {
	libs := kafkaLibs()
	if !isProgram(filepath.Join(libs, kafkaJar)) {
		return nil, fmt.Errorf("the jars of Apache Kafka are %w: %s", errMissing, installHint)
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, fmt.Errorf("java, for Apache Kafka, is %w: %s", errMissing, installHint)
	}
	var k *KafkaServer
	for range 5 { // another process may take a port between the look and the start
		k = &KafkaServer{java: java, libs: libs, User: "admin", Limited: "limited", Password: randomName(12)}
		if k.proc, err = newProcess("kafka", "pid", "KILL"); err != nil {
			return nil, err
		}
		if err = k.prepare(); err == nil {
			if err = k.launch(); err == nil {
				return k, nil
			}
		}
		err = errors.Join(err, k.proc.close())
	}
	return nil, err
}

// prepare writes the configuration and formats the folder.
func (k *KafkaServer) prepare() error {
	ports, err := freePorts(len(k.ports))
	if err != nil {
		return err
	}
	copy(k.ports[:], ports)
	pem, err := k.certificates()
	if err != nil {
		return err
	}
	if err := k.proc.write("server.properties", k.config(pem)); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	if err := k.proc.write("log4j2.properties", kafkaLog); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	var id [16]byte
	rand.Read(id[:]) // never fails, by its contract
	args := append(k.flags("-Xmx128m"), "kafka.tools.StorageTool", "format", "--standalone",
		"-t", base64.RawURLEncoding.EncodeToString(id[:]), "-c", k.proc.path("server.properties"))
	for _, user := range []string{k.User, k.Limited} {
		for _, m := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
			args = append(args, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", m, user, k.Password))
		}
	}
	return k.proc.run(k.java, args...)
}

const kafkaLog = `status = error
appender.console.type = Console
appender.console.name = STDOUT
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = WARN
rootLogger.appenderRef.stdout.ref = STDOUT
`

func (k *KafkaServer) flags(memory string) []string {
	return []string{memory, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
		"-Dlog4j2.configurationFile=" + k.proc.path("log4j2.properties"), "-Dkafka.logs.dir=" + k.proc.path("logs"),
		"-cp", filepath.Join(k.libs, "*")}
}

// config keeps the session of a broker short: who is killed waits for the end of its
// old one when it starts again.
func (k *KafkaServer) config(pem string) string {
	jaas := fmt.Sprintf("org.apache.kafka.common.security.plain.PlainLoginModule required username=%q password=%q user_%s=%q user_%s=%q;",
		k.User, k.Password, k.User, k.Password, k.Limited, k.Password)
	const scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
	const bearer = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"admin\";"
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	listeners := fmt.Sprintf("PLAINTEXT://%s,SASL_PLAINTEXT://%s,SSL://%s,SASL_SSL://%s",
		loopback(k.ports[0]), loopback(k.ports[2]), loopback(k.ports[3]), loopback(k.ports[4]))
	line("process.roles=broker,controller\nnode.id=1")
	line("listeners=%s,CONTROLLER://%s\nadvertised.listeners=%s", listeners, loopback(k.ports[1]), listeners)
	line("controller.listener.names=CONTROLLER\ncontroller.quorum.bootstrap.servers=%s", loopback(k.ports[1]))
	line("listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL")
	line("inter.broker.listener.name=PLAINTEXT\nlog.dirs=%s", k.proc.path("data"))
	line("sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER")
	for _, l := range []string{"sasl_plaintext", "sasl_ssl"} {
		line("listener.name.%s.plain.sasl.jaas.config=%s", l, jaas)
		line("listener.name.%s.scram-sha-256.sasl.jaas.config=%s", l, scram)
		line("listener.name.%s.scram-sha-512.sasl.jaas.config=%s", l, scram)
		line("listener.name.%s.oauthbearer.sasl.jaas.config=%s", l, bearer)
	}
	b.WriteString(pem)
	line("ssl.client.auth=requested")
	line("authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer")
	line("super.users=User:ANONYMOUS;User:%s;User:CN=client", k.User)
	line("num.partitions=3\nauto.create.topics.enable=false")
	line("offsets.topic.replication.factor=1\noffsets.topic.num.partitions=4")
	line("transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\ntransaction.state.log.num.partitions=4")
	line("share.coordinator.state.topic.replication.factor=1\nshare.coordinator.state.topic.min.isr=1\nshare.coordinator.state.topic.num.partitions=4")
	line("broker.session.timeout.ms=2000\nbroker.heartbeat.interval.ms=500\ngroup.initial.rebalance.delay.ms=0")
	line("transaction.abort.timed.out.transaction.cleanup.interval.ms=500")
	line("num.network.threads=2\nnum.io.threads=4\nlog.cleaner.dedupe.buffer.size=16777216")
	return b.String()
}

// Addr returns host:port of the listener without login and encryption.
func (k *KafkaServer) Addr() string { return loopback(k.ports[0]) }

// SASL returns host:port of the listener with login.
func (k *KafkaServer) SASL() string { return loopback(k.ports[2]) }

// TLS returns host:port of the listener with encryption.
func (k *KafkaServer) TLS() string { return loopback(k.ports[3]) }

// SASLTLS returns host:port of the listener with both.
func (k *KafkaServer) SASLTLS() string { return loopback(k.ports[4]) }

// Pid returns the broker's process, or 0 if it does not run.
func (k *KafkaServer) Pid() int { return k.proc.pid() }

// Bearer returns an unsigned token of a user, as the broker takes for OAUTHBEARER.
func (k *KafkaServer) Bearer(user string) string {
	part := base64.RawURLEncoding.EncodeToString
	now := time.Now()
	return part([]byte(`{"alg":"none"}`)) + "." +
		part(fmt.Appendf(nil, `{"sub":%q,"iat":%d,"exp":%d}`, user, now.Unix()-5, now.Add(time.Hour).Unix())) + "."
}

// launch starts the broker and waits until it takes transactions.
func (k *KafkaServer) launch() error {
	if err := k.proc.start(k.java, append(k.flags("-Xmx384m"), "kafka.Kafka", k.proc.path("server.properties"))...); err != nil {
		return err
	}
	// The broker writes no such file; the watcher needs it.
	if err := k.proc.write("pid", fmt.Sprintln(k.proc.pid())); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	var err error
	for deadline := time.Now().Add(kafkaPatience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if !k.proc.running() {
			return fmt.Errorf("servers: kafka ended at its start:\n%s", k.proc.logTail())
		}
		if err = k.answers(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("servers: kafka does not answer: %w\n%s", err, k.proc.logTail())
}

// answers asks for what works last: a producer id of a transaction.
func (k *KafkaServer) answers() error {
	conn, err := net.DialTimeout("tcp", k.Addr(), time.Second)
	if err != nil {
		return err
	}
	_ = conn.Close()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.RetryTimeout(2*time.Second), kgo.DisableClientMetrics())
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = kmsg.StringPtr("onewrite-launch")
	req.TransactionTimeoutMillis = 1000
	req.ProducerID, req.ProducerEpoch = -1, -1
	resp, err := req.RequestWith(ctx, cl)
	if err == nil && resp.ErrorCode != 0 {
		err = fmt.Errorf("servers: kafka: error %d", resp.ErrorCode)
	}
	return err
}

// own ends a test that would take the broker from others.
func (k *KafkaServer) own(tb testing.TB) {
	tb.Helper()
	if !k.alone {
		tb.Fatal("servers: other tests use this Kafka too; take NewKafka")
	}
}

// Kill ends the broker as SIGKILL does. Its data stays.
func (k *KafkaServer) Kill(tb testing.TB) {
	tb.Helper()
	k.own(tb)
	if err := k.proc.kill(); err != nil {
		tb.Fatal(err)
	}
}

// Restart starts a killed broker again, on its ports and its data, and returns when
// it takes transactions.
func (k *KafkaServer) Restart(tb testing.TB) {
	tb.Helper()
	k.own(tb)
	if err := k.launch(); err != nil {
		tb.Fatal(err)
	}
}

// Freeze stops the broker as SIGSTOP does, until the returned function is called:
// connections stay open and nothing answers.
func (k *KafkaServer) Freeze(tb testing.TB) (thaw func()) {
	tb.Helper()
	k.own(tb)
	if err := k.proc.freeze(); err != nil {
		tb.Fatal(err)
	}
	return k.proc.thaw
}

// ConfluentKafka returns Python with confluent-kafka, whose client is librdkafka. What
// is not installed ends the test as a missing server does.
func ConfluentKafka(tb testing.TB) Runtime {
	tb.Helper()
	return cachedModule(tb, "confluent-kafka", "confluent_kafka")
}

// ConfluentSchemas is [ConfluentKafka] with Confluent's own deserializers of Avro, JSON
// Schema and Protobuf, the libraries that they use, and protoc.
func ConfluentSchemas(tb testing.TB) Runtime {
	tb.Helper()
	return cachedModule(tb, "confluent-schemas", "confluent_kafka.schema_registry.avro, confluent_kafka.schema_registry.json_schema, confluent_kafka.schema_registry.protobuf, grpc_tools.protoc")
}

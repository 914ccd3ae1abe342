package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// What Debezium is told beyond its defaults: what made it fastest in a backlog,
// and soonest at a live load.
var (
	tunedBacklog = map[string]string{"max.batch.size": "16384", "max.queue.size": "65536", "poll.interval.ms": "10", "producer.override.batch.size": "524288"}
	tunedLive    = map[string]string{"max.batch.size": "16384", "max.queue.size": "65536", "poll.interval.ms": "5", "producer.override.linger.ms": "0"}
)

// debezium is Kafka and Connect with Debezium's connector, in processes of their
// own, on the database of a logProgram.
type debezium struct {
	*logProgram
	dir             string // what scripts/install-debezium.sh made
	kafka, rest     string // addresses
	broker, connect *exec.Cmd
	connectors      int
}

// newDebezium starts Kafka and Connect as they come, with 2 GB for Connect.
func newDebezium(p *logProgram, dir string) *debezium {
	p.b.Helper()
	d := &debezium{logProgram: p, dir: dir, kafka: freeAddr(p.b), rest: freeAddr(p.b)}
	data, controller := p.b.TempDir(), freeAddr(p.b)
	server := d.properties(data, "server.properties", map[string]string{
		"process.roles": "broker,controller", "node.id": "1", "controller.quorum.voters": "1@" + controller,
		"listeners": "PLAINTEXT://" + d.kafka + ",CONTROLLER://" + controller, "advertised.listeners": "PLAINTEXT://" + d.kafka,
		"listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT", "controller.listener.names": "CONTROLLER",
		"log.dirs": filepath.Join(data, "kafka"), "offsets.topic.replication.factor": "1", "transaction.state.log.replication.factor": "1", "transaction.state.log.min.isr": "1",
	})
	if out, err := d.java(p.b.Context(), "-Xmx256m", "kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qk", "-c", server).CombinedOutput(); err != nil {
		p.b.Fatalf("%v\n%s", err, out)
	}
	d.broker = d.started("-Xms1g", "-Xmx1g", "kafka.Kafka", server)
	await(p.b, time.Minute, "Kafka listens", func() bool {
		c, err := net.Dial("tcp", d.kafka)
		return err == nil && c.Close() == nil
	})
	const converter = "org.apache.kafka.connect.json.JsonConverter"
	worker := d.properties(data, "connect.properties", map[string]string{
		"bootstrap.servers": d.kafka, "listeners": "http://" + d.rest, "plugin.path": filepath.Join(dir, "plugins"),
		"offset.storage.file.filename": filepath.Join(data, "offsets"), "connector.client.config.override.policy": "All",
		"key.converter": converter, "key.converter.schemas.enable": "false", "value.converter": converter, "value.converter.schemas.enable": "false",
	})
	d.connect = d.started("-Xmx2g", "org.apache.kafka.connect.cli.ConnectStandalone", worker)
	await(p.b, 2*time.Minute, "Connect answers", func() bool { return d.ask(http.MethodGet, "/connectors", nil) == nil })
	return d
}

func freeAddr(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func (d *debezium) properties(dir, name string, values map[string]string) (path string) {
	d.b.Helper()
	var text strings.Builder
	for k, v := range values {
		fmt.Fprintf(&text, "%s=%s\n", k, v)
	}
	path = filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		d.b.Fatal(err)
	}
	return path
}

func (d *debezium) java(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "java", append([]string{"-cp", filepath.Join(d.dir, "lib", "*")}, args...)...)
}

// started starts a Java program that ends with the benchmark.
func (d *debezium) started(args ...string) *exec.Cmd {
	d.b.Helper()
	cmd := d.java(context.Background(), args...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		d.b.Fatal(err)
	}
	d.b.Cleanup(func() {
		end(cmd, os.Kill)
		if d.b.Failed() {
			d.b.Log(log.String())
		}
	})
	return cmd
}

// ask sends a request to Connect.
func (d *debezium) ask(method, path string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(d.b.Context(), method, "http://"+d.rest+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode >= 300 {
		text, _ := io.ReadAll(answer.Body)
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	}
	return nil
}

// connector is one connector with a slot and a topic of its own.
type connector struct {
	*debezium
	name  string
	extra map[string]string
}

// slot makes the slot of a connector to come: it reads what is written from now on.
func (d *debezium) slot(extra map[string]string) connector {
	d.b.Helper()
	d.connectors++
	c := connector{debezium: d, name: "peer" + strconv.Itoa(d.connectors), extra: extra}
	d.exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, c.name)
	return c
}

func (c connector) topic() string { return c.name + ".public.orders" }

// start makes Connect read the slot.
func (c connector) start() {
	c.b.Helper()
	at, err := url.Parse(c.url)
	if err != nil {
		c.b.Fatal(err)
	}
	password, _ := at.User.Password()
	config := map[string]string{
		"connector.class": "io.debezium.connector.postgresql.PostgresConnector", "tasks.max": "1", "topic.prefix": c.name,
		"database.hostname": at.Hostname(), "database.port": at.Port(), "database.user": at.User.Username(), "database.password": password,
		"database.dbname": strings.TrimPrefix(at.Path, "/"), "table.include.list": "public.orders", "snapshot.mode": "no_data",
		"plugin.name": "pgoutput", "slot.name": c.name, "publication.name": "onewrite_shop", "publication.autocreate.mode": "disabled",
	}
	maps.Copy(config, c.extra)
	if err := c.ask(http.MethodPost, "/connectors", map[string]any{"name": c.name, "config": config}); err != nil {
		c.b.Fatal(err)
	}
}

// remove ends the connector and drops its slot.
func (c connector) remove() {
	c.b.Helper()
	if err := c.ask(http.MethodDelete, "/connectors/"+c.name, nil); err != nil {
		c.b.Fatal(err)
	}
	c.free(c.name)
	c.exec(`SELECT pg_drop_replication_slot($1)`, c.name)
}

// walsender waits until the slot is read and returns the server's process for it.
func (c connector) walsender() (pid int) {
	c.b.Helper()
	await(c.b, time.Minute, "Debezium reads the log", func() bool {
		return c.db.QueryRow(`SELECT active_pid FROM pg_replication_slots WHERE active AND slot_name = $1`, c.name).Scan(&pid) == nil
	})
	return pid
}

// probe starts peers/Probe.java on a topic, for ten minutes at most, and returns its
// lines "microseconds number" once it is ready.
func (c *debezium) probe(topic, what string, args ...string) func() (at time.Time, n int, ok bool) {
	c.b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	cmd := c.java(ctx, append([]string{"-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", filepath.Join("peers", "Probe.java"), what, c.kafka, topic}, args...)...)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		c.b.Fatal(err)
	}
	c.b.Cleanup(func() { cancel(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		_ = cmd.Wait()
		c.b.Fatalf("the probe says %q\n%s", lines.Text(), log.String())
	}
	return func() (at time.Time, n int, ok bool) {
		var micros int64
		ok = lines.Scan()
		if ok {
			_, err := fmt.Sscan(lines.Text(), &micros, &n)
			ok = err == nil
		}
		return time.UnixMicro(micros), n, ok
	}
}

// drain lets Debezium read n rows that wait in the slot. The time is that from the
// first record in Kafka to the last, as its own starting is left out.
func (c connector) drain(got samples, as string, n int) {
	c.b.Helper()
	next := c.probe(c.topic(), "ends", strconv.Itoa(n))
	connect, broker := cpuSeconds(c.b, c.connect.Process.Pid), cpuSeconds(c.b, c.broker.Process.Pid)
	c.start()
	walsender := c.walsender()
	first, already, ok := next()
	last, all := first, already
	for ok && all < n {
		last, all, ok = next()
	}
	if all < n {
		c.b.Fatalf("%d of %d rows are in Kafka", all, n)
	}
	rows := float64(n)
	got.add(as+"-rows/s", float64(all-already)/last.Sub(first).Seconds())
	got.add(as+"-cpu-s/M", (cpuSeconds(c.b, c.connect.Process.Pid)-connect)*1e6/rows)
	got.add(as+"-kafka-cpu-s/M", (cpuSeconds(c.b, c.broker.Process.Pid)-broker)*1e6/rows)
	got.add(as+"-walsender-cpu-s/M", cpuSeconds(c.b, walsender)*1e6/rows)
	c.remove()
}

// watch notes when rows are at a consumer of a topic.
func (d *debezium) watch(topic string, at *atomic.Pointer[trip]) {
	d.b.Helper()
	next := d.probe(topic, "rows")
	go func() {
		for when, id, ok := next(); ok; when, id, ok = next() {
			at.Load().arriveAt(id, when)
		}
	}()
}

// peaks notes the largest memory of the two JVMs since they were started.
func (d *debezium) peaks(got samples) {
	got.add("debezium-peak-MB", procStatus(d.b, d.connect.Process.Pid, "VmHWM")/1000)
	got.add("kafka-peak-MB", procStatus(d.b, d.broker.Process.Pid, "VmHWM")/1000)
}

// BenchmarkDebezium measures onewrite and Debezium with Kafka side by side on one
// database: how fast a backlog of the same rows is in the bus, or in Kafka, and how
// soon a row of 1,000 transactions a second is at a consumer, of a NATS stream or of
// Kafka. Debezium runs as it comes and with the settings that suit it best. Its JVM
// has read a backlog before it is measured. In the runs named kafka that Kafka is the
// bus of onewrite, and consumers read it; in those named sink it is a destination that is
// written in transactions, in those named idempotent one without, as Debezium writes.
func BenchmarkDebezium(b *testing.B) {
	dir := os.Getenv("ONEWRITE_DEBEZIUM")
	if dir == "" {
		b.Skip("Kafka and Debezium are not here; run: make bench-debezium")
	}
	for _, perTx := range []int{1, 1000} {
		b.Run("backlog/"+strconv.Itoa(perTx), func(b *testing.B) { besideBacklog(b, dir, perTx, "") })
		b.Run("kafka/"+strconv.Itoa(perTx), func(b *testing.B) { besideBacklog(b, dir, perTx, "bus") })
		b.Run("sink/"+strconv.Itoa(perTx), func(b *testing.B) { besideBacklog(b, dir, perTx, "sink") })
		b.Run("idempotent/"+strconv.Itoa(perTx), func(b *testing.B) { besideBacklog(b, dir, perTx, "idempotent") })
	}
	b.Run("live", func(b *testing.B) { besideLive(b, dir, "") })
	b.Run("livekafka", func(b *testing.B) { besideLive(b, dir, "bus") })
	b.Run("livesink", func(b *testing.B) { besideLive(b, dir, "sink") })
	b.Run("liveidempotent", func(b *testing.B) { besideLive(b, dir, "idempotent") })
}

// beside starts the program beside Debezium, to which Kafka is nothing, its bus or a
// sink, which may be idempotent.
func beside(b *testing.B, dir, kafka, rest string) (*logProgram, *debezium) {
	b.Helper()
	p := &logProgram{logBacklog: newLogTable(b)}
	d := newDebezium(p, dir)
	source := fmt.Sprintf("{type: postgres, url: %q, tables: [public.orders]}", p.url)
	if kafka == "sink" || kafka == "idempotent" {
		p.to = "kafka"
		rest += fmt.Sprintf("destinations:\n  kafka: {type: kafka, brokers: [%q], topic: \"onewrite.{topic}\", transactions: %v}\n", d.kafka, kafka == "sink")
	}
	if kafka == "bus" {
		p.cmd, p.addr = runningOn(b, fmt.Sprintf("{type: kafka, brokers: [%q], max_size: 20GB}", d.kafka), source, rest)
	} else {
		p.cmd, p.addr = running(b, source, rest)
	}
	p.walsender()
	return p, d
}

func besideBacklog(b *testing.B, dir string, perTx int, kafka string) {
	p, d := beside(b, dir, kafka, "")
	end(p.cmd, os.Interrupt)
	n, got := short(logRows), samples{}
	for round := range 1 + runs {
		if round == 1 {
			clear(got) // a cold JVM
		}
		asIs, tuned := d.slot(nil), d.slot(tunedBacklog)
		p.load(n, perTx)
		broker := cpuSeconds(b, d.broker.Process.Pid)
		p.drain(got, n)
		if kafka != "" {
			got.add("own-kafka-cpu-s/M", (cpuSeconds(b, d.broker.Process.Pid)-broker)*1e6/float64(n))
		}
		asIs.drain(got, "debezium", n)
		tuned.drain(got, "tuned", n)
	}
	d.peaks(got)
	got.add("times-debezium", ratio(got["rows/s"], got["debezium-rows/s"]))
	got.add("times-tuned", ratio(got["rows/s"], got["tuned-rows/s"]))
	got.report(b)
}

func besideLive(b *testing.B, dir, kafka string) {
	at, got := &atomic.Pointer[trip]{}, samples{}
	rest := ""
	if kafka == "" {
		consumer := subscriber(b, at)
		rest = fmt.Sprintf("destinations:\n  consumer: {type: %s, url: %q}\n", consumer.Type, consumer.URL.Reveal())
	}
	p, d := beside(b, dir, kafka, rest)
	switch kafka {
	case "bus":
		d.watch("onewrite.log.shop", at)
	case "sink", "idempotent":
		d.watch("onewrite.public.orders", at)
	}
	p.db.SetMaxOpenConns(latencyWriter)
	p.db.SetMaxIdleConns(latencyWriter)
	insert, err := p.db.Prepare(`INSERT INTO orders VALUES ($1, 1, 12.50, now(), repeat('x', 160)) ON CONFLICT (id) DO UPDATE SET placed = excluded.placed`)
	if err != nil {
		b.Fatal(err)
	}
	// measure warms up, measures, and rests. Kafka itself becomes faster for half a minute,
	// which would be held against whoever is first.
	const warm = 3
	measure := func(as string, pid int) {
		b.Helper()
		for round := range warm + runs {
			one := oneTrip(b, at, latencyWriter, latencyRate, short(15_000), func(key string) error {
				id, err := strconv.Atoi(key)
				if err == nil {
					_, err = insert.Exec(id)
				}
				return err
			})
			if round >= warm {
				got.add(as+"p50-ms", percentile(one, 0.50))
				got.add(as+"p99-ms", percentile(one, 0.99))
			}
		}
		const rest = 10 * time.Second
		cpu := cpuSeconds(b, pid)
		<-time.After(rest)
		got.add(as+"idle-%", (cpuSeconds(b, pid)-cpu)/rest.Seconds()*100)
	}
	measure("", p.cmd.Process.Pid)
	got.add("peak-MB", procStatus(b, p.cmd.Process.Pid, "VmHWM")/1000)
	end(p.cmd, os.Interrupt)
	for _, s := range []struct {
		as    string
		extra map[string]string
	}{{"debezium-", nil}, {"tuned-", tunedLive}} {
		c := d.slot(s.extra)
		d.watch(c.topic(), at)
		c.start()
		c.walsender()
		measure(s.as, d.connect.Process.Pid)
		c.remove()
	}
	d.peaks(got)
	got.report(b)
}

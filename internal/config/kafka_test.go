package config

import (
	"errors"
	"strings"
	"testing"
)

// parseKafka reads a file with one destination of type kafka.
func parseKafka(t *testing.T, settings string) (*Config, Problems) {
	t.Helper()
	text := "sources: {s: {type: sqlite, path: x}}\ndestinations:\n  k:\n    type: kafka\n" + settings
	c, found, err := Parse([]byte(text), "x", t.TempDir())
	var more Problems
	if err != nil && !errors.As(err, &more) {
		t.Fatal(err)
	}
	return c, append(found, more...)
}

func TestKafka(t *testing.T) {
	t.Setenv("KAFKA_PASSWORD", "secret")
	for settings, want := range map[string]string{
		"    topics: [order.>]\n":                                                "brokers: is missing",
		"    brokers: []\n":                                                      "brokers",
		"    brokers: [kafka]\n":                                                 "is not host:port",
		"    brokers: ['kafka:x']\n":                                             "is not host:port",
		"    brokers: ['a@kafka:1']\n":                                           "is not host:port",
		"    brokers: [kafka:9092]\n":                                            "in clear text",
		"    brokers: [kafka:9092]\n    tls:":                                    "in clear text", // as good as nothing
		"    brokers: [localhost:9092]\n    topic: 'a b'\n":                      "is not a topic of Kafka",
		"    brokers: [localhost:9092]\n    topic: 'a b{topic}'\n":               "is not a topic of Kafka",
		"    brokers: [localhost:9092]\n    topic: ..\n":                         "is not a topic of Kafka",
		"    brokers: [localhost:9092]\n    places: 'a/b'\n":                     "places",
		"    brokers: [localhost:9092]\n    places: x\n    topic: x\n":           "is the topic of the events too",
		"    brokers: [localhost:9092]\n    compression: lzma\n":                 "none, gzip, snappy, lz4 or zstd",
		"    brokers: [localhost:9092]\n    repartitioned: accept\n":             "not noticed any more",
		"    brokers: [localhost:9092]\n    sasl: {}\n":                          "sasl.mechanism: is missing",
		"    brokers: [localhost:9092]\n    sasl: {mechanism: plain, user: x}\n": "password: is missing",
		"    brokers: [localhost:9092]\n    sasl: {mechanism: oauthbearer}\n":    "token: is missing",
		"    brokers: [localhost:9092]\n    sasl: {mechanism: scram-sha-256, user: x, password: '${env:KAFKA_PASSWORD}', token: '${env:HOME}'}": "does not go with",
		"    brokers: [kafka:9092]\n    sasl: {mechanism: plain, user: x, password: '${env:KAFKA_PASSWORD}'}\n":                                 "shows the secret",
		"    brokers: [localhost:9092]\n    format: avro\n":                                                                                     "needs a schema registry",
		"    brokers: [localhost:9092]\n    format: jsonl\n":                                                                                    "is not json, avro, json-schema or protobuf",
		"    brokers: [localhost:9092]\n    format: xml\n":                                                                                      "format",
		"    brokers: [localhost:9092]\n    registry: {url: 'http://localhost:1'}\n":                                                            "does nothing with format: json",
		"    brokers: [localhost:9092]\n    format: avro\n    registry: {}\n":                                                                   "registry.url: is missing",
		"    brokers: [localhost:9092]\n    format: avro\n    registry: {url: 'ftp://r'}\n":                                                     "is not the address of a schema registry",
		"    brokers: [localhost:9092]\n    format: avro\n    registry: {url: 'http://a:secret@r:1'}\n":                                         "has a user in it",
		"    brokers: [localhost:9092]\n    format: avro\n    registry: {url: 'http://r:1'}\n":                                                  "in clear text",
		"    brokers: [localhost:9092]\n    format: avro\n    registry: {url: 'https://r', user: x}\n":                                          "has no password",
		"    brokers: [localhost:9092]\n    format: avro\n    registry: {url: 'http://localhost', tls: {ca: x}}\n":                              "does not go with an http URL",
		"    brokers: [localhost:9092]\n    format: avro\n    registry: {url: 'https://r', subject: x}\n":                                       "topic, record or topic-record",
		"    url: nats://x\n    brokers: [localhost:9092]\n":                                                                                    "does not belong to type kafka",
	} {
		_, found := parseKafka(t, settings)
		text := ""
		for _, p := range found {
			text += p.String() + "\n"
		}
		if !strings.Contains(text, want) {
			t.Errorf("%s: no %q in:\n%s", settings, want, text)
		}
		if strings.Contains(text, "secret\n") || strings.Contains(text, `"secret"`) {
			t.Errorf("a secret is shown: %s", text)
		}
	}
	c, found := parseKafka(t, "    brokers: ['localhost:9092', '[::1]:9093']\n    tls: {}\n    partitions: 0\n    sasl: {mechanism: scram-sha-512, user: x, password: '${env:KAFKA_PASSWORD}'}\n")
	if len(found) > 0 {
		t.Fatal(found)
	}
	d := c.Destinations["k"]
	if d.Idempotent || d.NoTopics || d.Compression != "" || d.Topic != "" || d.Places != "onewrite-places" || d.Repartitioned != "refuse" ||
		d.TLS == nil || d.SASL.Password.Reveal() != "secret" || len(d.Brokers) != 2 {
		t.Errorf("%+v", d)
	}
	if d.Format != "" || d.Schemas() {
		t.Errorf("format is %q", d.Format)
	}
	c, found = parseKafka(t, "    brokers: ['localhost:9092']\n    format: avro\n    registry: {url: 'https://a,https://b:1/x', user: x, password: '${env:KAFKA_PASSWORD}', register: false}\n")
	if d := c.Destinations["k"]; len(found) > 0 || !d.Schemas() || !d.Registry.NoRegister || d.Registry.Subject != "topic" {
		t.Errorf("%+v %v", d, found)
	}
	c, found = parseKafka(t, "    brokers: ['localhost:9092']\n    format: protobuf\n    registry: {url: 'https://a'}\n")
	if d := c.Destinations["k"]; len(found) > 0 || !d.Schemas() || d.Format != "protobuf" {
		t.Errorf("%+v %v", d, found)
	}
	c, found = parseKafka(t, "    brokers: ['localhost:9092']\n    transactions: false\n    create_topics: false\n    partitions: 6\n    tombstones: true\n")
	if d := c.Destinations["k"]; len(found) > 0 || !d.Idempotent || !d.NoTopics || d.Partitions != 6 || !d.Tombstones {
		t.Errorf("%+v %v", d, found)
	}
}

// TestKafkaFormat: one thing that is wrong has one line.
func TestKafkaFormat(t *testing.T) {
	for settings, want := range map[string]string{
		"    topics: [order.>]\n":                                "x:3:3: destinations.k.brokers: is missing; write brokers: [kafka-1:9092, kafka-2:9092]",
		"    brokers: [localhost:9092]\n    format: xml\n":       `x:6:13: destinations.k.format: "xml" is not json, avro, json-schema or protobuf; write one of json, avro, json-schema, protobuf`,
		"    brokers: [localhost:9092]\n    format: parquet\n":   `x:6:13: destinations.k.format: "parquet" is not json, avro, json-schema or protobuf; write one of json, avro, json-schema, protobuf`,
		"    brokers: [localhost:9092]\n    format: protobuff\n": `x:6:13: destinations.k.format: "protobuff" is not json, avro, json-schema or protobuf; did you mean "protobuf"?`,
	} {
		if _, found := parseKafka(t, settings); found.Error() != want {
			t.Errorf("%s:\n%s\nwant\n%s", settings, found, want)
		}
	}
}

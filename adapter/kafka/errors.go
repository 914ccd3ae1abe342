package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/disk"
)

// answered is an answer of the brokers about one event, that may change.
type answered struct{ error }

// Answered says that the other side was reached.
func (answered) Answered() bool { return true }

func (a answered) Unwrap() error { return a.error }

// isAnswer reports whether an error says that the other side was reached.
func isAnswer(err error) bool {
	var a answered
	return errors.As(err, &a)
}

// refusals are the answers about a record that stay the same however often it is
// sent, and their cure.
var refusals = map[int16]string{
	kerr.MessageTooLarge.Code:             "let the topic take more: kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config max.message.bytes=N",
	kerr.RecordListTooLarge.Code:          "let the topic keep larger segments: kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config segment.bytes=N",
	kerr.InvalidRecord.Code:               "a topic with cleanup.policy=compact takes no record without a key: give the events a key, or alter it: kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config cleanup.policy=delete",
	kerr.InvalidTimestamp.Code:            "the clocks of this machine and of the broker differ, or the topic's message.timestamp limits are narrow: kafka-configs.sh --describe --entity-type topics --entity-name {topic}",
	kerr.InvalidTopicException.Code:       "it may collide with a topic that has _ where this has dots; write another topic: in the destination",
	kerr.UnsupportedForMessageFormat.Code: "the topic keeps an old format of messages without headers: kafka-configs.sh --alter --entity-type topics --entity-name {topic} --delete-config message.format.version",
}

// answers are those about a topic that a person can change.
var answers = map[int16]string{
	kerr.UnknownTopicOrPartition.Code:    "create it: kafka-topics.sh --create --topic {topic} --partitions 6, or write create_topics: true in the destination",
	kerr.TopicAuthorizationFailed.Code:   "allow it: kafka-acls.sh --add --allow-principal User:{user} --operation Write --operation Describe --operation Create --topic {topic}",
	kerr.ClusterAuthorizationFailed.Code: "allow it: kafka-acls.sh --add --allow-principal User:{user} --operation Create --topic {topic}; or create the topic: kafka-topics.sh --create --topic {topic} --partitions 6",
	kerr.PolicyViolation.Code:            "the brokers' policy has an objection: see partitions: and replication: in the destination, or create the topic as the policy wants it: kafka-topics.sh --create --topic {topic}",
}

// outages are those that say nothing about an event, with a cure beside waiting.
var outages = map[int16]string{
	kerr.NotEnoughReplicas.Code:                  "too few replicas are in sync: kafka-topics.sh --describe --under-min-isr-partitions",
	kerr.NotEnoughReplicasAfterAppend.Code:       "too few replicas are in sync: kafka-topics.sh --describe --under-min-isr-partitions",
	kerr.IllegalSaslState.Code:                   "the listener that brokers: names takes no login: take sasl: out, or name one with SASL there",
	kerr.UnsupportedSaslMechanism.Code:           "write another mechanism: under sasl:, one of the brokers' sasl.enabled.mechanisms",
	kerr.SaslAuthenticationFailed.Code:           "look at sasl: in the destination, and at the user: kafka-configs.sh --describe --entity-type users",
	kerr.TransactionalIDAuthorizationFailed.Code: "allow it: kafka-acls.sh --add --allow-principal User:{user} --operation Write --operation Describe --transactional-id {id}; or write transactions: false",
	kerr.InvalidReplicationFactor.Code:           "there are fewer brokers than copies: write a smaller replication: in the destination",
	kerr.InvalidPartitions.Code:                  "write another partitions: in the destination",
	kerr.InvalidTransactionTimeout.Code:          "let the brokers take 30 s: transaction.max.timeout.ms",
	kerr.InvalidProducerIDMapping.Code:           "the coordinator forgot the producer; a new sink goes on",
	kerr.UnknownProducerID.Code:                  "the broker forgot the producer; a new sink goes on",
}

// batchwide reports whether an answer was given to all records of a batch though
// maybe one of them alone has earned it.
func batchwide(err error) bool {
	return errors.Is(err, kerr.InvalidRecord) || errors.Is(err, kerr.InvalidTimestamp) || oversize(err)
}

// oversize reports whether a batch was too large, for which maybe no record is to
// blame.
func oversize(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge)
}

// fenced reports whether a newer producer has taken over.
func fenced(err error) bool {
	return errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.FencedInstanceID)
}

// refusal reports whether an answer is about a record or its topic.
func refusal(err error) bool {
	var ke *kerr.Error
	if !errors.As(err, &ke) {
		return false
	}
	return refusals[ke.Code] != "" || answers[ke.Code] != ""
}

// user is the name that the brokers know the client by, as far as we know it.
func (s *core) user() string {
	switch {
	case s.c.SASL != nil && s.c.SASL.User != "":
		return s.c.SASL.User
	case s.c.SASL == nil && (s.c.TLS == nil || len(s.c.TLS.Certificates) == 0):
		return "ANONYMOUS"
	}
	return "NAME"
}

// addressed tells the commands in a cure which brokers to ask, and how to log in.
func (c *Config) addressed(cure string) string {
	if strings.Contains(cure, "--bootstrap-server") || len(c.Brokers) == 0 {
		return cure
	}
	to := ".sh --bootstrap-server " + strings.Join(c.Brokers, ",") + " "
	if c.SASL != nil || c.TLS != nil {
		to += "--command-config client.properties "
	}
	return strings.ReplaceAll(cure, ".sh ", to)
}

// reach is the cure of an error of connecting or of a connection; "" of any other. What
// was reached does not have to be looked for.
func (c *Config) reach(err error) string {
	var (
		dial      *net.OpError
		name      *net.DNSError
		early     *kgo.ErrFirstReadEOF
		record    tls.RecordHeaderError
		authority x509.UnknownAuthorityError
		cert      *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &name):
		return "compare brokers: with the name server: getent hosts " + disk.Quote(name.Name)
	case errors.As(err, &authority):
		return "name the authority that signed the brokers' certificates: tls: {ca: ca.pem}"
	case errors.As(err, &cert):
		return "renew or correct the brokers' certificates, or set tls: {server_name: NAME}"
	case errors.As(err, &record), errors.As(err, &early):
		return "the brokers were reached: write tls: and sasl: as the listener that brokers: names wants them, or take them out"
	case errors.As(err, &dial) && dial.Op == "dial":
		at := c.Brokers[0]
		if dial.Addr != nil {
			at = dial.Addr.String()
		}
		return "compare brokers: with the listeners of the brokers: " + knock(at)
	case errors.As(err, &dial), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, context.DeadlineExceeded):
		return "see whether the brokers answer: " + c.addressed("kafka-topics.sh --describe --unavailable-partitions")
	}
	return ""
}

// knock is the command that shows whether anything listens at an address.
func knock(at string) string {
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return "nc -vz " + at
	}
	return "nc -vz " + host + " " + port
}

// worded gives an error its type and its cure. about says what of, "event 7" for
// instance; topic is for the cure, and may be empty.
func (s *core) worded(err error, about, topic string) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrFenced) {
		return err
	}
	to := about
	if topic != "" && strings.HasPrefix(about, "event ") {
		to += " to " + topic
	}
	if hidden, is := err.(unsteered); is { //nolint:errorlint // what is around one has its own cure
		return unsteered{s.worded(hidden.err, about, topic)}
	}
	var ke *kerr.Error
	if !errors.As(err, &ke) {
		if errors.Is(err, context.DeadlineExceeded) {
			err = s.heard.with(err)
		}
		if cure := s.c.reach(err); cure != "" && !strings.Contains(err.Error(), "; ") {
			err = fmt.Errorf("%w; %s", err, cure)
		}
		return fmt.Errorf("kafka: %s: %w", to, err)
	}
	cure := func(text string) string {
		return strings.NewReplacer("{topic}", topic, "{id}", s.c.transactionalID(), "{user}", disk.Quote(s.user())).Replace(s.c.addressed(text))
	}
	switch {
	case fenced(err):
		return fmt.Errorf("kafka: %s: %w: %w; if there is no other copy, another onewrite has a destination %s in this cluster: give one of them another name", to, err, onewrite.ErrFenced, s.c.Destination)
	case refusals[ke.Code] != "":
		return fmt.Errorf("kafka: %s: %w: %w; %s", to, err, onewrite.ErrRejected, cure(refusals[ke.Code]))
	case answers[ke.Code] != "":
		return answered{fmt.Errorf("kafka: %s: %w; %s", to, err, cure(answers[ke.Code]))}
	case outages[ke.Code] != "":
		return fmt.Errorf("kafka: %s: %w; %s", to, err, cure(outages[ke.Code]))
	case ke.Retriable:
		return fmt.Errorf("kafka: %s: %w; wait, or see which partitions have no leader: %s", to, err, cure("kafka-topics.sh --describe --unavailable-partitions"))
	}
	return fmt.Errorf("kafka: %s: %w; look into the log of the brokers", to, err)
}

package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/onewrite/onewrite"
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
	if s.c.SASL != nil && s.c.SASL.User != "" {
		return s.c.SASL.User
	}
	return "NAME"
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
	var ke *kerr.Error
	if !errors.As(err, &ke) {
		if errors.Is(err, context.DeadlineExceeded) {
			err = s.heard.with(err)
		}
		return fmt.Errorf("kafka: %s: %w", to, err)
	}
	cure := strings.NewReplacer("{topic}", topic, "{id}", s.c.transactionalID(), "{user}", s.user()).Replace
	switch {
	case fenced(err):
		return fmt.Errorf("kafka: %s: %w: %w; if there is no other copy, another onewrite has a destination %s in this cluster: give one of them another name", to, err, onewrite.ErrFenced, s.c.Destination)
	case refusals[ke.Code] != "":
		return fmt.Errorf("kafka: %s: %w: %w; %s", to, err, onewrite.ErrRejected, cure(refusals[ke.Code]))
	case answers[ke.Code] != "":
		return answered{fmt.Errorf("kafka: %s: %w; %s", to, err, cure(answers[ke.Code]))}
	case outages[ke.Code] != "":
		return fmt.Errorf("kafka: %s: %w; %s", to, err, cure(outages[ke.Code]))
	}
	return fmt.Errorf("kafka: %s: %w", to, err)
}

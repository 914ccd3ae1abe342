package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/onewrite/onewrite"
)

// topic is what a sink knows of one that it writes to.
type topic struct {
	partitions int   // as they count for the choice of one; mu
	limit      int   // max.message.bytes
	changed    error // why events with a key are not sent; mu
}

// limit tells the client the largest batch of a topic.
func (s *core) limit(name string) int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.topics[name]; t != nil {
		return int32(t.limit)
	}
	return defaultLimit
}

// admit returns how many leading records can be sent: their topics are there, and
// take them. The error is about the next one; events[of[i]] is the event of record i.
func (s *core) admit(ctx context.Context, recs []*kgo.Record, events []onewrite.Event, of []int) (int, error) {
	n, cause := len(recs), error(nil)
	stop := func(i int, err error) {
		if i < n {
			n, cause = i, err
		}
	}
	first := map[string]int{} // topics not looked at yet, and their first record
	var names []string
	for i, r := range recs {
		if s.known(r.Topic) != nil {
			continue
		}
		if _, seen := first[r.Topic]; seen {
			continue
		}
		if reason := s.never(r.Topic); reason != "" {
			stop(i, fmt.Errorf("kafka: event %s to %q: %s: %w; write a topic: in the destination that Kafka can have, topic: changes.{source} for instance", events[of[i]].ID, r.Topic, reason, onewrite.ErrRejected))
			break
		}
		first[r.Topic], names = i, append(names, r.Topic)
	}
	if len(names) > 0 {
		for name, err := range s.look(ctx, names) {
			i := first[name]
			stop(i, s.worded(err, "event "+events[of[i]].ID, name))
		}
	}
	for i, r := range recs[:n] {
		limit, changed := s.takes(r.Topic)
		if changed != nil && r.Key != nil {
			return i, changed
		}
		if size := sizeOf(r) + batchOverhead; size > limit {
			return i, s.large(ctx, events[of[i]].ID, r.Topic, size, limit)
		}
	}
	return n, cause
}

func (s *core) known(name string) *topic {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topics[name]
}

// gone forgets a topic that the brokers do not know any more, or that takes less than
// it did, so that the next write looks for it, and creates it if it may.
func (s *core) gone(name string, err error) {
	if errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.InconsistentTopicID) || oversize(err) {
		s.forget(name)
	}
}

func (s *core) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.topics, name)
}

// takes returns the largest batch that a known topic takes, and why records with a
// key do not go to it, if they do not.
func (s *core) takes(name string) (limit int, changed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.topics[name]; t != nil {
		return t.limit, t.changed
	}
	return defaultLimit, nil
}

// never says why no event can go to a topic, or nothing.
func (s *core) never(name string) string {
	switch {
	case name == s.c.Places:
		return "that is the topic of the places"
	case internal(name):
		return "that is a topic of the broker's own"
	}
	if reason := badTopic(name); reason != "" {
		return "that is no topic of Kafka: " + reason
	}
	return ""
}

// large refuses an event for its size, unless the topic takes more by now: then a
// new sink does.
func (s *core) large(ctx context.Context, id, name string, size, limit int) error {
	if now := s.limits(ctx, name)[name]; now > limit {
		return fmt.Errorf("kafka: event %s to %s: the topic takes %d bytes by now; the sink has to be opened again", id, name, now)
	}
	return s.worded(fmt.Errorf("%w: %d bytes, the topic takes %d", kerr.MessageTooLarge, size, limit), "event "+id, name)
}

// look learns about topics, and creates those that are missing. It returns the
// errors by topic.
func (s *core) look(ctx context.Context, names []string) map[string]error {
	failed := map[string]error{}
	all := func(err error) map[string]error {
		for _, name := range names {
			failed[name] = err
		}
		return failed
	}
	details, err := details(ctx, s.cl, names...)
	if err != nil {
		return all(err)
	}
	var missing []string
	for _, name := range names {
		if errors.Is(details[name].err, kerr.UnknownTopicOrPartition) && !s.c.NoCreate {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		if err := s.create(ctx, missing, failed); err != nil {
			return all(err)
		}
		if details, err = s.ready(ctx, names, failed); err != nil {
			return all(err)
		}
	}
	limits := s.limits(ctx, names...)
	for _, name := range names {
		switch d := details[name]; {
		case failed[name] != nil:
		case d.err != nil:
			failed[name] = d.err
		case d.partitions == 0:
			failed[name] = kerr.UnknownTopicOrPartition
		default:
			s.learn(name, d.partitions, limits[name])
		}
	}
	return failed
}

// detail is what the brokers say of one topic.
type detail struct {
	partitions int
	led        bool  // every partition has a leader
	leader     int32 // of the first one; -1: none
	id         [16]byte
	err        error // instead of the rest
}

// details asks for topics without creating any. An answer about one says nothing
// about the others.
func details(ctx context.Context, cl *kgo.Client, names ...string) (map[string]detail, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	out := make(map[string]detail, len(names))
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		out[*t.Topic] = detailOf(t)
	}
	return out, nil
}

func detailOf(t kmsg.MetadataResponseTopic) detail {
	d := detail{partitions: len(t.Partitions), led: len(t.Partitions) > 0, leader: -1, id: t.TopicID, err: kerr.ErrorForCode(t.ErrorCode)}
	for _, p := range t.Partitions {
		led := p.ErrorCode == 0 && p.Leader >= 0
		if d.led = d.led && led; led && p.Partition == 0 {
			d.leader = p.Leader
		}
	}
	return d
}

// create creates topics. An error of one is put down in failed.
func (s *core) create(ctx context.Context, names []string, failed map[string]error) error {
	partitions, replication := int32(-1), int16(-1)
	if s.c.Partitions > 0 {
		partitions = int32(s.c.Partitions)
	}
	if s.c.Replication > 0 {
		replication = int16(s.c.Replication)
	}
	made, err := s.adm.CreateTopics(ctx, partitions, replication, nil, names...)
	if err != nil {
		return err
	}
	for name, r := range made {
		if r.Err != nil && !errors.Is(r.Err, kerr.TopicAlreadyExists) {
			failed[name] = r.Err
			if r.ErrMessage != "" {
				failed[name] = fmt.Errorf("%w: %s", r.Err, r.ErrMessage)
			}
		} else if r.Err == nil {
			s.c.Logger.Info("created a topic", "topic", name)
		}
	}
	return nil
}

// ready waits until the brokers know of topics that were just created.
func (s *core) ready(ctx context.Context, names []string, failed map[string]error) (map[string]detail, error) {
	for {
		details, err := details(ctx, s.cl, names...)
		if err != nil {
			return nil, err
		}
		waits := false
		for _, name := range names {
			d := details[name]
			unknown := d.err == nil || errors.Is(d.err, kerr.UnknownTopicOrPartition) || errors.Is(d.err, kerr.LeaderNotAvailable)
			waits = waits || !d.led && unknown && failed[name] == nil
		}
		if !waits {
			return details, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the topic is created, and no leader of it is known: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// limits reads max.message.bytes. Who may not read it gets the broker's default.
func (s *core) limits(ctx context.Context, names ...string) map[string]int {
	out := make(map[string]int, len(names))
	for _, name := range names {
		out[name] = defaultLimit
	}
	for name, c := range topicSettings(ctx, s.cl, names...) {
		if n, err := strconv.Atoi(c["max.message.bytes"]); err == nil {
			out[name] = min(max(n, 1024), largestLimit)
		}
	}
	return out
}

// topicSettings reads those of topics, as far as it may.
func topicSettings(ctx context.Context, cl *kgo.Client, names ...string) map[string]map[string]string {
	req := kmsg.NewPtrDescribeConfigsRequest()
	for _, name := range names {
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, name
		req.Resources = append(req.Resources, r)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil
	}
	out := map[string]map[string]string{}
	for _, r := range resp.Resources {
		if r.ErrorCode != 0 {
			continue
		}
		c := map[string]string{}
		for _, e := range r.Configs {
			if e.Value != nil {
				c[e.Name] = *e.Value
			}
		}
		out[r.ResourceName] = c
	}
	return out
}

// learn notes a topic, and compares its partitions with those remembered.
func (s *core) learn(name string, partitions, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &topic{partitions: partitions, limit: limit}
	switch was, ok := s.counts[name]; {
	case !ok, was != partitions && s.c.AcceptRepartitioned:
		s.counts[name], s.fresh = partitions, true
		if ok {
			s.c.Logger.Warn("a topic has another number of partitions, as accepted: events of one key may lie in two of them", "topic", name, "before", was, "now", partitions)
		}
	case was != partitions:
		t.changed = s.repartitioned(name, was, partitions)
	}
	s.topics[name] = t
}

// repartitioned is no answer about an event: all wait.
func (s *core) repartitioned(name string, was, now int) error {
	return fmt.Errorf("kafka: topic %s has %d partitions and had %d: most keys would go to another one, and overtake there what is not consumed yet; let the consumers read all that is there (%s shows a lag of 0), write repartitioned: accept in destination %s, run onewrite reload, and remove it when the events flow", name, now, was, s.c.addressed("kafka-consumer-groups.sh --describe --all-groups"), s.c.Destination)
}

// counted is asked by the partitioner, with the number of partitions that the client
// found by now.
func (s *core) counted(name string, now int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[name]
	if t == nil || t.partitions == now { // the topic of places is not among them
		return true
	}
	if s.c.AcceptRepartitioned {
		s.c.Logger.Warn("a topic has another number of partitions, as accepted: events of one key may lie in two of them", "topic", name, "before", t.partitions, "now", now)
		t.partitions, s.counts[name], s.fresh = now, now, true
		return true
	}
	t.changed = s.repartitioned(name, t.partitions, now)
	return false
}

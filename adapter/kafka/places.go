package kafka

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// In the topic of places a destination has three keys. Its name has the place itself.
// What is behind the slash cannot be part of a name.
const (
	partitionsKey = "/partitions" // how many partitions each topic had, as JSON
	ownerKey      = "/owner"      // a mark of whoever took over last
)

// settings of a topic of places that we create: segments are small, since only a
// full one is compacted.
var placesConfig = map[string]*string{
	"cleanup.policy":            kadm.StringPtr("compact"),
	"segment.bytes":             kadm.StringPtr("16777216"),
	"min.cleanable.dirty.ratio": kadm.StringPtr("0.1"),
}

// ensurePlaces creates the topic of places if it is missing, and refuses one that
// would lose them.
func (s *core) ensurePlaces(ctx context.Context) error {
	name := s.c.Places
	fail := func(err error) error { return unsteered{s.worded(err, "topic of places "+name, name)} }
	details, err := details(ctx, s.cl, name)
	if err != nil { // the first that is asked of the brokers
		return s.worded(err, "connect", "")
	}
	if errors.Is(details[name].err, kerr.UnknownTopicOrPartition) {
		replication := int16(-1)
		if s.c.Replication > 0 {
			replication = int16(s.c.Replication)
		}
		_, err := s.adm.CreateTopic(ctx, 1, replication, placesConfig, name)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("%w; or create it: %s", fail(err), s.c.addressed(createPlaces(name)))
		}
		if details, err = s.ready(ctx, []string{name}, nil); err != nil {
			return fail(err)
		}
	}
	d := details[name]
	if d.err != nil {
		return fail(d.err)
	}
	if d.partitions != 1 {
		return fmt.Errorf("kafka: the topic of places %s has %d partitions, and needs to have one: the newest place would not be known; write another places: in destination %s", name, d.partitions, s.c.Destination)
	}
	// Who may not read the settings may still use the topic.
	if policy, told := topicSettings(ctx, s.cl, name)[name]["cleanup.policy"]; told && policy != "compact" {
		return fmt.Errorf("kafka: the topic of places %s has cleanup.policy=%s, which forgets them; %s", name, policy, s.c.addressed(alterPlaces(name)))
	}
	return nil
}

func createPlaces(name string) string {
	return "kafka-topics.sh --create --topic " + name + " --partitions 1 --config cleanup.policy=compact"
}

func alterPlaces(name string) string {
	return "kafka-configs.sh --alter --entity-type topics --entity-name " + name + " --add-config cleanup.policy=compact"
}

// unsteered is an error about what is no event: it is worded like one, and decides
// nothing about any.
type unsteered struct{ err error }

func (u unsteered) Error() string { return u.err.Error() }

// mark makes the record of whoever takes over.
func (s *core) mark() (*kgo.Record, string) {
	token := rand.Text()
	return &kgo.Record{Topic: s.c.Places, Key: []byte(s.c.Destination + ownerKey), Value: []byte(token)}, token
}

// remember returns the record of the partitions' numbers, if it has to be written.
func (s *core) remember(always bool) *kgo.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.fresh && !always || len(s.counts) == 0 {
		return nil
	}
	s.fresh = false // whoever fails to write it says so by forgot
	text, _ := json.Marshal(s.counts)
	return &kgo.Record{Topic: s.c.Places, Key: []byte(s.c.Destination + partitionsKey), Value: text}
}

// forgot makes remember due again.
func (s *core) forgot() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh = true
}

// memory is what the topic of places has of a destination.
type memory struct {
	place  *kgo.Record // nil: none
	counts *kgo.Record
}

// reaches are how many records before the mark are read; what is not among them is
// looked for farther back, at last in all there is.
var reaches = []int64{500, 20_000}

// recall reads the newest committed records of this destination before its own mark.
// A reader of committed records gets to the mark when all that was written before is
// decided.
func (s *core) recall(ctx context.Context, mark *kgo.Record, token string) (memory, error) {
	for _, reach := range reaches {
		from := mark.Offset - reach
		if from <= 0 {
			break
		}
		m, err := s.scan(ctx, from, mark.Offset, token)
		if err != nil || m.place != nil && m.counts != nil {
			return m, err
		}
	}
	return s.scan(ctx, 0, mark.Offset, token)
}

// scan reads the topic of places from an offset to the mark.
func (s *core) scan(ctx context.Context, from, to int64, token string) (memory, error) {
	var m memory
	fail := func(err error) (memory, error) { return memory{}, s.worded(err, "read the places", s.c.Places) }
	opts, err := s.c.options(s.heard)
	if err != nil {
		return fail(err)
	}
	cl, err := kgo.NewClient(append(opts, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(readWait),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{s.c.Places: {0: kgo.NewOffset().At(from)}}),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		return fail(err)
	}
	defer cl.Close()
	name := []byte(s.c.Destination)
	for {
		fetches := cl.PollFetches(ctx)
		for _, e := range fetches.Errors() {
			if ctx.Err() != nil {
				return fail(fmt.Errorf("%w; a transaction may be open in it: %s", ctx.Err(), s.c.addressed("kafka-transactions.sh find-hanging --topic "+s.c.Places)))
			}
			return fail(unsteered{e.Err})
		}
		for it := fetches.RecordIter(); !it.Done(); {
			r := it.Next()
			switch rest, mine := strings.CutPrefix(string(r.Key), string(name)); {
			case !mine:
			case rest == "":
				m.place = r
			case rest == partitionsKey:
				m.counts = r
			case rest == ownerKey && r.Offset == to && string(r.Value) == token:
				return m, nil
			}
			if r.Offset > to {
				return fail(fmt.Errorf("the mark at offset %d is not there; was the topic created anew? A new sink has to be opened", to))
			}
		}
	}
}

// recollect takes the partitions' numbers over.
func (s *core) recollect(m memory) error {
	counts := map[string]int{}
	if m.counts != nil && m.counts.Value != nil {
		if err := json.Unmarshal(m.counts.Value, &counts); err != nil {
			return fmt.Errorf("kafka: the record %s%s in topic %s at offset %d was not written by onewrite: %w; write null with that key", s.c.Destination, partitionsKey, s.c.Places, m.counts.Offset, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts == nil { // else ours are newer
		s.counts = counts
	}
	return nil
}

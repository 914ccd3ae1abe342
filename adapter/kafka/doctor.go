package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/disk"
)

// Examine looks at the cluster that is delivered to, and says what it finds; the
// caller adds the Subject. It creates nothing, writes nothing and takes nobody's
// place. wanted are the patterns of the topics that the destination wants.
func Examine(ctx context.Context, c Config, wanted []string) []diagnosis.Finding {
	err := c.complete()
	e := newExaminer(c, err)
	if e.s.cl == nil {
		return e.Found
	}
	defer e.s.cl.Close()
	if !e.connect(ctx) {
		return e.Found
	}
	defaults := e.cluster(ctx)
	e.transactions(ctx)
	e.places(ctx, defaults)
	e.topics(ctx, wanted, defaults)
	exact, _ := e.expected(wanted)
	e.registry(ctx, exact)
	return e.Found
}

type examiner struct {
	diagnosis.List
	s       *core
	brokers int
}

// Add adds a finding. Its commands get the brokers to ask.
func (e *examiner) Add(s diagnosis.Severity, check, cure, format string, args ...any) {
	e.List.Add(s, check, e.s.c.addressed(cure), format, args...)
}

// newExaminer makes the client of an examination; there is none if something is wrong with
// the configuration, which is a finding then.
func newExaminer(c Config, invalid error) *examiner {
	e := &examiner{s: &core{c: c, heard: &heard{}}}
	opts, err := c.options(e.s.heard)
	if err = errors.Join(invalid, err); err == nil {
		e.s.cl, err = kgo.NewClient(opts...)
	}
	if err != nil {
		e.Add(diagnosis.Problem, "configuration", "", "%v", err)
		return e
	}
	e.s.adm = kadm.NewClient(e.s.cl)
	return e
}

func (e *examiner) connect(ctx context.Context) bool {
	m, err := e.s.adm.BrokerMetadata(ctx)
	if err != nil {
		err = e.s.heard.with(err)
		var ke *kerr.Error
		switch {
		case errors.Is(err, kerr.SaslAuthenticationFailed):
			e.Add(diagnosis.Problem, "connect", "compare sasl: with kafka-configs.sh --describe --entity-type users --entity-name "+disk.Quote(e.s.user()), "the brokers do not let the user in: %v", err)
		case errors.As(err, &ke):
			e.Add(diagnosis.Problem, "connect", cmp.Or(outages[ke.Code], "look into the log of the brokers"), "the brokers were reached, and said: %v", err)
		default:
			e.Add(diagnosis.Problem, "connect", cmp.Or(e.s.c.reach(err), knock(e.s.c.Brokers[0])), "the brokers cannot be reached: %v", err)
		}
		return false
	}
	e.brokers = len(m.Brokers)
	version := "of an unknown version"
	if v, err := e.s.adm.ApiVersions(ctx); err == nil {
		for _, b := range v {
			version = b.VersionGuess()
		}
	}
	e.OK("connect", "%d broker(s), Kafka %s", e.brokers, version)
	if e.s.c.TLS != nil && e.s.c.TLS.InsecureSkipVerify {
		e.Add(diagnosis.Warning, "tls", "name the authority instead: tls: {ca: ca.pem}", "any certificate is accepted")
	}
	return true
}

// settings are those of a topic that decide what becomes of events.
type settings struct {
	copies, inSync, limit int
	policy                string
}

// cluster returns what a topic has that is created, as far as it can be read.
func (e *examiner) cluster(ctx context.Context) settings {
	d := settings{copies: max(e.s.c.Replication, 0), inSync: 1, limit: defaultLimit}
	m, err := e.s.adm.BrokerMetadata(ctx)
	if err != nil || len(m.Brokers) == 0 {
		return d
	}
	configs, err := e.s.adm.DescribeBrokerConfigs(ctx, m.Brokers[0].NodeID)
	if err != nil || len(configs) == 0 || configs[0].Err != nil {
		e.OK("cluster", "the settings of the brokers may not be read: what a new topic will have is not known")
		return d
	}
	for _, c := range configs[0].Configs {
		n, _ := strconv.Atoi(c.MaybeValue())
		switch {
		case c.Key == "default.replication.factor" && d.copies == 0:
			d.copies = n
		case c.Key == "min.insync.replicas":
			d.inSync = n
		case c.Key == "message.max.bytes":
			d.limit = n
		case c.Key == "transaction.max.timeout.ms" && !e.s.c.Idempotent && n > 0 && int64(n) < txnTimeout.Milliseconds():
			e.Add(diagnosis.Problem, "transactions", fmt.Sprintf("transaction.max.timeout.ms=%d # in the brokers' server.properties", txnTimeout.Milliseconds()), "the brokers allow transactions of %d ms, onewrite asks for %d", n, txnTimeout.Milliseconds())
		}
	}
	return d
}

// transactions asks who coordinates, which shows the right to describe the
// transactional.id. The right to write is shown by writing alone.
func (e *examiner) transactions(ctx context.Context) {
	if e.s.c.Idempotent {
		return
	}
	id := e.s.c.transactionalID()
	state, err := patiently(ctx, 5*time.Second, func() (string, error) { return e.state(ctx, id) })
	e.coordinator(id, state, err)
}

// patiently asks again what brokers that are not ready do not answer: a cluster whose
// transactions nobody has used makes its topic of them at the first question.
func patiently(ctx context.Context, patience time.Duration, ask func() (string, error)) (string, error) {
	for began := time.Now(); ; {
		state, err := ask()
		if !kerr.IsRetriable(err) || time.Since(began) >= patience {
			return state, err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// coordinator says what the brokers answered about a transactional.id.
func (e *examiner) coordinator(id, state string, err error) {
	switch {
	case err == nil:
		e.OK("transactions", "transactional.id %s, last state %s", id, state)
	case errors.Is(err, kerr.TransactionalIDNotFound):
		e.OK("transactions", "transactional.id %s is not used yet", id)
	case errors.Is(err, kerr.TransactionalIDAuthorizationFailed):
		e.Add(diagnosis.Problem, "transactions", strings.NewReplacer("{user}", disk.Quote(e.s.user()), "{id}", id).Replace(outages[kerr.TransactionalIDAuthorizationFailed.Code]), "transactional.id %s: %v", id, err)
	case kerr.IsRetriable(err):
		e.Add(diagnosis.Warning, "transactions", "run onewrite doctor again; if it stays so, there are fewer brokers than transaction.state.log.replication.factor: kafka-topics.sh --describe --topic __transaction_state",
			"transactional.id %s: the brokers are not ready yet: %v", id, err)
	default:
		e.Add(diagnosis.Problem, "transactions", cmp.Or(e.s.c.reach(err), "look into the log of the brokers"), "transactional.id %s: %v", id, err)
	}
}

// state asks for that of a transactional.id.
func (e *examiner) state(ctx context.Context, id string) (string, error) {
	req := kmsg.NewPtrDescribeTransactionsRequest()
	req.TransactionalIDs = []string{id}
	resp, err := req.RequestWith(ctx, e.s.cl)
	if err != nil || len(resp.TransactionStates) != 1 {
		return "", err
	}
	return resp.TransactionStates[0].State, kerr.ErrorForCode(resp.TransactionStates[0].ErrorCode)
}

// ask returns topics with what we may do to them.
func (e *examiner) ask(ctx context.Context, names ...string) (map[string]kmsg.MetadataResponseTopic, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.IncludeTopicAuthorizedOperations = true
	req.AllowAutoTopicCreation = false
	for _, name := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, e.s.cl)
	if err != nil {
		return nil, err
	}
	out := map[string]kmsg.MetadataResponseTopic{}
	for _, t := range resp.Topics {
		if t.Topic != nil {
			out[*t.Topic] = t
		}
	}
	return out, nil
}

func (e *examiner) places(ctx context.Context, defaults settings) {
	name := e.s.c.Places
	all, err := e.ask(ctx, name)
	if err != nil {
		e.Add(diagnosis.Problem, "places", "", "the topic of places %s: %v", name, err)
		return
	}
	t := all[name]
	switch err := kerr.ErrorForCode(t.ErrorCode); {
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		if e.mayCreate(ctx) {
			e.OK("places", "the topic %s is created at the first start, with %d copies", name, defaults.copies)
		} else {
			e.Add(diagnosis.Problem, "places", createPlaces(name), "the topic of places %s is not there, and the user may not create it", name)
		}
		return
	case err != nil:
		e.Add(diagnosis.Problem, "places", e.allow(name, "Read"), "the topic of places %s: %v", name, err)
		return
	case len(t.Partitions) != 1:
		e.Add(diagnosis.Problem, "places", "places: another-topic # in the destination", "the topic of places %s has %d partitions, and needs to have one", name, len(t.Partitions))
		return
	}
	e.OK("places", "the topic of places %s is there", name)
	for _, op := range []kadm.ACLOperation{kadm.OpWrite, kadm.OpRead} {
		if !may(t, op) {
			e.Add(diagnosis.Problem, "places", e.allow(name, op.String()), "the user %s has no right to %s the topic of places %s", e.s.user(), op, name)
		}
	}
	if s := e.examined(ctx, t); s.policy != "" && s.policy != "compact" {
		e.Add(diagnosis.Problem, "places", alterPlaces(name), "the topic of places %s has cleanup.policy=%s, which forgets them", name, s.policy)
	}
}

// topics looks at those that are there and match, and at what becomes of others.
func (e *examiner) topics(ctx context.Context, wanted []string, defaults settings) {
	all, err := e.ask(ctx)
	if err != nil {
		e.Add(diagnosis.Problem, "topics", "", "the topics cannot be listed: %v", err)
		return
	}
	exact, like := e.expected(wanted)
	seen := 0
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t := all[name]
		if t.IsInternal || name == e.s.c.Places || t.ErrorCode != 0 || !slices.ContainsFunc(like, func(r *regexp.Regexp) bool { return r.MatchString(name) }) {
			continue
		}
		seen++
		if !may(t, kadm.OpWrite) {
			e.Add(diagnosis.Problem, "topics", e.allow(name, "Write"), "the user %s has no right to write to topic %s: its events would be refused", e.s.user(), name)
		}
		if s := e.examined(ctx, t); s.limit > 0 {
			e.size(name, s.limit)
		}
	}
	var missing []string
	for _, name := range exact {
		if _, there := all[name]; !there {
			missing = append(missing, name)
		}
	}
	switch {
	case e.s.c.NoCreate && len(missing) > 0:
		e.Add(diagnosis.Problem, "topics", "kafka-topics.sh --create --topic "+missing[0]+" --partitions 6", "create_topics is false, and not there, or not to be seen by this user: %s", strings.Join(missing, ", "))
	case e.s.c.NoCreate:
		e.OK("topics", "%d topic(s) match; others are not created (create_topics: false), their events would be refused", seen)
	case !e.mayCreate(ctx):
		e.Add(diagnosis.Warning, "topics", fmt.Sprintf("kafka-acls.sh --add --allow-principal User:%s --operation Create --cluster", disk.Quote(e.s.user())), "%d topic(s) match; the user %s may not create others in the whole cluster: unless it may by their names, their events would be refused", seen, e.s.user())
	default:
		e.OK("topics", "%d topic(s) match; others are created", seen)
		e.copies(newTopic, defaults)
		e.size(newTopic, defaults.limit)
	}
}

// otherFields are those of a quoted template that only an event can fill.
var otherFields = regexp.MustCompile(`\\\{[^{}]*\\\}`)

// expected is what wanted topics become by the template: names, where they can be
// told exactly, and patterns.
func (e *examiner) expected(wanted []string) (exact []string, like []*regexp.Regexp) {
	if len(wanted) == 0 {
		wanted = []string{">"}
	}
	const any = `[A-Za-z0-9._-]+`
	for _, w := range wanted {
		name := strings.ReplaceAll(e.s.c.Topic, "{topic}", w)
		p := strings.NewReplacer(`\*`, `[A-Za-z0-9_-]+`, `>`, any).Replace(otherFields.ReplaceAllString(regexp.QuoteMeta(name), any))
		if r, err := regexp.Compile("^" + p + "$"); err == nil {
			like = append(like, r)
		}
		if !strings.ContainsAny(name, "*>{") && !slices.Contains(exact, name) {
			exact = append(exact, name)
		}
	}
	return exact, like
}

// examined reads the settings of a topic and says what is wrong with its copies.
func (e *examiner) examined(ctx context.Context, t kmsg.MetadataResponseTopic) settings {
	s := settings{inSync: 1}
	c, told := topicSettings(ctx, e.s.cl, *t.Topic)[*t.Topic]
	if !told {
		e.OK("copies", "the settings of topic %s may not be read", *t.Topic)
		return s
	}
	s.inSync, _ = strconv.Atoi(c["min.insync.replicas"])
	s.limit, _ = strconv.Atoi(c["max.message.bytes"])
	s.policy = c["cleanup.policy"]
	s.copies = 1 << 10
	for _, p := range t.Partitions {
		s.copies = min(s.copies, len(p.Replicas))
		if len(p.ISR) < s.inSync {
			e.Add(diagnosis.Problem, "copies", "kafka-topics.sh --describe --topic "+*t.Topic, "partition %d of topic %s has %d copies in sync and needs %d: nothing can be written to it", p.Partition, *t.Topic, len(p.ISR), s.inSync)
		}
	}
	e.copies("topic "+*t.Topic, s)
	return s
}

// copies says what acks=all is worth.
func (e *examiner) copies(of string, s settings) {
	switch {
	case s.copies == 0 || e.brokers == 1:
	case s.copies == 1:
		e.Add(diagnosis.Warning, "copies", "replication: 3 # in the destination; for topics that are there: kafka-reassign-partitions.sh", "%s has one copy of each partition: the loss of a broker loses events", of)
	case s.inSync == 1:
		e.Add(diagnosis.Warning, "copies", e.alter(of, "min.insync.replicas", 2), "%s has min.insync.replicas=1: an event counts as stored on one broker, and is lost with it", of)
	case s.inSync >= s.copies:
		e.Add(diagnosis.Warning, "copies", e.alter(of, "min.insync.replicas", s.copies-1), "%s has %d copies and needs all of them: it stands still while one broker is away", of, s.copies)
	}
}

// size compares the largest event with what a topic takes.
func (e *examiner) size(of string, limit int) {
	const around = 16 << 10 // headers, key and batch
	if limit >= e.s.c.MaxEvent+around {
		return
	}
	e.Add(diagnosis.Warning, "size", e.alter(of, "max.message.bytes", e.s.c.MaxEvent+around),
		"%s takes %d bytes, the largest event has %d and its headers: larger ones would be refused", of, limit, e.s.c.MaxEvent)
}

// newTopic is how a topic that is not there yet is spoken of.
const newTopic = "a new topic"

// alter is the command that sets what a topic has, or what every new one gets.
func (e *examiner) alter(of, key string, value int) string {
	to := "topics --entity-name " + strings.TrimPrefix(of, "topic ")
	if of == newTopic {
		if to = "brokers --entity-default"; key == "max.message.bytes" {
			key = "message.max.bytes"
		}
	}
	return fmt.Sprintf("kafka-configs.sh --alter --entity-type %s --add-config %s=%d", to, key, value)
}

// mayCreate reports whether the user may create any topic.
func (e *examiner) mayCreate(ctx context.Context) bool {
	req := kmsg.NewPtrDescribeClusterRequest()
	req.IncludeClusterAuthorizedOperations = true
	resp, err := req.RequestWith(ctx, e.s.cl)
	if err != nil || resp.ErrorCode != 0 {
		return false
	}
	return resp.ClusterAuthorizedOperations&(1<<int(kadm.OpCreate)) != 0
}

// may reports a right; where the brokers do not tell, it is taken to be there.
func may(t kmsg.MetadataResponseTopic, op kadm.ACLOperation) bool {
	const untold = -1 << 31
	return t.AuthorizedOperations == untold || t.AuthorizedOperations&(1<<int(op)) != 0
}

func (e *examiner) allow(topic, op string) string {
	return fmt.Sprintf("kafka-acls.sh --add --allow-principal User:%s --operation %s --topic %s", disk.Quote(e.s.user()), op, topic)
}

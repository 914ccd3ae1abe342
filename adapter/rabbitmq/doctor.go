package rabbitmq

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"regexp"
	"slices"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// Examine looks at a RabbitMQ that is delivered to, and says what it finds; the caller
// adds the Subject. It declares nothing and publishes no event: two empty messages go
// to a queue that is not there, as a broker tells only a publisher that it is blocked.
func Examine(ctx context.Context, c Config) []diagnosis.Finding {
	e := &examiner{List: diagnosis.List{Prefix: "rabbitmq: ", Otherwise: "rabbitmqctl status"}, c: c.withDefaults()}
	addrs, err := parse(c.URL)
	if err != nil {
		e.Add(diagnosis.Problem, "connection", "url: amqp://user:password@host:5672/vhost", "%v", err)
		return e.Found
	}
	s := &Sink{c: e.c, addrs: addrs}
	for _, a := range addrs {
		ses, err := s.dial(ctx, a)
		if err != nil {
			e.Failed("connection", err)
			continue
		}
		stop := context.AfterFunc(ctx, ses.cut)
		e.connection(ses, a)
		if e.ses == nil { // the first that lets us in tells of the rest
			e.ses = ses
			e.exchange()
			e.queues()
			e.alarms(ctx)
		}
		stop()
		ses.abort()
	}
	if e.c.Optional {
		e.Add(diagnosis.Warning, "mandatory", "mandatory: true", "mandatory: false: an event that no queue takes counts as delivered, and is lost")
	}
	return e.Found
}

type examiner struct {
	diagnosis.List
	c   Config
	ses *session
}

func (e *examiner) connection(ses *session, a address) {
	version, _ := ses.conn.Properties["version"].(string)
	product, _ := ses.conn.Properties["product"].(string)
	tls := "in clear"
	if a.uri.Scheme == "amqps" {
		tls = "by TLS"
	}
	e.OK("connection", "%s %s at %s, as %s in the virtual host %s, %s", product, version, ses.host, ses.user, ses.vhost, tls)
}

// try calls f with a channel of its own, and returns what the broker said against it.
func (e *examiner) try(f func(ch *amqp.Channel) error) (*amqp.Error, error) {
	ch, err := e.ses.conn.Channel()
	if err == nil {
		if err = f(ch); err == nil {
			return nil, ch.Close()
		}
	}
	var said *amqp.Error
	if errors.As(err, &said) && said.Server {
		return said, nil
	}
	return nil, err
}

// inequivalent is how a broker says what is there, to whoever declares it otherwise.
var inequivalent = regexp.MustCompile(`inequivalent arg '([^']+)' for .*: received (.*) but current is (.*)$`)

// exchange looks whether the exchange is there, and whether it outlives a restart.
func (e *examiner) exchange() {
	name, declared := e.c.Exchange, e.c.Declare != nil && e.c.Declare.Exchange != ""
	if name == "" {
		e.OK("exchange", "the default one: the routing key %s is the name of a queue", e.c.RoutingKey)
		return
	}
	said, err := e.try(func(ch *amqp.Channel) error {
		return ch.ExchangeDeclarePassive(name, amqp.ExchangeTopic, true, false, false, false, nil)
	})
	switch {
	case err != nil:
		e.Add(diagnosis.Problem, "exchange", "rabbitmqctl status", "%v", err)
		return
	case said != nil && said.Code == amqp.NotFound && declared:
		e.OK("exchange", "%s is made when the first event comes", name)
		return
	case said != nil:
		e.Add(diagnosis.Problem, "exchange", e.ses.missingExchange(name), "%s: %s", name, said.Reason)
		return
	}
	kind := amqp.ExchangeTopic
	if declared {
		kind = e.c.Declare.Exchange
	}
	// It is there, so this changes nothing, but tells where it is otherwise. Whoever may
	// not declare is not told.
	declare := func(kind string, durable bool) *amqp.Error {
		said, _ := e.try(func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare(name, kind, durable, false, false, false, nil)
		})
		return said
	}
	said = declare(kind, true)
	if m := mismatch(said, "type"); m != "" && !declared && standard(m) {
		kind = m
		said = declare(kind, true)
	}
	switch {
	case said == nil:
		e.OK("exchange", "%s is there, of type %s, durable", name, kind)
	case mismatch(said, "type") != "":
		e.Add(diagnosis.Problem, "exchange", "declare: {exchange: "+mismatch(said, "type")+"}", "%s is of type %s, and declare says %s: the destination does not open", name, mismatch(said, "type"), kind)
	case mismatch(said, "durable") != "":
		e.Add(diagnosis.Problem, "exchange", e.ses.admin("delete exchange name="+quote(name))+" # and declare it again, durable=true", "%s is not durable: after a restart of the broker it is gone with its bindings, and events wait", name)
	default:
		e.OK("exchange", "%s is there; whether it is durable cannot be seen", name)
	}
	e.OK("routing", "what is bound to %s, its alternate exchange and the limits of its queues cannot be seen by a client: rabbitmqctl list_bindings%[2]s; rabbitmqctl list_policies%[2]s", name, e.ses.in())
}

func standard(kind string) bool {
	return slices.Contains([]string{amqp.ExchangeTopic, amqp.ExchangeDirect, amqp.ExchangeFanout, amqp.ExchangeHeaders}, kind)
}

// mismatch returns the current value of what is there, if that is what the broker
// objects to.
func mismatch(said *amqp.Error, arg string) string {
	if said == nil {
		return ""
	}
	m := inequivalent.FindStringSubmatch(said.Reason)
	if m == nil || m[1] != arg {
		return ""
	}
	return word.FindString(m[3])
}

var word = regexp.MustCompile(`[A-Za-z0-9_.-]+`)

// queues looks at those that the configuration names.
func (e *examiner) queues() {
	if e.c.Declare == nil {
		if name, one := onlyQueue(e.c); one {
			e.queue(name, Queue{}, false)
		}
		return
	}
	for _, name := range slices.Sorted(maps.Keys(e.c.Declare.Queues)) {
		e.queue(name, e.c.Declare.Queues[name], true)
	}
}

func (e *examiner) queue(name string, q Queue, declared bool) {
	var there amqp.Queue
	said, err := e.try(func(ch *amqp.Channel) (err error) {
		there, err = ch.QueueDeclarePassive(name, true, false, false, false, nil)
		return err
	})
	kind := q.kind()
	switch {
	case err != nil:
		e.Add(diagnosis.Problem, "queue", "rabbitmqctl status", "%v", err)
		return
	case said != nil && said.Code == amqp.NotFound && declared:
		e.OK("queue", "%s, of type %s, is made when the first event comes", name, kind)
		e.classic(name, kind)
		return
	case said != nil:
		e.Add(diagnosis.Problem, "queue", e.ses.makeQueue(name), "%s: %s", name, said.Reason)
		return
	}
	said, _ = e.try(func(ch *amqp.Channel) error { // as with the exchange
		_, err := ch.QueueDeclare(name, true, false, false, false, q.arguments())
		return err
	})
	other := mismatch(said, amqp.QueueTypeArg)
	switch {
	case mismatch(said, "durable") != "":
		e.Add(diagnosis.Problem, "queue", e.ses.deleteQueue(name)+" # and declare it again, durable", "%s is not durable: after a restart of the broker it is gone with all events in it", name)
	case other != "" && declared:
		e.Add(diagnosis.Problem, "queue", "declare: {queues: {"+name+": {type: "+other+"}}}", "%s is of type %s, and declare says %s: the destination does not open", name, other, kind)
	case said != nil && declared && said.Code == amqp.PreconditionFailed:
		e.Add(diagnosis.Problem, "queue", e.ses.deleteQueue(name)+" # or take it out of declare", "%s differs from declare, so that the destination does not open: %s", name, said.Reason)
	case said != nil && said.Code == amqp.PreconditionFailed && other == "":
		e.limits(name, said)
	default:
		if other != "" {
			kind = other
		}
		if other == "" && said != nil {
			kind = "unknown"
		}
		e.OK("queue", "%s is there, of type %s, with %d messages and %d consumers", name, kind, there.Messages, there.Consumers)
		e.classic(name, kind)
	}
}

// limits looks at what a queue of somebody else's making has: some of it drops events.
func (e *examiner) limits(name string, said *amqp.Error) {
	m := inequivalent.FindStringSubmatch(said.Reason)
	if m == nil {
		e.OK("queue", "%s is there", name)
		return
	}
	switch m[1] {
	case "x-max-length", "x-max-length-bytes", "x-message-ttl", "x-expires", "x-overflow":
		e.Add(diagnosis.Warning, "queue", "rabbitmqctl list_queues"+e.ses.in()+" name arguments policy # then make it without, or with x-overflow: reject-publish",
			"%s has the argument %s: unless its overflow is reject-publish, the oldest events are dropped before they are consumed", name, m[1])
	default:
		e.OK("queue", "%s is there, with the argument %s", name, m[1])
	}
}

func (e *examiner) classic(name, kind string) {
	if kind == amqp.QueueTypeClassic {
		e.Add(diagnosis.Warning, "queue type", "declare: {queues: {"+name+": {type: quorum}}}", "%s is a classic queue: its events are on the disk of one node, and are lost with it", name)
	}
}

// alarms publishes to nobody: a broker that is short of something says so then.
func (e *examiner) alarms(ctx context.Context) {
	if err := e.ses.publisher(); err != nil {
		e.Add(diagnosis.Problem, "alarms", "rabbitmqctl status", "%v", err)
		return
	}
	nobody := "onewrite-doctor-" + rand.Text()
	// The broker may answer the first before it says that it is blocked; it does not
	// read the second then.
	for range 2 {
		sent, err := e.ses.ch.PublishWithDeferredConfirm("", nobody, true, false, amqp.Publishing{})
		if err != nil {
			e.Add(diagnosis.Problem, "alarms", "rabbitmqctl status", "%v", err)
			return
		}
		if !e.taken(ctx, sent.Done()) {
			return
		}
	}
	e.OK("alarms", "the broker takes messages")
}

// taken waits for the answer to a message and reports whether it came.
func (e *examiner) taken(ctx context.Context, answer <-chan struct{}) bool {
	for {
		why, change := e.ses.block()
		if why != "" {
			e.Add(diagnosis.Problem, "alarms", blockedCure(why), "the broker takes no messages, it is blocked: %s", why)
			return false
		}
		select {
		case <-answer:
			if e.ses.ch.IsClosed() {
				e.OK("alarms", "whether the broker takes messages cannot be seen: the user may not publish to the default exchange, and need not")
				return false
			}
			return true
		case <-change:
		case <-ctx.Done():
			e.Add(diagnosis.Problem, "alarms", "rabbitmqctl status", "the broker does not answer: %v", context.Cause(ctx))
			return false
		}
	}
}

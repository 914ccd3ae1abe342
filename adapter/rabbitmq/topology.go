package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// prepare declares or checks what is published to, and opens the channel that
// publishes.
func (ses *session) prepare(ctx context.Context, c Config) error {
	stop := context.AfterFunc(ctx, ses.cut)
	defer stop()
	err := ses.topology(c)
	if err == nil {
		if err = ses.publisher(); err != nil {
			err = fmt.Errorf("rabbitmq: open a channel: %w", ses.explain(err, c.Exchange))
		}
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("rabbitmq: %s does not answer: %w", ses.host, context.Cause(ctx))
	}
	return err
}

// explain adds the cure to what a call returned.
func (ses *session) explain(err error, exchange string) error {
	var e *amqp.Error
	if errors.As(err, &e) {
		return ses.gone(e, exchange)
	}
	return err
}

// topology uses a channel of its own: a refusal closes it.
func (ses *session) topology(c Config) error {
	ch, err := ses.conn.Channel()
	if err != nil {
		return fmt.Errorf("rabbitmq: open a channel: %w", ses.explain(err, c.Exchange))
	}
	if err := ses.exchange(ch, c); err != nil {
		return err
	}
	if c.Declare == nil {
		if queue, one := onlyQueue(c); one {
			if _, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil); err != nil {
				return ses.queueError(err, queue)
			}
		}
		return ch.Close()
	}
	for _, name := range slices.Sorted(maps.Keys(c.Declare.Queues)) {
		if err := ses.queue(ch, c, name); err != nil {
			return err
		}
	}
	return ch.Close()
}

func (ses *session) exchange(ch *amqp.Channel, c Config) error {
	switch {
	case c.Exchange == "": // is always there
		return nil
	case c.Declare != nil && c.Declare.Exchange != "":
		if err := ch.ExchangeDeclare(c.Exchange, c.Declare.Exchange, true, false, false, false, nil); err != nil {
			return ses.declareError(err, "exchange", c.Exchange, ses.admin("delete exchange name="+quote(c.Exchange)), c.Exchange)
		}
		return nil
	}
	if err := ch.ExchangeDeclarePassive(c.Exchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
		return fmt.Errorf("rabbitmq: the exchange %s: %w", c.Exchange, ses.explain(err, c.Exchange))
	}
	return nil
}

// queue declares one and binds it.
func (ses *session) queue(ch *amqp.Channel, c Config, name string) error {
	q := c.Declare.Queues[name]
	if _, err := ch.QueueDeclare(name, true, false, false, false, q.arguments()); err != nil {
		return ses.declareError(err, "queue", name, ses.deleteQueue(name), c.Exchange)
	}
	if c.Exchange == "" { // binds it by its name
		return nil
	}
	for _, key := range q.bindings(c.Declare.Exchange, name) {
		if err := ch.QueueBind(name, key, c.Exchange, false, nil); err != nil {
			return ses.declareError(err, "binding of the queue", name, ses.deleteQueue(name), c.Exchange)
		}
	}
	return nil
}

func (q Queue) kind() string {
	if q.Type == "" {
		return amqp.QueueTypeQuorum
	}
	return q.Type
}

// arguments are those of the declaration.
func (q Queue) arguments() amqp.Table {
	t := amqp.Table{amqp.QueueTypeArg: q.kind()}
	if q.SingleActive {
		t[amqp.SingleActiveConsumerArg] = true
	}
	return t
}

// bindings are the routing keys of a queue's bindings.
func (q Queue) bindings(exchange, name string) []string {
	if len(q.Bind) == 0 {
		switch exchange {
		case amqp.ExchangeDirect:
			return []string{name}
		case amqp.ExchangeFanout, amqp.ExchangeHeaders:
			return []string{""}
		}
		return []string{"#"}
	}
	keys := make([]string, len(q.Bind))
	for i, p := range q.Bind {
		keys[i] = pattern(p)
	}
	return keys
}

// pattern turns a pattern of topics into one of AMQP, in which # stands for any
// number of words, none included.
func pattern(p string) string {
	if p == ">" {
		return "#"
	}
	if head, ok := strings.CutSuffix(p, ".>"); ok {
		return head + ".*.#"
	}
	return p
}

// onlyQueue returns the queue that all events go to, if the configuration tells.
func onlyQueue(c Config) (name string, one bool) {
	return c.RoutingKey, c.Exchange == "" && !strings.ContainsAny(c.RoutingKey, "{}")
}

func (ses *session) deleteQueue(name string) string {
	return "rabbitmqctl delete_queue" + ses.in() + " " + quote(name)
}

// declareError explains why something could not be declared; remove is the command that
// takes it away.
func (ses *session) declareError(err error, what, name, remove, exchange string) error {
	var e *amqp.Error
	if !errors.As(err, &e) || !e.Server {
		return fmt.Errorf("rabbitmq: declare the %s %s: %w", what, name, ses.explain(err, name))
	}
	cure := "see the log of the broker"
	switch e.Code {
	case amqp.AccessRefused:
		cure = fmt.Sprintf("let the user configure it: rabbitmqctl set_permissions -p %s %s '.*' '.*' '.*'; or declare it as somebody else, and take declare out", quote(ses.vhost), quote(ses.user))
	case amqp.PreconditionFailed:
		cure = "it is there already and differs: change declare, or take it out, or delete what is there: " + remove
	case amqp.NotFound:
		cure = ses.missingExchange(exchange)
	}
	return &ended{fmt.Sprintf("rabbitmq: declare the %s %s: %s said %d %s; %s", what, name, ses.host, e.Code, e.Reason, cure), e}
}

func (ses *session) makeQueue(name string) string {
	return ses.admin("declare queue name=" + quote(name) + ` durable=true arguments='{"x-queue-type":"quorum"}'`)
}

// queueError explains why the only queue cannot be published to.
func (ses *session) queueError(err error, name string) error {
	var e *amqp.Error
	if errors.As(err, &e) && e.Server && e.Code == amqp.NotFound {
		return &ended{fmt.Sprintf("rabbitmq: %s said %d %s; make the queue: %s; or let the destination do it: declare: {queues: {%s: {type: quorum}}}",
			ses.host, e.Code, e.Reason, ses.makeQueue(name), name), e}
	}
	return fmt.Errorf("rabbitmq: the queue %s: %w", name, ses.explain(err, ""))
}

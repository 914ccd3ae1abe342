package rabbitmq

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite"
)

// refused is an answer of the broker about one event, that may change.
type refused struct{ error }

// Answered says that the other side was reached.
func (refused) Answered() bool { return true }

func (r refused) Unwrap() error { return r.error }

// failure is the error of event i, the first that is not known to be durable.
func (w *write) failure(i int) error {
	e, f := &w.events[i], &w.flights[i]
	switch {
	case f.returned != nil:
		return fmt.Errorf("rabbitmq: no queue takes event %s: the broker returned it (%d %s) from %s with the routing key %q: %w; bind a queue: %s destination=QUEUE routing_key=%s",
			e.ID, f.returned.ReplyCode, f.returned.ReplyText, exchangeName(w.c.Exchange), f.returned.RoutingKey, onewrite.ErrRejected, w.admin("declare binding source="+quote(w.c.Exchange)), quote(f.returned.RoutingKey))
	case w.lost != nil:
		return w.closedBy(i)
	}
	return refused{fmt.Errorf("rabbitmq: a queue refused event %s with the routing key %q (basic.nack): it is full and its overflow is reject-publish, or it failed; look at it: rabbitmqctl list_queues%s name messages state policy",
		e.ID, w.routingKey(e), w.in())}
}

// ended is the end of a channel or of its connection.
type ended struct {
	text  string
	cause *amqp.Error
}

func (e *ended) Error() string { return e.text }

func (e *ended) Unwrap() error { return e.cause }

var (
	sizeOf  = regexp.MustCompile(`message size (\d+)`)
	topicOf = regexp.MustCompile(`(?s)access to topic '(.*)' in exchange`)
)

// closedBy is the error of event i after the channel was closed, which the broker
// does without naming a message. What it says may tell which it was.
func (w *write) closedBy(i int) error {
	var c *amqp.Error
	if !errors.As(w.lost, &c) || !c.Server {
		return w.unknown(w.lost)
	}
	is := func(int) bool { return false }
	too := sizeOf.FindStringSubmatch(c.Reason)
	topic := topicOf.FindStringSubmatch(c.Reason)
	switch {
	case c.Code == amqp.PreconditionFailed && too != nil:
		is = func(j int) bool { return strconv.Itoa(w.flights[j].size) == too[1] }
	case c.Code == amqp.AccessRefused && topic != nil:
		is = func(j int) bool { return w.routingKey(&w.events[j]) == topic[1] }
	}
	for j := i; j < len(w.flights); j++ {
		switch {
		case !is(j):
		case j > i: // event i is to be tried without it
			return refused{fmt.Errorf("rabbitmq: event %s is in doubt, as the broker closed the channel for event %s: %s", w.events[i].ID, w.events[j].ID, c.Reason)}
		case too != nil:
			return fmt.Errorf("rabbitmq: event %s is larger than the broker takes: %s: %w; raise max_message_size in rabbitmq.conf", w.events[i].ID, c.Reason, onewrite.ErrRejected)
		default:
			return refused{fmt.Errorf("rabbitmq: the user %s may not publish with the routing key %s: %s; allow it: rabbitmqctl set_topic_permissions -p %s %s %s '.*' '.*'",
				w.user, topic[1], c.Reason, quote(w.vhost), quote(w.user), quote(w.c.Exchange))}
		}
	}
	return w.unknown(w.lost)
}

// gone makes an error of why the channel or its connection was closed; exchange is
// what it published to.
func (ses *session) gone(e *amqp.Error, exchange string) error {
	switch {
	case e == nil:
		return fmt.Errorf("the connection to %s was closed", ses.host)
	case !e.Server:
		return &ended{"the connection to " + ses.host + " broke: " + e.Reason + "; check that the broker runs: rabbitmqctl await_startup", e}
	}
	cure := "see the log of the broker"
	switch e.Code {
	case amqp.NotFound:
		cure = ses.missingExchange(exchange)
	case amqp.AccessRefused:
		cure = fmt.Sprintf("allow it: rabbitmqctl set_permissions -p %s %s '^$' %s '^$'", quote(ses.vhost), quote(ses.user), quote("^"+regexp.QuoteMeta(exchangeWord(exchange))+"$"))
	case amqp.PreconditionFailed:
		cure = "what is there differs from the configuration: change one of the two"
	case amqp.ConnectionForced:
		cure = "the broker was stopped or closed the connection: rabbitmqctl await_startup"
	case amqp.NotAllowed:
		cure = "look at the virtual host and its limits: rabbitmqctl list_vhost_limits -p " + quote(ses.vhost)
	}
	return &ended{fmt.Sprintf("%s said %d %s; %s", ses.host, e.Code, e.Reason, cure), e}
}

// admin is a command of rabbitmqadmin in the session's virtual host.
func (ses *session) admin(words string) string {
	if ses.vhost == "/" {
		return "rabbitmqadmin " + words
	}
	return "rabbitmqadmin --vhost=" + quote(ses.vhost) + " " + words
}

// in tells a command of rabbitmqctl the session's virtual host.
func (ses *session) in() string {
	if ses.vhost == "/" {
		return ""
	}
	return " -p " + quote(ses.vhost)
}

func (ses *session) missingExchange(name string) string {
	return "make the exchange: " + ses.admin("declare exchange name="+quote(name)) + " type=topic durable=true; or let the destination do it: declare: {exchange: topic}"
}

// exchangeWord is the name of an exchange in permissions.
func exchangeWord(name string) string {
	if name == "" {
		return "amq.default"
	}
	return name
}

// exchangeName names an exchange in a sentence.
func exchangeName(name string) string {
	if name == "" {
		return "the default exchange"
	}
	return "the exchange " + name
}

// quote makes a word of a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// loginError explains why a broker does not let us in.
func (ses *session) loginError(err error) error {
	var e *amqp.Error
	cure := "check the address, and that RabbitMQ answers there: rabbitmqctl status"
	switch {
	case !errors.As(err, &e):
	case errors.Is(err, amqp.ErrSASL):
		cure = "the broker offers no way to log in that the client knows: enable PLAIN in auth_mechanisms of rabbitmq.conf"
	case e.Code == amqp.AccessRefused && !e.Server, strings.Contains(e.Reason, "Login was refused"):
		cure = fmt.Sprintf("check user and password in url (guest comes in from the broker's own machine only): rabbitmqctl authenticate_user %s", quote(ses.user))
	case e.Code == amqp.NotAllowed, e.Code == amqp.AccessRefused:
		cure = fmt.Sprintf("make the virtual host and let the user in: rabbitmqctl add_vhost %[1]s && rabbitmqctl set_permissions -p %[1]s %[2]s '.*' '.*' '.*'", quote(ses.vhost), quote(ses.user))
	}
	return fmt.Errorf("rabbitmq: log in at %s as %s to the virtual host %s: %w; %s", ses.host, ses.user, ses.vhost, err, cure)
}

// tlsError explains why there is no secure connection.
func tlsError(host string, err error) error {
	cure := "check the host and the port in url"
	var (
		unknown x509.UnknownAuthorityError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &unknown):
		cure = "name the authority that signed the broker's certificate: tls: {ca: ca.pem}"
	case errors.As(err, &cert):
		cure = "renew or correct the certificate of the broker, or set tls: {server_name: NAME}"
	case errors.As(err, &record):
		cure = "the broker speaks no TLS at this port: take its TLS port, 5671 as a rule, or write amqp://"
	}
	return fmt.Errorf("rabbitmq: TLS with %s: %w; %s", host, err, cure)
}

// blockedCure is what ends an alarm.
func blockedCure(why string) string {
	switch {
	case strings.Contains(why, "memory"):
		return "free memory there, or raise its share: rabbitmqctl set_vm_memory_high_watermark 0.6"
	case strings.Contains(why, "disk"):
		return "free disk space there, or lower the limit: rabbitmqctl set_disk_free_limit 1GB"
	}
	return "see why: rabbitmqctl status"
}

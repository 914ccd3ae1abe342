// Package rabbitmq publishes events to RabbitMQ over AMQP 0-9-1.
//
// # The message
//
// An event is one persistent message in the binary mode of the CloudEvents
// binding for AMQP: each attribute is a header cloudEvents_NAME with a text, the
// body is the payload byte for byte, and datacontenttype is the property
// content_type. The binding allows the prefixes "cloudEvents_" and "cloudEvents:"
// and prefers the first, which is also the name that RabbitMQ gives to a consumer
// of AMQP 1.0 and JMS. Beside that the properties say message_id (the event's id),
// type, timestamp (in seconds; cloudEvents_time has the rest) and app_id (onewrite);
// one that is longer than the 255 bytes that AMQP allows is left out. The key is
// the header cloudEvents_partitionkey; an event without a key has none.
//
// The application's transport headers travel under their own names; those that
// RabbitMQ acts on (CC, BCC, x-...) and those that cannot be names travel as one
// JSON object in the header Onewrite-Headers. Attributes that do not fit into one
// frame make the message application/cloudevents+json, with all in its body.
//
// # The guarantee
//
// At least once, with ids that do not change: an event counts when the broker has
// confirmed it, which it does when the message is on the disk of every queue that it
// was routed to (of a quorum queue, of most of its copies). RabbitMQ has no record of
// what it took before, so what was in flight at a crash of either side comes again:
// at most the events of one Write. The inbox of the consumer, by message_id, makes
// that exactly once in effect. There is no position in the sink ([onewrite.Placed]):
// only streams with named producers keep one, which another protocol writes.
//
// Many messages are in flight at once, but never two with one key: a broker may
// return or refuse the first and take the second, which would then stand before it.
//
// # The answers
//
//	ack                        durable
//	basic.return, then ack     ErrRejected: no queue takes it. Without Mandatory it
//	                           would be lost, and counted
//	nack                       Answered() is true: a queue is full (overflow
//	                           reject-publish), or its process failed
//	406 larger than max        ErrRejected, for the event of that size
//	403 for a topic            Answered() is true, for the events of that routing key
//	403 404 406 otherwise      about exchange, queue or rights, not about the event:
//	                           an outage, with the command that mends it
//	connection.blocked         the write waits for as long as it may, and is an
//	                           outage then that says why the broker is blocked
//	a closed connection        an outage
//
// A connection is dialled when a Write finds none, never in between; the client's
// own recovery is off.
package rabbitmq

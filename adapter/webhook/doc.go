// Package webhook posts events to an HTTP endpoint: CloudEvents 1.0, signed
// after Standard Webhooks.
//
// # The request
//
// One event a POST, in the binary mode of CloudEvents: each attribute is a
// header ce-NAME with its value percent-encoded as the HTTP binding says, the
// content type is that of the data, and the body is the payload byte for byte;
// an event without data has no body and no content type. The application's
// transport headers travel under their own names; a value that no header can
// carry is percent-encoded. Those that belong to the connection or to the
// sender are left out: Host, Authorization, Proxy-*, Cookie, Expect, Connection
// and its kin, Content-Length, Content-Type, webhook-* and ce-*. Headers of the
// configuration win.
//
// With Batch all events of a Write go in one POST as
// application/cloudevents-batch+json, all or nothing.
//
// With secrets, webhook-id, webhook-timestamp and webhook-signature are there.
// Every secret signs, the signatures are a list with spaces between, the first
// secret's first: to rotate, give two secrets, change the receivers, remove the
// old. webhook-id is the event's id; for a batch of several it is made from the
// ids of all its events. A repeat has the same webhook-id.
//
// # The answers
//
//	2xx                      durable; what follows the header says nothing more
//	410                      ErrGone: the receiver wants no more events
//	401 403 404 405 407      about the endpoint, not the event: tried again for
//	                         as long as it takes, until the configuration is right
//	408 425 429              later, please: tried again
//	any other 4xx            ErrRejected: the receiver refuses this event; 409
//	                         too, as it is no promise that the event is stored
//	502 503 504              away: tried again
//	any other 5xx            tried again; Answered() is true, as the receiver may
//	                         fail on this very event
//	3xx                      redirects are not followed: set url to the final one
//	no or no whole answer    tried again
//
// Retry-After (seconds or a date, at most an hour) is heeded with 429 and 503.
// A refused batch of several events says nothing about its first: it is no
// ErrRejected, but Answered() is true, so that its events are tried alone.
//
// # What is guarded
//
// Without AllowPrivate only https goes out, and only to public addresses. Every
// connection resolves the name, looks at the address it got and connects to that
// very address, so that no name can be made to point elsewhere in between. There
// is no proxy from the environment, no redirect and no cookie. With AllowPrivate
// the addresses where clouds keep credentials stay closed.
//
// The whole exchange is bounded by Timeout, the answer's header by 64 KiB; of its
// body at most 64 KiB are read, and nothing is ever unpacked. Errors carry a line
// of the answer, at most 300 bytes, in which every run of 12 bytes that was in the
// payload, a header or a secret is masked, but for the id, topic, type and key of
// the event; of the URL they hold the host.
package webhook

// Package languages proves the examples of other languages: in examples/python,
// examples/node and examples/java there is a producer, which writes an order and
// its event in one transaction by plain SQL, and a webhook consumer, which takes
// each event once. They are to be read and copied; README.md of this folder says
// how to try them by hand.
//
// The tests run both programs of each language beside a real relay and a real
// PostgreSQL, with the rights that `onewrite migrate` grants and no others. They
// lose answers, forge, replay and cut off requests, and take the consumer's
// database away. A language that is not installed is skipped, as a missing
// server is.
package languages

// Package kafka delivers events to Apache Kafka.
//
// Of its two sinks, [Sink] writes in transactions that carry the place of the
// destination: the records of a write and a record in the topic of places are there
// together or not at all, so that what a crash leaves unconfirmed is compared with
// the place and not written again. [Idempotent] waits for all replicas in sync and
// writes unconfirmed events again.
//
// Both send a record in the binary mode of the CloudEvents Kafka binding, choose the
// partition by the murmur2 of its key, as the Java client does, and refuse to go on
// when the number of a topic's partitions changed: from then on events of one key
// would lie in two partitions, and nobody could read them in order.
//
// Neither reconnects by itself longer than some seconds: an outage is an error, and
// whoever writes tries again with a new sink.
package kafka

// Package shop is the 3 a.m. story behind `onewrite demo`, and an example to
// read: an order service and the five systems that have to learn of every order.
//
// Start at [Demo] in story.go. It tells the story twice, with the same buyers
// and the same faults. In the first act the service commits the order and then
// calls the others (naive.go); in the second it writes the order and its event
// in one transaction (service.go) and leaves the rest to onewrite. The five
// consumers are in consumer.go, the inbox that makes a repeat harmless in
// receive.go, the faults in faults.go. Who lost what is counted in count.go,
// with plain SQL, from the service's and the consumers' own stores.
//
// The files blueprint*.go are the same shop grown up, for `make shop`: PostgreSQL,
// RabbitMQ and Kafka, with a broker between onewrite and each consumer. Start at
// blueprint/onewrite.yaml, then [Blueprint].
//
// The service, the consumers and onewrite are processes of their own, so that
// they can really be killed.
package shop

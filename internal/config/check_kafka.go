package config

import (
	"fmt"
	"net"
	"regexp"
	"strings"
)

var templateField = regexp.MustCompile(`\{[^{}]*\}`)

var kafkaTopic = regexp.MustCompile(`^[A-Za-z0-9._-]{1,249}$`)

func (c *checker) kafka(path string, d Destination) {
	c.kafkaBrokers(path, d.Brokers, d.TLS)
	at := path + ".topic"
	sample := templateField.ReplaceAllString(d.Topic, "t")
	if d.Topic != "" && !kafkaTopic.MatchString(sample) || d.Topic != "" && strings.Trim(sample, ".") == "" {
		c.bad(at, c.show(at, d.Topic)+" is not a topic of Kafka",
			`write letters, digits, ., _ and - beside the fields of the event: "shop.{topic}"`)
	}
	at = path + ".places"
	switch {
	case !kafkaTopic.MatchString(d.Places) || strings.Trim(d.Places, ".") == "":
		c.bad(at, c.show(at, d.Places)+" is not a topic of Kafka", "write letters, digits, ., _ and -")
	case d.Places == d.Topic:
		c.bad(at, "is the topic of the events too", "write another one")
	}
	if d.Repartitioned == "accept" {
		c.warn(path+".repartitioned", "another number of partitions is not noticed any more", "remove it as soon as the events flow again")
	}
	if d.SASL != nil {
		c.sasl(path+".sasl", *d.SASL, d.Brokers, d.TLS)
	}
	c.registry(path, d)
}

// kafkaBus checks a cluster that is the bus.
func (c *checker) kafkaBus(path string, b Bus) {
	c.kafkaBrokers(path, b.Brokers, b.TLS)
	if b.SASL != nil {
		c.sasl(path+".sasl", *b.SASL, b.Brokers, b.TLS)
	}
}

func (c *checker) kafkaBrokers(path string, brokers []string, tls *TLS) {
	at := path + ".brokers"
	if len(brokers) == 0 && !c.broken(at) {
		c.wrong(at, "is missing", "write brokers: [kafka-1:9092, kafka-2:9092]")
	}
	far := false
	for i, b := range brokers {
		one := fmt.Sprintf("%s[%d]", at, i)
		if c.broken(one) {
			continue
		}
		host, port, err := net.SplitHostPort(b)
		if err != nil || host == "" || !goodPort(port, 1) || strings.ContainsAny(host, " /@") {
			c.bad(one, c.show(one, b)+" is not host:port", "write kafka-1:9092")
			continue
		}
		far = far || !loopback(host)
	}
	if far && tls == nil && !c.broken(path+".tls") {
		c.warn(at, "the connection to another machine is in clear text", "write tls: {} if the brokers have a listener for it")
	}
}

// sasl checks that the mechanism has what it needs, and nothing else.
func (c *checker) sasl(path string, s SASL, brokers []string, tls *TLS) {
	if s.Mechanism == "" || c.broken(path+".mechanism") {
		return
	}
	needs := map[string]bool{"user": s.Mechanism != "oauthbearer", "password": s.Mechanism != "oauthbearer", "token": s.Mechanism == "oauthbearer"}
	has := map[string]bool{"user": s.User != "", "password": !s.Password.Empty(), "token": !s.Token.Empty()}
	for _, key := range []string{"user", "password", "token"} {
		at := path + "." + key
		switch {
		case c.broken(at):
		case needs[key] && !has[key]:
			c.bad(at, "is missing: "+s.Mechanism+" needs it", "write "+key+": "+root.at("destinations.sasl").find(key).sample())
		case has[key] && !needs[key]:
			c.bad(at, "does not go with "+s.Mechanism, "remove it")
		}
	}
	if tls != nil || s.Mechanism != "plain" && s.Mechanism != "oauthbearer" {
		return
	}
	for _, b := range brokers {
		if host, _, err := net.SplitHostPort(b); err == nil && !loopback(host) {
			c.warn(path+".mechanism", s.Mechanism+" without tls shows the secret to anyone between", "write tls: {}, or a scram mechanism")
			return
		}
	}
}

package servers

import (
	"errors"
	"testing"
)

// Need ends a test that cannot have a server of LaunchKafka, [LaunchRabbitMQ] or
// [Launch]: it is skipped if that is not installed and need not be, else it fails.
// Without an error it does nothing.
func Need(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// LaunchKafka starts a broker for a program that is no test; Shutdown ends it. The
// error says how to get one that is not there.
func LaunchKafka() (*KafkaServer, error) {
	k, err := launchKafka()
	if err == nil {
		k.alone = true
	}
	return k, err
}

// Shutdown ends a broker of [LaunchKafka] and removes what it held.
func (k *KafkaServer) Shutdown() error { return k.proc.close() }

// Down ends a broker of [LaunchKafka] as SIGKILL does; Up starts it again on its ports
// and its data, and returns when it takes transactions.
func (k *KafkaServer) Down() error { return k.proc.kill() }

// Up starts a broker that is down.
func (k *KafkaServer) Up() error { return k.launch() }

// Stop ends the broker in order, as a service manager does; Start starts it again.
func (r *Rabbit) Stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.proc.terminate()
}

package servers

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

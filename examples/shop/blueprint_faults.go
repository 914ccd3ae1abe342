package shop

import "time"

// mishap is what happens when so many per cent of the buyers have been served.
type mishap struct {
	at     int
	happen func(*blueprint) error
}

// The program that carries the events is killed before, in and after the outages of
// both brokers. Whoever is killed starts again at once, but for analytics.
var mishaps = []mishap{
	{8, killed("onewrite")},
	{15, outage(rabbitMQ, "stopped", func(b *blueprint) Broker { return b.RabbitMQ })},
	{18, killed("onewrite")},
	{25, down("analytics")},
	{30, killed("service")},
	{38, killed("inventory")},
	{45, outage(kafka, "killed", func(b *blueprint) Broker { return b.Kafka })},
	{48, killed("onewrite")},
	{55, killed("fraud")},
	{62, up("analytics")},
	{70, killed("onewrite")},
	{78, killed("service")},
	{85, killed("search")},
	{92, killed("onewrite")},
}

// killed ends a process by SIGKILL and starts it again.
func killed(name string) func(*blueprint) error {
	return func(b *blueprint) error {
		if b.processes[name].kill() {
			b.made(name+" killed", 0)
		}
		b.say("%s is killed, and starts again", name)
		return b.run(name)
	}
}

// down ends a consumer by SIGKILL; up starts it again.
func down(name string) func(*blueprint) error {
	return func(b *blueprint) error {
		b.processes[name].kill()
		delete(b.processes, name)
		b.downSince = time.Now()
		b.say("%s is killed, and stays away", name)
		return nil
	}
}

func up(name string) func(*blueprint) error {
	return func(b *blueprint) error {
		b.made(name+" down", time.Since(b.downSince))
		b.say("%s is back", name)
		return b.run(name)
	}
}

// outage ends a broker and starts it again while everything else goes on.
func outage(name, how string, broker func(*blueprint) Broker) func(*blueprint) error {
	return func(b *blueprint) error {
		b.outages.Go(func() {
			begin := time.Now()
			b.say("%s is %s, and started again", name, how)
			err := broker(b).Down()
			if err == nil {
				err = broker(b).Up()
			}
			if err != nil {
				b.end(err)
				return
			}
			b.made(name+" "+how, time.Since(begin))
			b.say("%s is back", name)
		})
		return nil
	}
}

// Fault is what was done to one of the processes.
type Fault struct {
	// Times is how often it was done while it ran.
	Times int `json:"times"`
	// Seconds is how long the process was away in all, where that was long.
	Seconds float64 `json:"seconds,omitempty"`
}

// made writes down that a fault has happened.
func (b *blueprint) made(name string, away time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.faults[name]
	b.faults[name] = Fault{Times: f.Times + 1, Seconds: f.Seconds + away.Seconds()}
}

// plannedFaults are those without which a run means nothing.
var plannedFaults = []string{"onewrite killed", "service killed", rabbitMQ + " stopped", kafka + " killed",
	"analytics down", "inventory killed", "fraud killed", "search killed"}

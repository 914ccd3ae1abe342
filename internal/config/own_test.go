package config

import "testing"

// A destination cannot be the embedded bus, by whatever name.
func TestOwnBus(t *testing.T) {
	for _, c := range []struct {
		url, listen string
		own         bool
	}{
		{"nats://127.0.0.1:4222", "127.0.0.1:4222", true},
		{"nats://127.0.0.1", "127.0.0.1:4222", true},
		{"nats://localhost:4222", "127.0.0.1:4222", true},
		{"nats://127.0.0.1:4222", "localhost:4222", true},
		{"nats://127.0.0.1:4222", ":4222", true},
		{"nats://[::1]:4222", "[::]:4222", true},
		{"tls://a.example,nats://localhost:4333", "0.0.0.0:4333", true},
		{"nats://bus.example:4222", "bus.example:4222", true},
		{"nats://127.0.0.1:4223", "127.0.0.1:4222", false},
		{"nats://127.0.0.2:4222", "127.0.0.1:4222", false},
		{"nats://nats.example:4222", "0.0.0.0:4222", false},
		{"nats://10.0.0.1:4222", "127.0.0.1:4222", false},
		{"nats://127.0.0.1:4222", "127.0.0.1:0", false},
		{"nats://127.0.0.1:4222", "", false},
	} {
		k := &checker{cfg: &Config{Bus: Bus{Name: "onewrite", Listen: c.listen}}}
		k.ownBus("destinations.n.url", c.url)
		if own := len(k.problems) > 0; own != c.own {
			t.Errorf("%s while the bus listens at %q: %v", c.url, c.listen, k.problems)
		}
	}
	external := &checker{cfg: &Config{Bus: Bus{URL: NewSecret("nats://127.0.0.1:4222"), Listen: "127.0.0.1:4222"}}}
	if external.ownBus("destinations.n.url", "nats://127.0.0.1:4222"); len(external.problems) > 0 {
		t.Errorf("an external bus: %v", external.problems)
	}
}

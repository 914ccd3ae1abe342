package relay_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDamagedBus changes one bit in the folder of the bus while the relay is down:
// in an event that a destination has not got, in one that is parked, in the place
// of a destination and in the description of the log. Every event arrives all the
// same as it was committed, and the status says what happened.
func TestDamagedBus(t *testing.T) {
	for name, c := range map[string]struct{ stream, file, near string }{
		"event":       {"shop", "msgs/1.blk", "payload 55"},
		"parked":      {"parked", "msgs/1.blk", "payload 09"},
		"place":       {"state", "msgs/1.blk", "cursor.slow"},
		"description": {"shop", "meta.inf", "subjects"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWebhook(t)
			slow := dead(t, "slow")
			g := newRig(t, "", w.line("hook"), slow)
			w.refuse("00000000-0000-4000-8000-000000000010", 500)
			g.start()
			for i := range 80 {
				g.publish("order.placed", "a"[:i%2], "payload "+string(rune('0'+i/10))+string(rune('0'+i%10)), 1)
			}
			until(t, "hook to have what it takes", func() bool {
				d, _ := g.destination("hook")
				if d.Pending == 0 || d.Parked == 0 { // it is poison only while others are taken
					g.publish("order.placed", "b", "more", 1)
				}
				return d.Parked > 0 && d.Delivered > 40
			})
			g.stop()
			path := filepath.Join(g.dir, "bus", "jetstream", "$G", "streams", "onewrite-"+c.stream, filepath.FromSlash(c.file))
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.Index(data, []byte(c.near))
			if at < 0 {
				t.Fatalf("%s is not in %s", c.near, path)
			}
			data[at+4] ^= 1
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}

			w.refuse("00000000-0000-4000-8000-000000000010", 0)
			healed := newWebhook(t)
			g.write(w.line("hook"), healed.line("slow"))
			g.start()
			until(t, "slow to have all", func() bool { return slices.Equal(inOrder(once(healed.received())), g.ids) })
			until(t, "hook to have all", func() bool { return len(once(w.received())) == len(g.ids) })
			s := g.status()
			if shop := s.Sources["shop"]; shop.Gap == nil || shop.GapAt == nil || shop.GapAt.IsZero() || !strings.Contains(strings.Join(s.Warnings, "\n"), "the bus was damaged") {
				t.Errorf("gap %v, warnings %q", s.Sources["shop"].Gap, s.Warnings)
			}
		})
	}
}

// inOrder sorts ids: events without a key may overtake each other.
func inOrder(ids []string) []string {
	slices.Sort(ids)
	return ids
}

// once drops repeats.
func once(ids []string) (out []string) {
	seen := map[string]bool{}
	for _, id := range ids {
		if !seen[id] {
			out = append(out, id)
		}
		seen[id] = true
	}
	return out
}

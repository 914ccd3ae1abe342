package relay_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/pipeline"
	"github.com/onewrite/onewrite/relay"
)

// TestReload: destinations come, change and go while events flow.
func TestReload(t *testing.T) {
	g := newRig(t, "", file("one", "one.jsonl"))
	g.start()
	g.publish("order.placed", "k", "1", 5)
	until(t, "the first destination to have all", g.fileIs("one.jsonl", g.ids))
	g.reload(dashboard.Reload{})

	g.write(file("one", "one.jsonl"), file("two", "two.jsonl"), file("three", "three.jsonl"))
	g.reload(dashboard.Reload{Added: []string{"three", "two"}})
	until(t, "a new destination to get what the bus keeps", g.fileIs("two.jsonl", g.ids))
	until(t, "another one too", g.fileIs("three.jsonl", g.ids))

	g.write(file("one", "else.jsonl"), file("two", "two.jsonl"))
	g.untilCounts("three", 5, 0, 0)
	g.reload(dashboard.Reload{Changed: []string{"one"}, Removed: []string{"three"}})
	if _, ok := g.destination("three"); ok {
		t.Error("a destination that was removed is in the status")
	}
	g.publish("order.placed", "k", "2", 3)
	until(t, "a changed destination to go on where it was", g.fileIs("else.jsonl", g.ids[5:]))
	until(t, "an unchanged one to get all", g.fileIs("two.jsonl", g.ids))
	if got := g.file("three.jsonl"); len(got) != 5 {
		t.Errorf("a destination that was removed got %d events, want 5", len(got))
	}
	g.untilCounts("one", 8, 0, 0)
	until(t, "the outbox to be free", g.rowsAre(nil))

	// One that comes back after it was removed is a new one.
	g.write(file("one", "else.jsonl"), file("two", "two.jsonl"), file("three", "again.jsonl"))
	g.reload(dashboard.Reload{Added: []string{"three"}})
	until(t, "a destination that is new again to get all", g.fileIs("again.jsonl", g.ids))
}

// TestReloadOverHTTP: the command line asks this way.
func TestReloadOverHTTP(t *testing.T) {
	g := newRig(t, "", file("one", "one.jsonl"))
	g.start()
	g.write(file("one", "one.jsonl"), file("two", "two.jsonl"))
	var report dashboard.Reload
	if code, body := g.api(http.MethodPost, "/api/reload", &report); code != http.StatusOK || !slices.Equal(report.Added, []string{"two"}) {
		t.Fatalf("%d %s", code, body)
	}
	until(t, "all to be ready", func() bool { code, _ := g.api(http.MethodGet, "/readyz", nil); return code == http.StatusOK })
	g.text("sources: [")
	if code, body := g.api(http.MethodPost, "/api/reload", nil); code != http.StatusUnprocessableEntity || !strings.Contains(body, "nothing was changed") {
		t.Errorf("%d %s", code, body)
	}
}

// TestReloadNeedsRestart: what cannot change is named, the rest takes effect.
func TestReloadNeedsRestart(t *testing.T) {
	g := newRig(t, "", file("one", "one.jsonl"))
	g.start()
	g.head = "sources:\n  shop: {type: sqlite, path: other.db}\n  more: {type: sqlite, path: more.db}\nbus: {dir: elsewhere}\nlisten: 127.0.0.1:9\n"
	g.write(file("one", "one.jsonl"), file("two", "two.jsonl"))
	want := dashboard.Reload{Added: []string{"two"}, Restart: []string{"bus.dir", "listen", "sources.more", "sources.shop.path"}}
	g.reload(want)
	g.publish("order.placed", "", "1", 2)
	until(t, "the old source to be read", g.fileIs("two.jsonl", g.ids))
	want.Added = nil
	g.reload(want) // it is still so
}

// TestReloadOfABadFile changes nothing and says why.
func TestReloadOfABadFile(t *testing.T) {
	g := newRig(t, "", file("one", "one.jsonl"))
	g.start()
	for name, c := range map[string]struct{ text, says string }{
		"not YAML":      {g.head + "destinations: [", "onewrite.yaml"},
		"unknown key":   {g.head + "destinations:\n  one: {type: file, path: x, colour: red}\n", "colour"},
		"unknown type":  {g.head + "destinations:\n  two: {type: pigeon}\n", "pigeon"},
		"half good":     {g.head + "destinations:\n  two: {type: file, path: two.jsonl}\n  one: {type: webhook}\n", "url"},
		"empty":         {"", "onewrite init"},
		"not there":     {"", "no such file"},
		"no sources":    {"destinations:\n  two: {type: file, path: two.jsonl}\n", "sources"},
		"a bad pattern": {g.head + "destinations:\n  two: {type: file, path: two.jsonl, topics: [\"a..b\"]}\n", "a..b"},
	} {
		t.Run(name, func(t *testing.T) {
			g.t = t
			g.text(c.text)
			if name == "not there" {
				if err := os.Remove(g.config()); err != nil {
					t.Fatal(err)
				}
			}
			got, err := g.relay.Reload(t.Context(), nil)
			if err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("did %+v, says %v; want an error about %q", got, err, c.says)
			}
			s := g.status()
			if _, ok := s.Destinations["one"]; !ok || len(s.Destinations) != 1 {
				t.Errorf("destinations are %v", s.Destinations)
			}
			g.publish("order.placed", "", "1", 1)
			until(t, "the old configuration to go on", g.fileIs("one.jsonl", g.ids))
		})
	}
}

// TestRefusedReloadIsLogged: who reads the log may not be who asked.
func TestRefusedReloadIsLogged(t *testing.T) {
	var log bytes.Buffer
	path := filepath.Join(t.TempDir(), "onewrite.yaml")
	r := relay.New(&config.Config{}, relay.Options{ConfigPath: path, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if _, err := r.Reload(t.Context(), nil); err == nil || !strings.Contains(log.String(), "reload failed") || !strings.Contains(log.String(), "no such file") {
		t.Errorf("%v, and the log has %q", err, log.String())
	}
}

// TestReloadForget: a destination with events that it has not got goes only when
// the operator says so.
func TestReloadForget(t *testing.T) {
	bad := newWebhook(t)
	g := newRig(t, "", file("good", "good.jsonl"), dead(t, "dead"), bad.line("picky"))
	g.publish("order.placed", "", "1", 6)
	bad.refuse(g.ids[2], http.StatusUnprocessableEntity)
	g.start()
	until(t, "the others to have all", g.fileIs("good.jsonl", g.ids))
	g.untilCounts("dead", 0, 6, 0)
	g.untilCounts("picky", 5, 0, 1)

	g.write(file("good", "good.jsonl"), file("new", "new.jsonl"))
	for _, forget := range [][]string{nil, {"picky"}, {"dead"}, {"good", "nonsense"}} {
		_, err := g.relay.Reload(t.Context(), forget)
		if err == nil || !strings.Contains(err.Error(), "nothing was changed") {
			t.Fatalf("forget %v: %v", forget, err)
		}
		for _, name := range []string{"dead", "picky"} {
			if says := strings.Contains(err.Error(), "reload --forget "+name); says == slices.Contains(forget, name) {
				t.Errorf("forget %v: %v", forget, err)
			}
		}
		if _, ok := g.destination("new"); ok {
			t.Error("a refused reload added a destination")
		}
	}
	g.untilCounts("dead", 0, 6, 0)
	g.untilCounts("picky", 5, 0, 1)
	stays(t, "what is not delivered is in the outbox", g.rowsAre(g.ids))

	g.reload(dashboard.Reload{Added: []string{"new"}, Removed: []string{"dead", "picky"}}, "dead", "picky")
	if s := g.status(); len(s.Destinations) != 2 {
		t.Errorf("destinations are %v", s.Destinations)
	}
	until(t, "a new one to get all", g.fileIs("new.jsonl", g.ids))
	until(t, "the outbox to be free", g.rowsAre(nil))

	// Nothing is left of what was forgotten.
	g.stop()
	g.start()
	if s := g.status(); len(s.Destinations) != 2 {
		t.Errorf("after a restart destinations are %v", s.Destinations)
	}
	g.write(file("good", "good.jsonl"), file("new", "new.jsonl"), file("dead", "back.jsonl"), bad.line("picky"))
	g.reload(dashboard.Reload{Added: []string{"dead", "picky"}})
	until(t, "a forgotten one that comes back to begin at the beginning", g.fileIs("back.jsonl", g.ids))
}

// TestOrphan: a destination that is taken out of the file while nothing runs is
// not forgotten by that. Its events stay where they are, aloud.
func TestOrphan(t *testing.T) {
	g := newRig(t, "", file("good", "good.jsonl"), dead(t, "gone"))
	g.start()
	g.publish("order.placed", "", "1", 5)
	until(t, "the good one to have all", g.fileIs("good.jsonl", g.ids))
	g.untilCounts("gone", 0, 5, 0)
	g.stop()

	g.write(file("good", "good.jsonl"))
	g.start()
	g.publish("order.placed", "", "2", 3)
	until(t, "the good one to go on", g.fileIs("good.jsonl", g.ids))
	g.untilCounts("good", 8, 0, 0)
	g.untilCounts("gone", 0, 8, 0)
	stays(t, "the orphan holds the outbox back", g.rowsAre(g.ids))
	shown := func() bool {
		d, ok := g.destination("gone")
		return ok && d.State == pipeline.Stopped && strings.Contains(d.LastError, "onewrite reload --forget gone")
	}
	if !shown() {
		t.Errorf("the status shows %+v", g.status().Destinations)
	}
	if code, body := g.api(http.MethodGet, "/readyz", nil); code != http.StatusServiceUnavailable || !strings.Contains(body, "gone") {
		t.Errorf("/readyz: %d %s", code, body)
	}
	g.reload(dashboard.Reload{})
	g.reload(dashboard.Reload{}, "good") // it is in the file: nothing to forget
	if !shown() || !g.rowsAre(g.ids)() {
		t.Error("the orphan went without having been named")
	}
	g.reload(dashboard.Reload{}, "gone")
	if _, ok := g.destination("gone"); ok {
		t.Error("a forgotten orphan is still in the status")
	}
	until(t, "the outbox to be free", g.rowsAre(nil))
	if d, _ := g.destination("good"); d.Delivered != 8 || len(g.file("good.jsonl")) != 8 {
		t.Errorf("the good one is %+v", d)
	}
}

// TestOrphanComesBack: put back into the file, it goes on where it was.
func TestOrphanComesBack(t *testing.T) {
	g := newRig(t, "", file("good", "good.jsonl"), file("gone", "gone.jsonl"))
	g.start()
	g.publish("order.placed", "", "1", 3)
	g.untilCounts("gone", 3, 0, 0)
	g.stop()
	g.write(file("good", "good.jsonl"))
	g.start()
	g.publish("order.placed", "", "2", 2)
	g.untilCounts("good", 5, 0, 0)
	g.write(file("good", "good.jsonl"), file("gone", "gone.jsonl"))
	g.reload(dashboard.Reload{Added: []string{"gone"}})
	until(t, "it to go on where it was", g.fileIs("gone.jsonl", g.ids))
	g.untilCounts("gone", 5, 0, 0)
	until(t, "the outbox to be free", g.rowsAre(nil))
}

// TestOrphanWithParkedEvents: the row of a parked event stays, whether its
// destination is in the file or not.
func TestOrphanWithParkedEvents(t *testing.T) {
	bad := newWebhook(t)
	g := newRig(t, "", file("good", "good.jsonl"), bad.line("picky"))
	g.start()
	g.publish("order.placed", "", "1", 1)
	g.untilCounts("picky", 1, 0, 0)
	bad.refuse(g.nextID(), http.StatusUnprocessableEntity)
	g.publish("order.placed", "", "1", 3)
	g.untilCounts("picky", 3, 0, 1)
	until(t, "what is before the parked event to go", g.rowsAre(g.ids[1:]))
	g.stop()
	g.write(file("good", "good.jsonl"))
	g.start()
	g.untilCounts("good", 4, 0, 0)
	g.untilCounts("picky", 3, 0, 1)
	list, err := g.relay.Parked(t.Context(), "picky", 0, 9)
	if err != nil || len(list) != 1 || list[0].Message.ID != g.ids[1] {
		t.Errorf("parked: %+v, %v", list, err)
	}
	if err := g.relay.Skip(t.Context(), "picky", list[0].Ref); err == nil || !strings.Contains(err.Error(), "put it back") {
		t.Errorf("skip: %v", err)
	}
	stays(t, "the row of the parked event is there", func() bool { return slices.Contains(g.rows(), g.ids[1]) })
	if did, err := g.relay.Reload(t.Context(), []string{"picky"}); err != nil || did.Dropped["picky"] != (dashboard.Dropped{Parked: 1}) {
		t.Errorf("reload did %+v, %v", did, err)
	}
	until(t, "the outbox to be free", g.rowsAre(nil))
}

// TestReloadStartsWhatStopped: once the receiver is back, a reload is enough.
func TestReloadStartsWhatStopped(t *testing.T) {
	hook := newWebhook(t)
	g := newRig(t, "", hook.line("hook"), file("other", "other.jsonl"))
	hook.refuse(g.nextID(), http.StatusGone)
	g.start()
	g.publish("order.placed", "", "1", 2)
	until(t, "it to stop", func() bool { d, _ := g.destination("hook"); return d.State == pipeline.Stopped })
	if d, _ := g.destination("hook"); !strings.Contains(d.LastError, "onewrite reload") {
		t.Errorf("the cure is missing: %s", d.LastError)
	}
	if not := g.relay.NotReady(t.Context()); len(not) != 1 || !strings.HasPrefix(not[0], "destination hook: stopped: webhook: ") {
		t.Errorf("not ready: %q", not)
	}
	hook.refuse("00000000-0000-4000-8000-000000000001", 0)
	r, err := g.relay.Reload(t.Context(), nil)
	if err != nil || !slices.Equal(r.Started, []string{"hook"}) {
		t.Fatalf("%+v, %v", r, err)
	}
	g.untilCounts("hook", 2, 0, 0)
	if r, err := g.relay.Reload(t.Context(), nil); err != nil || len(r.Started) > 0 {
		t.Errorf("again: %+v, %v", r, err)
	}
}

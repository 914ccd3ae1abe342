package relay_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/pipeline"
	"github.com/onewrite/onewrite/relay"
)

// TestForgetWithTwoCopies: a standby on an external bus leaves the places of the
// destinations that it loses to the copy that delivers, and that one, which is reloaded
// after it, says what would have become of the other order.
func TestForgetWithTwoCopies(t *testing.T) {
	t.Run("nats", func(t *testing.T) { forgetWithTwoCopies(t, "url: \""+natsServer(t)+"\"") })
	t.Run("kafka", func(t *testing.T) {
		forgetWithTwoCopies(t, "type: kafka, brokers: [\""+servers.Kafka(t).Addr()+"\"], name: copies")
	})
}

func forgetWithTwoCopies(t *testing.T, bus string) {
	hook, bad := newWebhook(t), newWebhook(t)
	g := newRig(t, "", file("good", "good.jsonl"), hook.line("hook"), bad.line("picky"))
	g.head = strings.Replace(g.head, "bus: {dir: bus}", "bus: {"+bus+"}", 1)
	g.write(file("good", "good.jsonl"), hook.line("hook"), bad.line("picky"))
	g.publish("order.placed", "", "1", 4)
	bad.refuse(g.ids[2], http.StatusUnprocessableEntity)
	g.start()
	g.untilCounts("hook", 4, 0, 0)
	g.untilCounts("picky", 3, 0, 1)

	standby := relay.New(g.load(), relay.Options{ConfigPath: g.config()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- standby.Run(ctx) }()
	defer func() { cancel(); <-done }()
	until(t, "the other copy stands by", func() bool {
		all := standby.Status(ctx).Destinations
		return len(all) == 3 && !slices.ContainsFunc([]string{"hook", "picky"}, func(name string) bool {
			return all[name].Epoch != 0 || !strings.Contains(all[name].LastError, "another copy")
		})
	})

	g.write(file("good", "good.jsonl"))
	report, err := standby.Reload(t.Context(), nil)
	if err != nil || !slices.Equal(report.Removed, []string{"hook", "picky"}) || len(report.Warnings) != 2 || !strings.Contains(report.Warnings[1], "onewrite reload --forget picky") {
		t.Fatalf("the standby: %+v, %v", report, err)
	}
	if s := standby.Status(ctx).Destinations["hook"]; s.State != pipeline.Stopped {
		t.Errorf("on the standby it is %+v", s)
	}
	g.publish("order.placed", "", "2", 2)
	g.untilCounts("hook", 6, 0, 0)
	g.untilCounts("picky", 5, 0, 1)
	until(t, "the standby to show what another copy delivers", func() bool {
		d := standby.Status(ctx).Destinations["picky"]
		return !d.Unknown && d.Delivered == 5 && d.Pending == 0 && d.Parked == 1
	})
	if list, err := standby.Parked(ctx, "picky", 0, 9); err != nil || len(list) != 1 || list[0].Message.ID != g.ids[2] {
		t.Errorf("parked: %+v, %v", list, err)
	}

	report, err = g.relay.Reload(t.Context(), []string{"picky"})
	if report.Dropped["picky"] != (dashboard.Dropped{Parked: 1}) {
		t.Errorf("what went: %+v", report.Dropped)
	}
	if err != nil || len(report.Warnings) != 2 || !strings.Contains(strings.Join(report.Warnings, "\n"), "destination picky is forgotten; a copy on this bus that still has it") {
		t.Fatalf("the copy that delivers: %+v, %v", report, err)
	}
	stays(t, "nothing comes again", func() bool { return len(hook.received()) == len(g.ids) })
	g.reload(dashboard.Reload{})
}

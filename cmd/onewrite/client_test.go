package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/pipeline"
)

// The status is for people who copy it: no line ends in spaces, its tables stand in the
// same columns, and an embedded instance without a version has a name.
func TestPrintStatus(t *testing.T) {
	var b strings.Builder
	printStatus(&b, dashboard.Status{
		PID: 7, Sources: map[string]dashboard.Source{"app": {State: "ok", Events: 3}},
		Destinations: map[string]dashboard.Destination{"a-long-name": {State: "ok", Delivered: 3}},
	})
	lines := strings.Split(b.String(), "\n")
	if !strings.HasPrefix(lines[0], "onewrite (embedded), pid 7, up ") {
		t.Errorf("%q", lines[0])
	}
	empty := 0
	for _, line := range lines[:len(lines)-1] {
		if strings.TrimRight(line, " ") != line {
			t.Errorf("%q ends in spaces", line)
		}
		if line == "" {
			empty++
		}
	}
	if empty != 2 || strings.Index(lines[3], "STATE") != strings.Index(lines[6], "STATE") {
		t.Errorf("\n%s", b.String())
	}
}

// A gap that was healed is no gap of now: it has its time.
func TestPrintStatusOfAHealedGap(t *testing.T) {
	gap, at := "an old gap", time.Date(2026, 3, 2, 4, 5, 6, 0, time.Local)
	for state, want := range map[pipeline.State]string{
		pipeline.OK: "gap at 2026-03-02 04:05:06, reading went on: an old gap\n", pipeline.CatchingUp: "gap at 2026-03-02 04:05:06, reading went on: an old gap\n",
		pipeline.InGap: "gap: an old gap\n", pipeline.Waiting: "gap: an old gap\n", pipeline.Stopped: "gap: an old gap\n",
	} {
		var b strings.Builder
		printStatus(&b, dashboard.Status{Sources: map[string]dashboard.Source{"app": {State: state, Gap: &gap, GapAt: &at}}})
		if !strings.HasSuffix(b.String(), "\nsource app: "+want) {
			t.Errorf("%s: %s", state, b.String())
		}
	}
}

// What is wrong now is shown beside a gap that was healed long ago, and once.
func TestPrintStatusOfAnError(t *testing.T) {
	gap := "an old gap"
	for now, want := range map[string]string{"": "\nsource app: gap: an old gap\n", "no server": "\nsource app: gap: an old gap\n\nsource app: no server\n", gap: "\nsource app: gap: an old gap\n"} {
		var b strings.Builder
		printStatus(&b, dashboard.Status{Sources: map[string]dashboard.Source{"app": {State: "waiting", Gap: &gap, LastError: now}}})
		if !strings.HasSuffix(b.String(), want) || strings.Count(b.String(), "source app") != strings.Count(want, "source app") {
			t.Errorf("%q: %s", now, b.String())
		}
	}
}

// What is not known is no 0, in text and in JSON.
func TestPrintStatusUnknown(t *testing.T) {
	d := dashboard.Destination{State: "waiting", Unknown: true, LastError: "a <b> & c"}
	var b strings.Builder
	printStatus(&b, dashboard.Status{Destinations: map[string]dashboard.Destination{"hook": d}})
	if !strings.Contains(b.String(), "hook         waiting  ?          ?        ?       ?\n") {
		t.Errorf("shown as\n%s", b.String())
	}
	b.Reset()
	if err := printJSON(&b, d); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"delivered": null`, `"pending": null`, `"lag_seconds": null`, `"unknown": true`, `"a <b> & c"`} {
		if strings.Count(b.String(), strings.SplitAfter(want, ":")[0]) != 1 && strings.Contains(want, ":") || !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
	var back dashboard.Destination
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil || back != d {
		t.Errorf("read back as %+v, %v", back, err)
	}
}

func TestPrintReload(t *testing.T) {
	var b strings.Builder
	printReload(&b, dashboard.Reload{Removed: []string{"hook"}, Forgotten: []string{"old"}, Dropped: map[string]dashboard.Dropped{"hook": {Pending: 5, Parked: 1}, "old": {}}})
	for _, want := range []string{"removed hook, and with it 5 pending and 1 parked events\n", "forgot old\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

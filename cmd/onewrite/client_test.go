package main

import (
	"strings"
	"testing"

	"github.com/onewrite/onewrite/dashboard"
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

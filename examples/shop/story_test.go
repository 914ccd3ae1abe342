package shop

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

func runDemo(t *testing.T, o Options) (Report, string) {
	t.Helper()
	var out bytes.Buffer
	o.Out = &out
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	r, err := Demo(ctx, o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return r, out.String()
}

func testBinary(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// TestStory runs the demo with the honest stand-in.
func TestStory(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	t.Setenv("TMP", temp)
	r, out := runDemo(t, Options{Orders: 300, Self: testBinary(t)})
	t.Log(out)
	if err := r.Verdict(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(temp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind in the temporary folder: %v %v", left, err)
	}
}

// TestPlantedBugs: a relay with a bug makes the demo fail, and say why.
func TestPlantedBugs(t *testing.T) {
	for plant, sign := range map[string]func(Tally) bool{
		"no retry":            func(s Tally) bool { return s.Missing > 0 },
		"ack before delivery": func(s Tally) bool { return s.Missing > 0 },
		"no order":            func(s Tally) bool { return s.OutOfOrder > 0 },
		"new id for each try": func(s Tally) bool { return s.Doubled > 0 && s.WrongTotals > 0 },
		"repaired body":       func(s Tally) bool { return s.Phantom > 0 },
	} {
		t.Run(plant, func(t *testing.T) {
			t.Setenv(plantVariable, plant)
			var r Report
			var out string
			// What a bug does depends on where the kills hit: it must show in one
			// run of three.
			for range 3 {
				r, out = runDemo(t, Options{Dir: t.TempDir(), Orders: 200, Self: testBinary(t), JSON: true, patience: 3 * time.Second})
				if err := r.Verdict(); sign(r.Onewrite.sum()) && err != nil && strings.Contains(err.Error(), "act two") {
					break
				}
			}
			if !sign(r.Onewrite.sum()) {
				t.Errorf("not noticed: %+v", r.Onewrite)
			}
			if err := r.Verdict(); err == nil || !strings.Contains(err.Error(), "act two") {
				t.Errorf("the report says %v", err)
			}
			if out != "" {
				t.Errorf("with JSON, Demo printed\n%s", out)
			}
		})
	}
}

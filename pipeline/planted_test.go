package pipeline_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlantedBugs shows that the simulation can fail: each bug, planted in the
// real code under the build tag owbug, is caught by one of the laws it breaks.
func TestPlantedBugs(t *testing.T) {
	bugs := map[string]string{
		"":                  "", // the same build without a bug passes
		"ack-early":         "I9",
		"skip-batch":        "I1",
		"max-floor":         "I10",
		"parallel-key":      "I3",
		"ignore-fence":      "I14 I3 I9 I10",
		"followers-flow":    "I3",
		"no-last-commit":    "I7",
		"short-write":       "I1 I10",
		"new-id":            "I2",
		"cursor-early":      "I10",
		"probe-failed-only": "I1 I14",
		"count-outage":      "I13",
		"followers-lost":    "I3",
	}
	bin := filepath.Join(t.TempDir(), "sim.test")
	build := exec.Command("go", "test", "-c", "-tags", "owbug", "-o", bin, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for bug, laws := range bugs {
		t.Run("bug="+bug, func(t *testing.T) {
			// It ends with the first that catches the bug, for the rarest about the
			// 900th on average.
			seeds := "20000"
			if bug == "" {
				seeds = "300"
			}
			cmd := exec.Command(bin, "-test.run", "TestSimulation$", "-sim.seeds="+seeds, "-test.timeout=5m")
			cmd.Env = append(os.Environ(), "OW_BUG="+bug)
			out, err := cmd.CombinedOutput()
			if bug == "" {
				if err != nil {
					t.Errorf("fails without a bug: %s", out)
				}
				return
			}
			if err == nil {
				t.Fatal("not caught in 20,000 seeds")
			}
			for _, law := range strings.Fields(laws) {
				if strings.Contains(string(out), ": "+law+": ") {
					return
				}
			}
			t.Errorf("caught, but by none of %s:\n%.2000s", laws, out)
		})
	}
}

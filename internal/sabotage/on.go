//go:build owbug

package sabotage

import (
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bug names the planted bug of this run.
var Bug = os.Getenv("OW_BUG")

// stall is how long a point stalls, late how long it does before it kills, so that
// what others do at the same time is done, and failures how often it fails in a row.
const (
	stall    = 3 * time.Second
	late     = 300 * time.Millisecond
	failures = 3
)

var (
	name, action, first = plan(os.Getenv("OW_POINT"))

	mu     sync.Mutex
	visits = map[string]int{}
)

func plan(text string) (name, action string, first int) {
	if text == "count" {
		return "", text, 0
	}
	name, rest, _ := strings.Cut(text, ":")
	action, n, _ := strings.Cut(rest, "@")
	first, _ = strconv.Atoi(n)
	return name, action, max(first, 1)
}

// At is a fail point: what the environment wants of it happens here.
func At(point string) error {
	if action == "" || name != "" && name != point {
		return nil
	}
	mu.Lock()
	visits[point]++
	n := visits[point]
	mu.Unlock()
	switch {
	case action == "count":
		if bits.OnesCount(uint(n)) == 1 {
			prove(point, n)
		}
	case (action == "kill" || action == "late-kill") && n == first:
		prove(point, n)
		if action == "late-kill" {
			time.Sleep(late)
		}
		if self, err := os.FindProcess(os.Getpid()); err == nil {
			_ = self.Kill()
		}
		select {} // until it has arrived
	case action == "error" && n >= first && n < first+failures:
		prove(point, n)
		return fmt.Errorf("sabotage: %s fails on purpose", point)
	case action == "stall" && n == first:
		prove(point, n)
		time.Sleep(stall)
	}
	return nil
}

// prove notes what happens before it does.
func prove(point string, n int) {
	f, err := os.OpenFile(os.Getenv("OW_PROOF"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(f, "%s %s %d\n", point, action, n)
	_ = f.Close()
}

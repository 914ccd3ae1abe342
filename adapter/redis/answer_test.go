package redis

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
)

// TestExplain types what servers say that a test cannot easily make them say, in
// the words of their sources.
func TestExplain(t *testing.T) {
	for text, want := range map[string]string{
		"LOADING Redis is loading the dataset in memory":                                         "later",
		"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": "later",
		"CLUSTERDOWN The cluster is down":                                                        "outage",
		"CLUSTERDOWN Hash slot not served":                                                       "outage",
		"MOVED 3999 127.0.0.1:6381":                                                              "outage",
		"ASK 3999 127.0.0.1:6381":                                                                "outage",
		"TRYAGAIN Multiple keys request during rehashing of slot":                                "outage",
		"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.":       "outage",
		"OOM command not allowed when used memory > 'maxmemory'.":                                "outage",
		"READONLY You can't write against a read only replica.":                                  "outage",
		"MISCONF Errors writing to the AOF file: No space left on device":                        "outage",
		"NOREPLICAS Not enough good replicas to write.":                                          "outage",
		"NOAUTH Authentication required.":                                                        "outage",
		"failed to authenticate: WRONGPASS invalid username-password pair or user is disabled.":  "outage",
		"ERR max number of clients reached":                                                      "outage",
		"ERR unknown command 'EVALSHA', with args beginning with: 'x'":                           "outage",
		"ERR something that nobody thought of":                                                   "outage",
		"NOPERM No permissions to access a key":                                                  "answered",
		"CROSSSLOT Keys in request don't hash to the same slot":                                  "answered",
		"WRONGTYPE Operation against a key holding the wrong kind of value":                      "rejected",
		"ERR value is not an integer or out of range":                                            "rejected",
		"ERR invalid expire time in 'set' command":                                               "rejected",
	} {
		err := explain("event e1", answered(text))
		var f *failure
		got := "outage"
		switch {
		case errors.Is(err, onewrite.ErrRejected):
			got = "rejected"
		case !errors.As(err, &f):
			got = "not typed"
		case f.Answered():
			got = "answered"
		case f.RetryAfter() > 0:
			got = "later"
		}
		_, cure, _ := strings.Cut(err.Error(), "; ")
		if got != want || !strings.Contains(err.Error(), "event e1: "+strings.TrimPrefix(text, "failed to authenticate: ")[:8]) && !strings.Contains(err.Error(), text) || cure == "" {
			t.Errorf("%s: %s, want %s: %v", text, got, want, err)
		}
		if f = nil; errors.As(unanswered(err), &f) && f.Answered() {
			t.Errorf("%s: still answered", text)
		}
	}
	if err := explain("x", io.EOF); !errors.Is(err, io.EOF) || isKnown(err) {
		t.Errorf("a lost connection is told as %v", err)
	}
	for text, want := range map[string]string{"MOVED 1 10.0.0.1:7000": "10.0.0.1:7000", "MOVED 1 :7001": "127.0.0.1:7001", "MOVED 1 [::1]:7002": "[::1]:7002", "ASK 1 a:1": "", "OOM": ""} {
		if got := movedTo(answered(text), "127.0.0.1:6379"); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

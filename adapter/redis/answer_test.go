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
	set, err := read(Config{URL: "redis://10.0.0.7:6390/0", User: "one write", Password: "x", Destination: "d", Stream: "events:{topic}"})
	if err != nil {
		t.Fatal(err)
	}
	l := newLink(set, "10.0.0.7:6390")
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
		"ERR DB index is out of range":                                                           "outage",
		"NOPERM No permissions to access a key":                                                  "answered",
		"CROSSSLOT Keys in request don't hash to the same slot":                                  "answered",
		"WRONGTYPE Operation against a key holding the wrong kind of value":                      "rejected",
		"ERR value is not an integer or out of range":                                            "rejected",
		"ERR invalid expire time in 'set' command":                                               "rejected",
	} {
		err := l.explain("event e1", answered(text))
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
		command := strings.ReplaceAll(cure, "redis-cli --cluster check 10.0.0.7:6390", "")
		if strings.ContainsAny(command, "<>") || strings.Contains(strings.ReplaceAll(command, "redis-cli -u redis://10.0.0.7:6390 ", ""), "redis-cli") || strings.Contains(strings.ReplaceAll(command, "'+config|get'", ""), "|") {
			t.Errorf("%s: a shell cannot take %s", text, cure)
		}
		if f = nil; errors.As(unanswered(err), &f) && f.Answered() {
			t.Errorf("%s: still answered", text)
		}
	}
	if err := l.explain("x", io.EOF); !errors.Is(err, io.EOF) || isKnown(err) {
		t.Errorf("a lost connection is told as %v", err)
	}
	for text, want := range map[string]string{"MOVED 1 10.0.0.1:7000": "10.0.0.1:7000", "MOVED 1 :7001": "127.0.0.1:7001", "MOVED 1 [::1]:7002": "[::1]:7002", "ASK 1 a:1": "", "OOM": ""} {
		if got := movedTo(answered(text), "127.0.0.1:6379"); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// TestCures: they name the server and the user, so that they can be copied.
func TestCures(t *testing.T) {
	stream, err := read(Config{URL: "rediss://10.0.0.7:6390/0", User: "one write", Password: "x", Destination: "d", Stream: "events:{topic}"})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := read(Config{URL: "redis://10.0.0.7:6390/0", Destination: "d", Commands: []string{"DEL order:{key}", "SET x {data}"}})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"WRONGPASS x":                  "redis-cli -u rediss://10.0.0.7:6390 ACL GETUSER 'one write'",
		"NOPERM x":                     "redis-cli -u rediss://10.0.0.7:6390 ACL SETUSER 'one write' '~events:*' '~onewrite:*' +@connection +info '+config|get' ",
		"CLUSTERDOWN x":                "redis-cli --cluster check 10.0.0.7:6390",
		"ERR DB index is out of range": "redis-cli -u rediss://10.0.0.7:6390 CONFIG GET databases",
	} {
		if err := newLink(stream, "10.0.0.7:6390").explain("x", answered(text)); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: no %s in: %v", text, want, err)
		}
	}
	if err := newLink(cache, "10.0.0.7:6390").explain("x", answered("NOPERM x")); !strings.HasSuffix(err.Error(), "redis-cli -u redis://10.0.0.7:6390 ACL SETUSER default '~*' +del +set") {
		t.Errorf("%v", err)
	}
}

package kafka

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// TestNotReady: a cluster that was just started is asked again, and is not told that it
// lacks an ACL.
func TestNotReady(t *testing.T) {
	left := 2
	state, err := patiently(t.Context(), time.Minute, func() (string, error) {
		if left--; left >= 0 {
			return "", kerr.CoordinatorNotAvailable
		}
		return "Empty", nil
	})
	if state != "Empty" || err != nil {
		t.Errorf("%q, %v", state, err)
	}
	asked := 0
	if _, err := patiently(t.Context(), time.Minute, func() (string, error) { asked++; return "", kerr.TransactionalIDAuthorizationFailed }); asked != 1 || err == nil {
		t.Errorf("asked %d times, %v", asked, err)
	}
	never := func() (string, error) { return "", kerr.CoordinatorNotAvailable }
	_, err = patiently(t.Context(), 0, never)
	for err, want := range map[error][2]string{
		err:                                     {"warning: the brokers are not ready yet", "kafka-topics.sh --bootstrap-server k:1 --describe --topic __transaction_state"},
		kerr.TransactionalIDAuthorizationFailed: {"problem: ", "kafka-acls.sh --bootstrap-server k:1 --add --allow-principal User:ANONYMOUS "},
		kerr.InvalidRequest:                     {"problem: ", "look into the log"},
		errors.New("whatever"):                  {"problem: ", "look into the log"},
	} {
		e := &examiner{s: &core{c: Config{Brokers: []string{"k:1"}}}}
		e.coordinator("id", "", err)
		f := e.Found[0]
		severity, text, _ := strings.Cut(want[0], ": ")
		if f.Severity.String() != severity || !strings.Contains(f.Text, text) || !strings.Contains(f.Cure, want[1]) || (f.Severity == diagnosis.Problem) == strings.Contains(f.Text, "not ready") {
			t.Errorf("%v: %+v", err, f)
		}
	}
}

package schemas

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/onewrite/onewrite"
)

// answered is an answer of the registry about one event, that a person can change.
type answered struct{ error }

// Answered says that the registry was reached.
func (answered) Answered() bool { return true }

func (a answered) Unwrap() error { return a.error }

// refused is an event that no schema takes.
type refused struct{ err error }

func (r refused) Error() string { return r.err.Error() }

func (r refused) Unwrap() []error { return []error{r.err, onewrite.ErrRejected} }

// refuse makes an error that is [onewrite.ErrRejected], and ends with its cure.
func refuse(format string, args ...any) error { return refused{fmt.Errorf(format, args...)} }

// outage reports whether an error says nothing about an event.
func outage(err error) bool {
	var a answered
	return !errors.Is(err, onewrite.ErrRejected) && !errors.As(err, &a)
}

// notFound reports whether the registry says that it has no such subject, or no version
// of it. Another 404 is one of a wrong address.
func notFound(err error) bool {
	var re *sr.ResponseError
	return errors.As(err, &re) && re.StatusCode == http.StatusNotFound && (re.ErrorCode == 40401 || re.ErrorCode == 40402)
}

// none says that nobody has registered a schema.
func (e *Encoder) none(name string, p *payload) error {
	if p.row != nil {
		return answered{fmt.Errorf("schema registry: subject %s has no schema, and none is registered (register: false); register one, as onewrite check --event FILE shows it, or write registry: {register: true}", name)}
	}
	return answered{fmt.Errorf("schema registry: subject %s has no schema, and none follows from an event that is no row change; register one: %s", name, e.curl("POST", "/subjects/"+name+"/versions", "@schema.json"))}
}

// curl is a command for the person on call. The password stays theirs.
func (e *Encoder) curl(method, path, body string) string {
	user := ""
	if e.c.User != "" {
		user = " -u " + e.c.User
	}
	return fmt.Sprintf("curl%s -X %s -H 'Content-Type: application/vnd.schemaregistry.v1+json' -d '%s' %s%s", user, method, body, strings.TrimRight(e.c.URLs[0], "/"), path)
}

// told gives an error of the registry its type and its cure.
func (e *Encoder) told(err error, name string) error {
	var re *sr.ResponseError
	if !errors.As(err, &re) {
		return fmt.Errorf("schema registry: %w; events wait; see that it runs: curl %s/subjects", err, strings.TrimRight(e.c.URLs[0], "/"))
	}
	said := clipTo(err.Error(), 900)
	of := ""
	if name != "" {
		of = "subject " + name + ": "
	}
	at := fmt.Sprintf("schema registry: %s%d: %s", of, re.StatusCode, said)
	switch code := re.StatusCode; {
	case code == http.StatusConflict:
		return refuse("%s; give the column a type that readers of the old one can take, or let the subject take any once: %s (Apicurio needs it for all: /config alone), retry the event, and set it back", at, e.curl("PUT", "/config/"+name, `{"compatibility":"NONE"}`))
	case code == http.StatusUnprocessableEntity:
		return refuse("%s; see whether the registry takes new versions: curl %s/mode, or register a schema by hand and write registry: {register: false}", at, strings.TrimRight(e.c.URLs[0], "/"))
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%s; events wait; compare registry: user and password in the destination", at)
	case code == http.StatusForbidden:
		return answered{fmt.Errorf("%s; allow the user %q to read and register versions of this subject, or write registry: {register: false}", at, e.c.User)}
	case code == http.StatusNotFound, code == http.StatusMethodNotAllowed:
		return fmt.Errorf("%s; events wait; see that registry: url is the root of Confluent's API: curl %s/subjects", at, strings.TrimRight(e.c.URLs[0], "/"))
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code < 400, code >= 500:
		return fmt.Errorf("%s; events wait; see the registry's log", at)
	}
	return answered{fmt.Errorf("%s; see the registry's log", at)}
}

// clipTo shortens what a registry says.
func clipTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

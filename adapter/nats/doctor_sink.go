package nats

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/disk"
	"github.com/onewrite/onewrite/internal/topics"
)

// ExamineSink looks at a NATS that is delivered to, and says what it finds; the
// caller adds the Subject. It publishes nothing. topics are the patterns that the
// destination wants.
func ExamineSink(ctx context.Context, c SinkConfig, topics []string) []diagnosis.Finding {
	e := &examiner{List: diagnosis.List{Prefix: "nats: ", Otherwise: "onewrite check"}, now: time.Now, tls: c.TLS}
	if c.Name == "" {
		c.Name = defaultName
	}
	if c.Subject == "" {
		c.Subject = "{topic}"
	}
	if !e.connect(&Config{URL: c.URL, Name: c.Name, Creds: c.Creds, NKey: c.NKey, User: c.User, Password: c.Password, TLS: c.TLS}) {
		return e.Found
	}
	defer e.link.close()
	w := e.denied.watch(ctx)
	defer e.denied.forget(w)
	e.OK("version", "nats-server %s", e.nc.ConnectedServerVersion())
	if room := int(e.nc.MaxPayload()); c.MaxEvent > 0 && room < c.MaxEvent+maxHeader {
		e.Add(diagnosis.Warning, "max_payload", fmt.Sprintf("max_payload: %d # in the server's configuration, then: nats-server --signal reload", c.MaxEvent+maxHeader),
			"the server takes messages of %s, and max_event is %s, with up to %s of attributes: larger ones are parked", disk.Bytes(int64(room)), disk.Bytes(int64(c.MaxEvent)), disk.Bytes(int64(maxHeader)))
	}
	wants, exact := subjectsOf(c.Subject, topics)
	if e.reserved(c.Reserved, wants) {
		return e.Found
	}
	e.publishes(ctx, wants)
	if c.Core {
		e.OK("streams", "jetstream: false: what nobody listens to is lost, as configured")
		return e.Found
	}
	if js, err := e.link.jetStream(); err == nil && e.mayAsk(ctx, js, w, wants) && e.account(ctx, js) != nil {
		e.listeners(ctx, js, wants, exact)
	}
	return e.Found
}

// mayAsk reports whether the user may ask for streams. To deliver it need not, and then
// the first event tells what cannot be seen; but it has to hear what streams answer.
func (e *examiner) mayAsk(ctx context.Context, js jetstream.JetStream, w *watch, wants []string) bool {
	mute := w.refuses(ctx, "$JS.API.INFO", func(ctx context.Context) { _, _ = js.AccountInfo(ctx) }) ||
		w.refuses(ctx, "$JS.API.STREAM.LIST", func(ctx context.Context) {
			list := js.ListStreams(ctx, jetstream.WithStreamListSubject(wants[0]))
			for range list.Info() { //nolint:revive // all that matters is whether it is answered
			}
		})
	switch {
	case w.deaf():
		e.Add(diagnosis.Problem, "permission", `permissions {subscribe {allow: ["_INBOX.>"]}} # of this user, in the server's configuration`,
			"the user may not subscribe to _INBOX.>, so no stream's answer arrives: every event would wait")
	case mute:
		e.OK("streams", "the user may not ask for them, and need not: whether one listens on %s shows with the first event", strings.Join(wants, ", "))
	default:
		return true
	}
	return false
}

// refuses reports whether the server denies a subject that ask publishes to. The
// denial of anything else ends ask too, which is then done again.
func (w *watch) refuses(ctx context.Context, subject string, ask func(ctx context.Context)) bool {
	for {
		ask(w.wait)
		if w.deaf() || w.denied(publishTo, subject) != nil {
			return true
		}
		if !w.woken(ctx) {
			return false
		}
	}
}

// deaf reports whether no answer can come.
func (w *watch) deaf() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for what := range w.said {
		if strings.HasPrefix(what, subscribeTo+`"_INBOX.`) {
			return true
		}
	}
	return false
}

// subjectsOf are the patterns of the subjects that topics become. Where that cannot
// be told exactly, they cover more.
func subjectsOf(template string, topics []string) (wants []string, exact bool) {
	if len(topics) == 0 {
		topics = []string{">"}
	}
	head, tail, has := strings.Cut(template, "{topic}")
	if !has {
		return []string{template}, true
	}
	whole := (head == "" || strings.HasSuffix(head, ".")) && (tail == "" || strings.HasPrefix(tail, ".")) && !strings.Contains(tail, "{topic}")
	exact = true
	for _, t := range topics {
		switch {
		case !strings.ContainsAny(t, "*>"):
			t = strings.ReplaceAll(template, "{topic}", t)
		case whole && (tail == "" || !strings.HasSuffix(t, ">")):
			t = head + t + tail
		default: // a pattern in the middle of a word, or all that follows before a word
			t, exact = head[:strings.LastIndexByte(head, '.')+1]+">", false
		}
		if !slices.Contains(wants, t) {
			wants = append(wants, t)
		}
	}
	return wants, exact
}

// reserved finds subjects that belong to the bus on the same server.
func (e *examiner) reserved(bus string, wants []string) bool {
	for _, w := range wants {
		first, _, _ := strings.Cut(w, ".")
		if bus != "" && (first == bus || strings.HasPrefix(first, bus+"-")) {
			e.Add(diagnosis.Problem, "subject", `subject: "events.{topic}"`, "the subject %s belongs to the bus on the same server: every event would be refused", w)
			return true
		}
	}
	return false
}

// publishes looks at what the user may publish to. Only a server of 2.10 or newer
// tells, and only whom it lets ask.
func (e *examiner) publishes(ctx context.Context, wants []string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	answer, err := e.nc.RequestWithContext(ctx, "$SYS.REQ.USER.INFO", nil)
	if err != nil {
		return // not a word is no finding: the first event will tell
	}
	var r struct {
		Data *struct {
			User        string `json:"user"`
			Permissions struct {
				Publish struct{ Allow, Deny []string } `json:"publish"`
			} `json:"permissions"`
		} `json:"data"`
	}
	if json.Unmarshal(answer.Data, &r) != nil || r.Data == nil {
		return
	}
	p := r.Data.Permissions.Publish
	bad := false
	for _, w := range wants {
		by := func(s string) bool { return topics.Covers(s, w) }
		in := func(s string) bool { return topics.Covers(w, s) }
		allowed := len(p.Allow) == 0 || slices.ContainsFunc(p.Allow, by)
		cure := fmt.Sprintf("permissions {publish {allow: [%q]}} # of this user, in the server's configuration", w)
		switch i := slices.IndexFunc(p.Deny, func(s string) bool { return by(s) || in(s) }); {
		case i >= 0 && by(p.Deny[i]), !allowed && !slices.ContainsFunc(p.Allow, in):
			e.Add(diagnosis.Problem, "permission", cure, "the user %s may not publish to %s: every event would be refused", r.Data.User, w)
			bad = true
		case i >= 0:
			e.Add(diagnosis.Warning, "permission", cure, "the user %s may not publish to %s, which is part of %s: such events would be refused", r.Data.User, p.Deny[i], w)
			bad = true
		case !allowed:
			e.Add(diagnosis.Warning, "permission", cure, "the user %s may publish only to part of %s: other events would be refused", r.Data.User, w)
			bad = true
		}
	}
	if !bad {
		e.OK("permission", "the user %s may publish to %s", r.Data.User, strings.Join(wants, ", "))
	}
}

// remembers is how long a stream should know ids: a repeat comes within it.
const remembers = 2 * time.Minute

// listeners looks for the streams that take what will be published.
func (e *examiner) listeners(ctx context.Context, js jetstream.JetStream, wants []string, exact bool) {
	seen := map[string]bool{}
	for _, w := range wants {
		var names, subjects []string
		covered := false
		list := js.ListStreams(ctx, jetstream.WithStreamListSubject(w))
		for info := range list.Info() {
			names, subjects = append(names, info.Config.Name), append(subjects, info.Config.Subjects...)
			covered = covered || slices.ContainsFunc(info.Config.Subjects, func(s string) bool { return topics.Covers(s, w) })
			if !seen[info.Config.Name] {
				seen[info.Config.Name] = true
				e.listener(info)
			}
		}
		who := strings.Join(names, ", ")
		switch {
		case list.Err() != nil:
			e.Add(diagnosis.Problem, "streams", "nats stream ls --subject '"+w+"'", "the streams cannot be listed: %v", list.Err())
			return
		case len(names) == 0:
			e.Add(diagnosis.Problem, "streams", fmt.Sprintf("nats stream add EVENTS --subjects '%s' --defaults", w), "no stream listens on %s: every event would wait", w)
		case covered:
			e.OK("streams", "%s listens on %s", who, w)
		case !exact:
			e.OK("streams", "%s listens on part of %s; whether on all that comes cannot be told", who, w)
		default:
			cure := "nats stream ls --subject '" + w + "'"
			if len(names) == 1 {
				cure = "nats stream edit -f " + who
				for _, s := range append(slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return topics.Covers(w, s) }), w) {
					cure += " --subjects '" + s + "'"
				}
			}
			e.Add(diagnosis.Warning, "streams", cure, "%s listens only on %s of %s: other events would wait", who, strings.Join(subjects, ", "), w)
		}
	}
}

// listener looks at one stream.
func (e *examiner) listener(info *jetstream.StreamInfo) {
	c := info.Config
	if c.NoAck {
		e.Add(diagnosis.Problem, "acknowledgement", "nats stream edit -f "+c.Name+" --ack", "the stream %s does not acknowledge, so no event is ever known to be delivered", c.Name)
	}
	if c.Duplicates < remembers {
		e.Add(diagnosis.Warning, "duplicates", "nats stream edit -f "+c.Name+" --dupe-window 2m", "the stream %s remembers ids for %v only: what comes again later than that is there twice", c.Name, c.Duplicates)
		return
	}
	e.OK("duplicates", "%s drops repeats within %v", c.Name, c.Duplicates)
}

package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/disk"
)

// Examine looks at the folder or the cluster of a bus, and at the logs of the
// sources there, and says what it finds; the caller adds the Subject. It makes
// nothing, takes no lock and writes no message.
func Examine(ctx context.Context, c Config, sources []string) []diagnosis.Finding {
	e := &examiner{List: diagnosis.List{Prefix: "nats: ", Otherwise: "onewrite check"}, now: time.Now}
	e.bus(ctx, c, sources)
	return e.Found
}

// examiner is one examination.
type examiner struct {
	diagnosis.List
	now func() time.Time
	tls *tls.Config

	link   *link
	nc     *natsgo.Conn
	denied denials // what the server says that the user may not do
}

func (e *examiner) bus(ctx context.Context, c Config, sources []string) {
	e.tls = c.TLS
	if err := c.complete(); err != nil {
		e.Failed("configuration", err)
		return
	}
	if c.URL == "" {
		e.folder(&c)
		return
	}
	e.cluster(ctx, &c, sources)
}

// connect opens the connection that e looks through; false if there is none.
func (e *examiner) connect(c *Config) bool {
	c.Logger = slog.New(slog.DiscardHandler)
	opts, err := external(c)
	if err != nil {
		e.Add(diagnosis.Problem, "connection", "give creds, nkey and url that can be read", "%s", strings.TrimPrefix(err.Error(), "nats: "))
		return false
	}
	where := hosts(c.URL)
	if len(where) == 0 {
		where = []string{"localhost:4222"}
	}
	e.link = &link{addr: c.URL, opts: append(opts, natsgo.ErrorHandler(e.denied.heard(c.Logger)))}
	start := e.now()
	if e.nc, err = e.link.conn(); err != nil {
		text := strings.TrimPrefix(err.Error(), "nats: ")
		if i := strings.LastIndex(text, "; "); i > 0 {
			text = text[:i]
		}
		host, port, _ := net.SplitHostPort(where[0])
		cure := "nc -vz " + host + " " + port
		switch lower := strings.ToLower(text); {
		case strings.Contains(lower, "authorization"), strings.Contains(lower, "authentication"), strings.Contains(lower, "nkey"), strings.Contains(lower, "no such file"):
			cure = "set creds, nkey, or user and password to what the server knows"
		case strings.Contains(lower, "x509"), strings.Contains(lower, "tls:"), strings.Contains(lower, "secure connection"):
			cure = "url: tls://" + where[0] + ", and tls: {ca: ca.pem} where the system does not know the authority"
		}
		e.Add(diagnosis.Problem, "connection", cure, "%s: %s", strings.Join(where, ", "), text)
		return false
	}
	e.OK("connection", "%s (%s), connected in %v", e.nc.ConnectedServerName(), e.nc.ConnectedAddr(), e.now().Sub(start).Round(time.Millisecond))
	e.encryption(where[0])
	return true
}

const (
	// soonExpired is how long a certificate has to be good for.
	soonExpired = 14 * 24 * time.Hour
	// maxSkew is how far two clocks may differ before it is said.
	maxSkew = 5 * time.Second
)

// encryption looks at the connection that was made, whatever the url asked for.
func (e *examiner) encryption(where string) {
	host, _, err := net.SplitHostPort(e.nc.ConnectedAddr())
	ip := net.ParseIP(host)
	local := err == nil && ip != nil && ip.IsLoopback()
	state, err := e.nc.TLSConnectionState()
	switch {
	case err != nil && local:
		e.OK("tls", "none, and none needed: the server is on this machine")
	case err != nil:
		e.Add(diagnosis.Warning, "tls", "url: tls://"+where, "the connection to %s is in clear text: whoever is on the way can read and change events", e.nc.ConnectedAddr())
	case e.tls != nil && e.tls.InsecureSkipVerify:
		e.Add(diagnosis.Warning, "tls", "tls: {ca: ca.pem}", "%s, but any certificate is accepted: whoever is on the way can read and change events", tls.VersionName(state.Version))
	default:
		until := expiry(&state)
		if left := until.Sub(e.now()); left < soonExpired {
			e.Add(diagnosis.Warning, "tls", "openssl s_client -connect "+where+" </dev/null | openssl x509 -noout -enddate", "the certificate ends in %d days, on %s: renew it", int(left.Hours()/24), until.UTC().Format(time.DateOnly))
			return
		}
		e.OK("tls", "%s, certificate good until %s", tls.VersionName(state.Version), until.UTC().Format(time.DateOnly))
	}
}

// expiry is when the last chain of certificates that can be followed ends.
func expiry(state *tls.ConnectionState) (last time.Time) {
	for _, chain := range state.VerifiedChains {
		until := chain[0].NotAfter
		for _, c := range chain {
			if c.NotAfter.Before(until) {
				until = c.NotAfter
			}
		}
		if until.After(last) {
			last = until
		}
	}
	return last
}

// cluster looks at an external bus.
func (e *examiner) cluster(ctx context.Context, c *Config, sources []string) {
	if !e.connect(c) {
		return
	}
	defer e.link.close()
	e.version(e.nc.ConnectedServerVersion())
	if room := int(e.nc.MaxPayload()); room < c.MaxEvent+maxHeader {
		e.Add(diagnosis.Warning, "max_payload", fmt.Sprintf("max_payload: %d # in the server's configuration, then: nats-server --signal reload", c.MaxEvent+maxHeader),
			"the server takes messages of %s, and max_event is %s, with up to %s of attributes: larger ones stop their source", disk.Bytes(int64(room)), disk.Bytes(int64(c.MaxEvent)), disk.Bytes(int64(maxHeader)))
	}
	js, err := e.link.jetStream()
	if err != nil || !e.jetStream(ctx, js, c) {
		return
	}
	e.logs(ctx, js, c, sources)
}

// version judges a server that is to be the bus: its batches came with 2.12.
func (e *examiner) version(text string) {
	major, rest, _ := strings.Cut(text, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	if err := errors.Join(err1, err2); err == nil && (a < 2 || a == 2 && b < 12) {
		e.Add(diagnosis.Problem, "version", "upgrade to nats-server 2.12 or newer", "nats-server %s cannot store a batch in one step, 2.12 and newer can", text)
		return
	}
	e.OK("version", "nats-server %s", text)
}

// jetStream looks at the account; false if nothing can be stored.
func (e *examiner) jetStream(ctx context.Context, js jetstream.JetStream, c *Config) bool {
	info := e.account(ctx, js)
	if info == nil {
		return false
	}
	most := info.Limits.MaxStore
	switch {
	case most > 0 && most < c.MaxBytes:
		e.Add(diagnosis.Warning, "jetstream", fmt.Sprintf("max_size: %d", most), "the account may store %s, and max_size is %s: appends fail before the bus is full", disk.Bytes(most), disk.Bytes(c.MaxBytes))
	case most > 0 && info.Store > uint64(most)/10*9:
		e.Add(diagnosis.Warning, "jetstream", "nats stream report", "the account may store %s, and %s are stored", disk.Bytes(most), disk.Bytes(info.Store))
	default:
		e.OK("jetstream", "%s stored in %d streams", disk.Bytes(info.Store), info.Streams)
	}
	return true
}

// account asks for the account, and says why there is none.
func (e *examiner) account(ctx context.Context, js jetstream.JetStream) *jetstream.AccountInfo {
	info, err := js.AccountInfo(ctx)
	switch {
	case err == nil:
		return info
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		e.Add(diagnosis.Problem, "jetstream", "jetstream: enabled # in the account, in the server's configuration", "JetStream is not enabled for this account")
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled):
		e.Add(diagnosis.Problem, "jetstream", "jetstream {} # in the server's configuration, then restart it", "JetStream is not enabled, or has no leader")
	default:
		e.Add(diagnosis.Problem, "jetstream", "allow this user to publish to $JS.API.> and to subscribe to _INBOX.>", "JetStream does not answer: %v", err)
	}
	return nil
}

// logs looks at the streams that are there.
func (e *examiner) logs(ctx context.Context, js jetstream.JetStream, c *Config, sources []string) {
	b := &Bus{cfg: *c}
	wants := []string{b.stateStream(), b.parkedStream()}
	for _, s := range sources {
		wants = append(wants, b.stream(s))
	}
	var there []*jetstream.StreamInfo
	var bytes uint64
	for i, name := range wants {
		before := e.now()
		s, err := js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			e.Add(diagnosis.Problem, "streams", "nats stream info "+name, "%s: %v", name, err)
			continue
		}
		info := s.CachedInfo()
		if len(there) == 0 {
			e.clock(info.TimeStamp, before, e.now())
		}
		there = append(there, info)
		e.stream(info, i)
		if i >= 2 {
			bytes += info.State.Bytes
			e.OK("streams", "%s: %d messages, %s", name, info.State.Msgs, disk.Bytes(info.State.Bytes))
		}
	}
	if missing := len(wants) - len(there); missing > 0 {
		e.OK("streams", "%d of %d are to be made, by onewrite run", missing, len(wants))
	}
	if bytes > uint64(c.MaxBytes)/10*8 {
		e.Add(diagnosis.Warning, "room", "onewrite status", "%s of max_size = %s are used: when it is full, reading stops", disk.Bytes(bytes), disk.Bytes(c.MaxBytes))
	}
	e.copies(c, there)
}

// freely says when the stream of the cursors, of the parked events, or of a source can be
// removed, and what goes with it.
var freely = [3]string{
	"with onewrite stopped, once onewrite status shows nothing pending; destinations then begin again where from: says",
	"with onewrite stopped, once onewrite status shows nothing parked: parked events go with it",
	"with onewrite stopped, once onewrite status shows nothing pending: pending events go with it",
}

// stream looks for what would lose or hold up events; i is 0 for the cursors, 1 for
// the parked events.
func (e *examiner) stream(info *jetstream.StreamInfo, i int) {
	c := info.Config
	var wrong []string
	say := func(is bool, what string) {
		if is {
			wrong = append(wrong, what)
		}
	}
	say(c.MaxAge > 0, fmt.Sprint("max_age ", c.MaxAge))
	say(c.MaxMsgs > 0, fmt.Sprint("max_msgs ", c.MaxMsgs))
	say(i > 0 && c.Discard != jetstream.DiscardNew, "discard old")
	say(i > 0 && c.MaxMsgsPerSubject > 0, fmt.Sprint("max_msgs_per_subject ", c.MaxMsgsPerSubject))
	if len(wrong) > 0 {
		e.Add(diagnosis.Problem, "streams", "restart onewrite, which takes it off", "%s has %s, which drops what is not delivered", c.Name, strings.Join(wrong, ", "))
	}
	if c.Storage != jetstream.FileStorage || c.Retention != jetstream.LimitsPolicy {
		e.Add(diagnosis.Problem, "streams", "nats stream rm "+c.Name+" # "+freely[min(i, 2)], "%s is kept in %s with retention %s, so it is not durable", c.Name, c.Storage, c.Retention)
	}
	k := info.Cluster
	if k == nil || c.Replicas < 2 {
		return
	}
	for _, r := range k.Replicas {
		if r.Offline || !r.Current {
			e.Add(diagnosis.Warning, "streams", "nats server list", "the copy of %s on %s is away or behind", c.Name, r.Name)
		}
	}
}

// atRisk is what one copy means.
const atRisk = "by default the server acknowledges before it syncs to the disk, up to two minutes later, and a power failure loses what onewrite has freed the outbox of; how it is set cannot be seen from here"

// copies says what becomes of events when a server dies.
func (e *examiner) copies(c *Config, there []*jetstream.StreamInfo) {
	const synced = "jetstream {sync_interval: always} # in the server's configuration, or a cluster of three"
	if e.nc.ConnectedClusterName() == "" {
		if c.Replicas > 1 {
			e.Add(diagnosis.Problem, "replicas", "replicas: 1", "replicas is %d, and this is one server, no cluster", c.Replicas)
		}
		e.Add(diagnosis.Warning, "replicas", synced, "one server, one copy: %s", atRisk)
		return
	}
	var few []string
	for _, info := range there {
		if info.Config.Replicas < 3 && info.Config.Replicas < max(c.Replicas, 3) {
			few = append(few, info.Config.Name)
		}
	}
	switch {
	case len(few) > 0:
		var cure []string
		for _, name := range few {
			cure = append(cure, fmt.Sprintf("nats stream edit -f %s --replicas %d", name, max(c.Replicas, 3)))
		}
		e.Add(diagnosis.Warning, "replicas", strings.Join(cure, " && "), "%s: fewer than three copies: %s", strings.Join(few, ", "), atRisk)
	case len(there) > 0:
		e.OK("replicas", "three copies or more of each stream")
	case c.Replicas == 1:
		e.Add(diagnosis.Warning, "replicas", "replicas: 3", "one copy of each stream: %s", atRisk)
	default:
		e.OK("replicas", "three copies where the cluster has three servers; it shows when the streams are made")
	}
}

// clock compares the server's clock with this machine's. It was read somewhere
// between the question and its answer.
func (e *examiner) clock(server, before, after time.Time) {
	if server.IsZero() {
		return // it does not tell
	}
	skew := max(server.Sub(after), before.Sub(server))
	if skew <= maxSkew {
		e.OK("clock", "within %v of this machine's", max(after.Sub(before), time.Millisecond).Round(time.Millisecond))
		return
	}
	way := "behind"
	if server.After(after) {
		way = "ahead of"
	}
	e.Add(diagnosis.Warning, "clock", "timedatectl set-ntp true", "the server's clock is %v %s this machine's: a replay from a time begins at another", skew.Round(time.Second), way)
}

package redis

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/disk"
)

// failure is an answer of the server, with what it means.
type failure struct {
	error
	answered bool
	pause    time.Duration
}

// Unwrap returns what is below.
func (f *failure) Unwrap() error { return f.error }

// Answered says that the server was reached and failed on this very event.
func (f *failure) Answered() bool { return f.answered }

// RetryAfter is the pause that the server needs; 0 if it asks for none.
func (f *failure) RetryAfter() time.Duration { return f.pause }

// meanings are the errors that Redis begins its answers with. Those that are about
// the server say nothing about the event: it waits. cure ends the message.
var meanings = []struct {
	prefix   string
	rejected bool // the event, as it is, cannot be written
	answered bool // about what the event asks for; may change
	pause    time.Duration
	cure     string
}{
	{prefix: "LOADING", pause: time.Second, cure: "wait: the server reads its data after a start; redis-cli INFO persistence shows how far it is"},
	{prefix: "BUSY ", pause: time.Second, cure: "wait, or end the script that runs too long: redis-cli SCRIPT KILL"},
	{prefix: "OOM", cure: "the server is full and takes nothing more: redis-cli CONFIG SET maxmemory BYTES, or trim streams that were read: redis-cli XTRIM STREAM MAXLEN N"},
	{prefix: "READONLY", cure: "the server is a replica: set url to the primary, which redis-cli INFO replication names"},
	{prefix: "MISCONF", cure: "the server cannot write its disk: make room, and look into its log; redis-cli INFO persistence"},
	{prefix: "NOREPLICAS", cure: "the server has fewer replicas than min-replicas-to-write: start them; redis-cli INFO replication"},
	{prefix: "MASTERDOWN", cure: "the replica has lost its primary: set url to the primary"},
	{prefix: "NOAUTH", cure: "the server wants a login: write url: redis://user:password@host:6379/0, or user and password"},
	{prefix: "WRONGPASS", cure: "correct user and password; redis-cli ACL GETUSER {user}"},
	{prefix: "NOPERM", answered: true, cure: "allow it: " + rightsCure},
	{prefix: "WRONGTYPE", rejected: true, cure: "what is under this key has another type: redis-cli TYPE KEY, then RENAME it out of the way, or give the destination keys of its own"},
	{prefix: "CLUSTERDOWN", cure: "the cluster has lost nodes: redis-cli --cluster check {addr}"},
	{prefix: "TRYAGAIN", cure: "wait: the slot is being moved"},
	{prefix: "ASK", cure: "wait: the slot is being moved"},
	{prefix: "MOVED", cure: "the slot has moved to another node: it is looked up when the destination is opened again"},
	{prefix: "CROSSSLOT", answered: true, cure: "the keys of one event have to be in one slot of the cluster: give them one hash tag, as in DEL {{{key}}}:a {{{key}}}:b"},
	{prefix: "ERR max number of clients", cure: "redis-cli CONFIG SET maxclients 20000"},
	{prefix: "ERR DB index is out of range", cure: "the server has fewer databases: write another number at the end of url, or raise databases in redis.conf and restart it: redis-cli CONFIG GET databases"},
	{prefix: "ERR SELECT is not allowed in cluster mode", cure: "a cluster has one database: url: redis://{addr}/0"},
	{prefix: "ERR unknown command", cure: "the server lacks the command or has it renamed; Redis 7.0 or newer is needed: redis-cli INFO server"},
	{prefix: "ERR value is not an integer", rejected: true, cure: "the event holds no whole number where the command needs one: correct the command"},
	{prefix: "ERR invalid expire", rejected: true, cure: "the event holds a time that is none: correct the command"},
	{prefix: "ERR The stream has exhausted", answered: true, cure: "the last id of the stream is the greatest there is: redis-cli RENAME it out of the way"},
	{prefix: "ERR string exceeds", rejected: true, cure: "the value is larger than the server takes: redis-cli CONFIG GET proto-max-bulk-len"},
}

// rightsCure is what a user of a stream needs.
const rightsCure = "redis-cli ACL SETUSER {user} {rights}"

// infoCure lets the user see what keeps events and what loses them.
const infoCure = "redis-cli ACL SETUSER {user} +info '+config|get'"

// addressed tells the commands in a cure which server to ask, and about whom.
func (l *link) addressed(cure string) string {
	rights := disk.Quote("~"+l.set.stream.Prefix()+"*") + " '~onewrite:*' +@connection +info '+config|get' +evalsha +eval +xadd +xdel +xinfo +type +hset +hget +hmget"
	if len(l.set.commands) > 0 {
		rights = "'~*'"
		for _, c := range l.set.commands {
			rights += " +" + strings.ToLower(c.Name())
		}
	}
	return strings.NewReplacer("redis-cli -u ", "redis-cli -u ", "redis-cli --", "redis-cli --", "redis-cli ", "redis-cli -u "+l.shown()+" ",
		"{user}", disk.Quote(cmp.Or(l.set.user, "default")), "{rights}", rights, "{addr}", l.addr).Replace(cure)
}

// explain types an answer of the server about what.
func (l *link) explain(what string, err error) error {
	var f *failure
	if err == nil || !isAnswer(err) || errors.As(err, &f) {
		return err
	}
	text := strings.TrimSpace(err.Error())
	text = strings.TrimPrefix(text, "failed to authenticate: ")
	for _, m := range meanings {
		if !strings.HasPrefix(text, m.prefix) {
			continue
		}
		f := &failure{answered: m.answered, pause: m.pause}
		if m.rejected {
			f.error = fmt.Errorf("redis: %s: %s: %w; %s", what, text, onewrite.ErrRejected, l.addressed(m.cure))
		} else {
			f.error = fmt.Errorf("redis: %s: %w; %s", what, err, l.addressed(m.cure))
		}
		return f
	}
	return &failure{error: fmt.Errorf("redis: %s: %w; look into the log of the server", what, err)}
}

// refuse is the answer about an event that cannot be written as it is. The cure is
// what stands after the last semicolon of err.
func refuse(what string, err error) error {
	text, cure := err.Error(), ""
	if i := strings.LastIndex(text, "; "); i > 0 {
		text, cure = text[:i], text[i:]
	}
	return fmt.Errorf("redis: %s: %s: %w%s", what, text, onewrite.ErrRejected, cure)
}

// unanswered takes the word about the event from an error that is about all events.
func unanswered(err error) error {
	var f *failure
	if errors.As(err, &f) && f.answered {
		return &failure{error: f.error, pause: f.pause}
	}
	return err
}

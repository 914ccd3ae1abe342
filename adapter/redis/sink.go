package redis

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"sync"

	goredis "github.com/redis/go-redis/v9"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/disk"
	"github.com/onewrite/onewrite/internal/rediscmd"
	"github.com/onewrite/onewrite/internal/sabotage"
)

//go:embed write.lua
var writeText string

var writeScript = goredis.NewScript(writeText)

// maxScript bounds the bytes of one script of Write; WriteAt cannot be parted.
const maxScript = 8 << 20

// Sink appends events to streams. It is [onewrite.Placed]: the record of the place
// and the events are one step.
type Sink struct {
	set  *settings
	link *link

	mu     sync.Mutex
	owner  string // that must be in the place
	writes string // how many placed writes must have been
	broken error  // of a placed write without an answer
}

// Write appends the events; see [onewrite.Sink]. Their ids follow the last one of the
// stream, as there is no place to make them from. A repeat is appended again.
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	done := 0
	for done < len(events) {
		n, size := 0, 0
		for done+n < len(events) && n < onewrite.MaxBatch && (n == 0 || size+events[done+n].Size() <= maxScript) {
			size += events[done+n].Size()
			n++
		}
		part := events[done : done+n]
		bad, err := s.run(ctx, n, func(i int) (*onewrite.Event, uint64) { return &part[i], 0 }, nil)
		if err != nil && bad > 0 { // what stands before it is good
			if _, err := s.run(ctx, bad, func(i int) (*onewrite.Event, uint64) { return &part[i], 0 }, nil); err != nil {
				return done, unanswered(err)
			}
		}
		if err != nil {
			return done + bad, err
		}
		done += n
	}
	return done, nil
}

// Place takes the destination over and returns the record of its last placed write;
// see [onewrite.Placed].
func (s *Sink) Place(ctx context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	owner := newOwner()
	var now []any
	err := s.link.do(ctx, func(ctx context.Context, c *goredis.Client) error {
		var got *goredis.SliceCmd
		_, err := c.TxPipelined(ctx, func(p goredis.Pipeliner) error {
			p.HSet(ctx, s.set.placeKey(), "owner", owner)
			got = p.HMGet(ctx, s.set.placeKey(), "record", "writes")
			return nil
		})
		if err == nil {
			now = got.Val()
		}
		return err
	})
	if err != nil {
		return nil, unanswered(s.link.explain("take over "+s.set.placeKey(), err))
	}
	s.owner, s.writes, s.broken = owner, textOf(now, 1, "0"), nil
	if record, ok := now[0].(string); ok {
		return []byte(record), nil
	}
	return nil, nil
}

// WriteAt appends the messages and stores the record, or changes nothing; see
// [onewrite.Placed]. After an error without an answer only a new sink can tell what
// became of them, and this one writes no more.
func (s *Sink) WriteAt(ctx context.Context, messages []onewrite.Message, place []byte) (bad int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return 0, fmt.Errorf("redis: an earlier write had no answer, so that its outcome has to be read first: %w; open the destination again", s.broken)
	}
	writes, err := strconv.ParseUint(s.writes, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("redis: %s holds a count of writes that is none, %q; redis-cli HSET %s writes 0, and open the destination again", s.set.placeKey(), s.writes, s.set.placeKey())
	}
	next := strconv.FormatUint(writes+1, 10)
	if place == nil {
		place = []byte{}
	}
	bad, err = s.run(ctx, len(messages), func(i int) (*onewrite.Event, uint64) { return &messages[i].Event, messages[i].Offset },
		&placing{s.owner, s.writes, next, place})
	switch {
	case err == nil:
		s.writes = next
	case !isKnown(err):
		s.broken = err
	}
	return bad, err
}

// Close ends the connection. A write that is under way ends without an answer.
func (s *Sink) Close() error {
	s.link.close()
	return nil
}

// placing is the part of a script that has a place.
type placing struct {
	owner, writes, next string
	record              []byte
}

// isKnown reports whether an error says for sure that nothing was written.
func isKnown(err error) bool {
	var f *failure
	var u unsent
	return errors.As(err, &u) || errors.As(err, &f) || errors.Is(err, onewrite.ErrFenced) || errors.Is(err, onewrite.ErrRejected)
}

// run runs the script for n events. Nothing is written if it returns an error that
// is known; bad is the event that it is about.
func (s *Sink) run(ctx context.Context, n int, event func(i int) (*onewrite.Event, uint64), p *placing) (bad int, err error) {
	if ctx.Err() != nil {
		return 0, unsent{fmt.Errorf("redis: %w", context.Cause(ctx))}
	}
	head := []any{0, "", "", "", "", ""}
	if s.set.maxLen > 0 {
		head[1] = strconv.FormatInt(s.set.maxLen, 10)
	}
	forms := newForms(n)
	var keys []string
	first := map[string]int{} // the number of a stream, from 0
	users := []int{}          // the first event of each stream
	for i := range n {
		e, offset := event(i)
		key, err := rediscmd.For(e).Append(nil, s.set.stream)
		if err == nil && len(key) == 0 {
			err = errors.New("the name of the stream would be empty; give the template a prefix: \"events:{topic}\"")
		}
		if err != nil {
			return i, refuse("event "+e.ID, err)
		}
		number, ok := first[string(key)]
		if !ok {
			number = len(keys)
			first[string(key)] = number
			keys, users = append(keys, string(key)), append(users, i)
		}
		if count := forms.add(number+1, offset, e); count > maxFields {
			return i, refuse("event "+e.ID, fmt.Errorf("it has %d headers, %d go into an entry; publish it with fewer", len(e.Header), maxFields))
		}
	}
	head[0] = len(keys)
	if p != nil {
		head[2], head[3], head[4], head[5] = p.owner, p.writes, p.next, p.record
		keys = append(keys, s.set.placeKey())
	}
	args := forms.args(head)
	if err := sabotage.At("redis.write"); err != nil {
		return 0, unsent{err}
	}
	var answer []any
	err = s.link.do(ctx, func(ctx context.Context, c *goredis.Client) error {
		cmd := c.EvalSha(ctx, writeScript.Hash(), keys, args...)
		if goredis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
			cmd = c.Eval(ctx, writeText, keys, args...)
		}
		var err error
		answer, err = cmd.Slice()
		return err
	})
	if err == nil {
		err = sabotage.At("redis.written")
	}
	if err != nil {
		return s.blame(ctx, err, keys, users)
	}
	return s.judge(answer, keys, users, event)
}

// judge reads the answer of the script.
func (s *Sink) judge(answer []any, keys []string, users []int, event func(i int) (*onewrite.Event, uint64)) (bad int, err error) {
	number := func(i int) int {
		if i < len(answer) {
			if n, ok := answer[i].(int64); ok {
				return int(n)
			}
		}
		return 0
	}
	switch word := textOf(answer, 0, ""); word {
	case "ok":
		return 0, nil
	case "fenced":
		return 0, fmt.Errorf("redis: %s has another owner: %w", s.set.placeKey(), onewrite.ErrFenced)
	case "forgot":
		return 0, &failure{error: fmt.Errorf("redis: %s counts %s writes, it had confirmed another number: the server was restored or has forgotten what it acknowledged; the destination is opened again at what it has; set appendfsync always: %s", s.set.placeKey(), textOf(answer, 1, "?"), s.link.addressed("redis-cli CONFIG SET appendfsync always"))}
	case "type", "denied":
		i, what := number(1)-1, textOf(answer, 2, "?")
		if i < 0 {
			return 0, unanswered(s.link.explain("write "+s.set.placeKey(), goredis.Error(noPermission(what))))
		}
		e, _ := event(users[i])
		about := fmt.Sprintf("event %s into stream %s", e.ID, keys[i])
		if word == "denied" {
			return users[i], s.link.explain(about, goredis.Error(noPermission(what)))
		}
		return users[i], refuse(about, fmt.Errorf("the key holds a %s; give the destination streams of its own, or move it out of the way: %s", what, s.link.addressed("redis-cli RENAME "+disk.Quote(keys[i])+" "+disk.Quote(keys[i]+"-before"))))
	case "failed":
		i := max(0, number(1)-1)
		e, _ := event(i)
		return i, s.link.explain("event "+e.ID, answered(textOf(answer, 2, "?")))
	default:
		return 0, fmt.Errorf("redis: the script gave an answer that is none: %v; open the destination again", answer)
	}
}

// answered is an answer that came as text.
type answered string

// Error returns it.
func (a answered) Error() string { return string(a) }

// RedisError marks it as the server's.
func (answered) RedisError() {}

func noPermission(command string) answered {
	return answered("NOPERM this user has no permissions to run " + command + " on the key")
}

// blame finds the event that an answer to the whole script is about. That one of the
// keys is not the user's to write the server says without its name.
func (s *Sink) blame(ctx context.Context, err error, keys []string, users []int) (int, error) {
	err = s.link.explain("write", err)
	var f *failure
	if !errors.As(err, &f) || !f.answered {
		return 0, err
	}
	for i, at := range users {
		denied := s.link.do(ctx, func(ctx context.Context, c *goredis.Client) error {
			return c.Eval(ctx, "return 1", keys[i:i+1]).Err()
		})
		if isAnswer(denied) {
			return at, s.link.explain("stream "+keys[i], denied)
		}
		if denied != nil {
			return 0, unanswered(err)
		}
	}
	return 0, unanswered(err)
}

// textOf is an element of an answer, or otherwise.
func textOf(answer []any, i int, otherwise string) string {
	if i < len(answer) {
		if s, ok := answer[i].(string); ok {
			return s
		}
	}
	return otherwise
}

var (
	_ onewrite.Placed = (*Sink)(nil)
	_ onewrite.Sink   = (*Cache)(nil)
)

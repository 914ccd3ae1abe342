package redis

import (
	"context"
	"errors"
	"fmt"

	goredis "github.com/redis/go-redis/v9"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/rediscmd"
)

// Cache runs commands for each event, in one MULTI. It keeps no place: what a crash
// leaves unconfirmed is run again.
type Cache struct {
	set  *settings
	home *link
}

func openCache(ctx context.Context, set *settings) (*Cache, error) {
	l, info, err := reach(ctx, set)
	if err != nil {
		return nil, err
	}
	c := &Cache{set: set, home: l}
	switch {
	case info.cluster:
		err = errors.New("redis: commands need a server that is no cluster, whose keys would be on several nodes; set url to a single server, or write a stream")
	case info.replica:
		err = info.refuse(c.home)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection.
func (c *Cache) Close() error {
	c.home.close()
	return nil
}

// Write runs the commands of the events; see [onewrite.Sink]. Many are under way at
// once, but never those of two events with one key: if the first were refused and
// the second run, the cache would keep the wrong one.
func (c *Cache) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	done := 0
	for done < len(events) {
		n, err := c.writeWindow(ctx, window(events[done:]))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// maxWindow bounds the bytes of the events that are under way.
const maxWindow = 8 << 20

// window returns the leading events that have different keys.
func window(events []onewrite.Event) []onewrite.Event {
	keys := make(map[[2]string]struct{}, len(events))
	size := 0
	for i := range events {
		if size += events[i].Size(); i > 0 && size > maxWindow {
			return events[:i]
		}
		if events[i].Key == "" {
			continue
		}
		k := [2]string{events[i].Source, events[i].Key}
		if _, twice := keys[k]; twice {
			return events[:i]
		}
		keys[k] = struct{}{}
	}
	return events
}

// work is what one event asks for.
type work struct {
	commands [][]any
	answers  []*goredis.Cmd
}

// writeWindow runs the commands of events whose keys differ.
func (c *Cache) writeWindow(ctx context.Context, events []onewrite.Event) (int, error) {
	jobs := make([]work, 0, len(events))
	var bad error
	for i := range events {
		w, err := c.work(&events[i])
		if err != nil {
			bad = err
			break
		}
		jobs = append(jobs, w)
	}
	if n, err := c.run(ctx, events, jobs); err != nil {
		return n, err
	}
	return len(jobs), bad
}

// work fills the commands that are for an event.
func (c *Cache) work(e *onewrite.Event) (w work, err error) {
	filler := rediscmd.For(e)
	for _, cmd := range c.set.commands {
		if !cmd.For(e.Type) {
			continue
		}
		args, _, err := filler.Fill(cmd)
		if err != nil {
			return w, refuse("event "+e.ID+": "+cmd.Name(), err)
		}
		w.commands = append(w.commands, args)
	}
	return w, nil
}

// run sends the commands of all events at once. Those of one event are a transaction.
func (c *Cache) run(ctx context.Context, events []onewrite.Event, jobs []work) (int, error) {
	sent := false
	err := c.home.do(ctx, func(ctx context.Context, client *goredis.Client) error {
		pipe := client.Pipeline()
		for i := range jobs {
			jobs[i].queue(ctx, pipe)
		}
		if sent = pipe.Len() > 0; !sent {
			return nil
		}
		_, err := pipe.Exec(ctx)
		return err // that of the first command; if it is the server's, all have one
	})
	if err != nil && !isAnswer(err) {
		return 0, err
	}
	for i := range jobs {
		if err := jobs[i].failed(); err != nil {
			return i, c.home.explain("event "+events[i].ID, err)
		}
	}
	return len(jobs), nil
}

func (w *work) queue(ctx context.Context, pipe goredis.Pipeliner) {
	w.answers = w.answers[:0]
	add := func(args ...any) { w.answers = append(w.answers, pipe.Do(ctx, args...)) }
	if len(w.commands) == 1 { // alone it is a step already
		add(w.commands[0]...)
		return
	}
	if len(w.commands) > 1 {
		add("MULTI")
		for _, args := range w.commands {
			add(args...)
		}
		add("EXEC")
	}
}

// failed returns the first error of an event: of a command that was not queued, or of
// one that failed within the transaction.
func (w *work) failed() error {
	for _, a := range w.answers {
		if err := a.Err(); err != nil && !errors.Is(err, goredis.Nil) {
			return err
		}
	}
	if len(w.answers) < 2 {
		return nil
	}
	results, ok := w.answers[len(w.answers)-1].Val().([]any)
	if !ok {
		return fmt.Errorf("redis: EXEC gave an answer that is none: %v", w.answers[len(w.answers)-1].Val())
	}
	for _, r := range results {
		if err, ok := r.(error); ok && !errors.Is(err, goredis.Nil) {
			return err
		}
	}
	return nil
}

package nats

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	natsgo "github.com/nats-io/nats.go"
)

// fetchBytes bounds one answer; a single larger message still comes.
const fetchBytes = 4 << 20

// inbox is where answers to fetches come. It is used by one goroutine.
type inbox struct {
	sub   *natsgo.Subscription
	on    *natsgo.Conn
	calls uint64
}

func (in *inbox) open(nc *natsgo.Conn) error {
	if in.sub != nil && in.on == nc && in.sub.IsValid() {
		return nil
	}
	s, err := nc.SubscribeSync(nc.NewInbox() + ".*")
	if err != nil {
		return err
	}
	// What comes is bounded by the request.
	if err := s.SetPendingLimits(-1, -1); err != nil {
		return err
	}
	in.sub, in.on = s, nc
	return nil
}

func (in *inbox) close() {
	if in.sub != nil {
		_ = in.sub.Unsubscribe()
	}
}

// fetched tells how a fetch ended.
type fetched struct {
	count     int    // messages
	pending   uint64 // more that match, behind the last of them
	exhausted bool   // there was nothing more to give at that time
}

// fetch reads messages of a stream by direct get, which sees no batch that is
// being stored, and hands each to take with its sequence. It does not wait for
// messages to come.
func (b *Bus) fetch(ctx context.Context, in *inbox, stream string, q query, take func(seq uint64, m *natsgo.Msg) error) (fetched, error) {
	var f fetched
	select {
	case b.fetches <- struct{}{}:
		defer func() { <-b.fetches }()
	case <-ctx.Done():
		return f, context.Cause(ctx)
	}
	nc, err := b.link.conn()
	if err != nil {
		return f, err
	}
	if err := in.open(nc); err != nil {
		return f, err
	}
	if q.MaxBytes == 0 {
		q.MaxBytes = fetchBytes
	}
	body, err := json.Marshal(q)
	if err != nil {
		return f, err
	}
	in.calls++
	reply := strings.TrimSuffix(in.sub.Subject, "*") + strconv.FormatUint(in.calls, 10)
	if err := nc.PublishRequest("$JS.API.DIRECT.GET."+stream, reply, body); err != nil {
		return f, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	bytes := 0
	for {
		m, err := in.sub.NextMsgWithContext(ctx)
		if err != nil {
			return f, err
		}
		if m.Subject != reply {
			continue // of a fetch that was given up
		}
		if done, err := end(&f, m, stream); done || err != nil {
			f.exhausted = f.exhausted || f.count < q.Batch && bytes < q.MaxBytes
			return f, err
		}
		seq, err := strconv.ParseUint(first(m.Header, "Nats-Sequence"), 10, 64)
		if err != nil {
			return f, fmt.Errorf("a message of stream %s came without its sequence", stream)
		}
		f.count++
		bytes += m.Size()
		if err := take(seq, m); err != nil {
			return f, err
		}
	}
}

// end looks whether m ends a fetch.
func end(f *fetched, m *natsgo.Msg, stream string) (bool, error) {
	status := first(m.Header, "Status")
	switch status {
	case "":
		return false, nil
	case "204":
		f.pending, _ = strconv.ParseUint(first(m.Header, "Nats-Num-Pending"), 10, 64)
		return true, nil
	case "404":
		f.exhausted = true
		return true, nil
	case "503":
		return true, fmt.Errorf("stream %s: %w", stream, natsgo.ErrNoResponders)
	}
	return true, fmt.Errorf("stream %s: %s %s", stream, status, first(m.Header, "Description"))
}

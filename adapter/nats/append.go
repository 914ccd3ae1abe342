package nats

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// few is the largest number of events that are stored one by one: a plain
// append costs a sync each, an atomic batch about twelve of them once.
const few = 12

const (
	hdrExpect      = "Nats-Expected-Last-Sequence"
	hdrBatchID     = "Nats-Batch-Id"
	hdrBatchSeq    = "Nats-Batch-Sequence"
	hdrBatchCommit = "Nats-Batch-Commit"
)

// Position returns where source is on the bus and the offset of its newest
// event. An error that speaks of messages purged or written from outside needs
// an operator.
func (b *Bus) Position(ctx context.Context, source string) (onewrite.Pos, uint64, error) {
	if err := b.checkSource(source); err != nil {
		return "", 0, err
	}
	if err := b.writable(b.stream(source)); err != nil {
		return "", 0, err // who asks for the position wants to append
	}
	l := b.logOf(source)
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := b.locate(ctx, l); err != nil {
		return "", 0, err
	}
	return l.pos, l.last, nil
}

// locate reads seq, last and pos from the stream; l.writing is held.
func (b *Bus) locate(ctx context.Context, l *logState) error {
	l.known = false
	if err := sabotage.At("bus.locate"); err != nil {
		return err
	}
	js, err := b.link.jetStream()
	if err != nil {
		return err
	}
	l.seq, l.shift, l.last, l.pos, l.exists = 0, 0, 0, "", false
	s, err := js.Stream(ctx, b.stream(l.source))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		l.known = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("nats: stream of source %s: %w", l.source, err)
	}
	// The stream's sequence is asked before its newest message: if another copy
	// appends between the two, the message is the later one and both fit.
	info := s.CachedInfo()
	l.seq, l.exists = info.State.LastSeq, true
	n, err := b.newest(ctx, l.source)
	if err != nil {
		return err
	}
	switch {
	case n == nil && l.seq > 0 && info.Config.FirstSeq != l.seq+1:
		return fmt.Errorf("nats: stream %s was purged from outside, the position of source %s is gone with its newest message, and so is what was pending; no event is left on it, so to read the source again from where its outbox begins: nats stream rm %s",
			info.Config.Name, l.source, info.Config.Name)
	case n == nil: // a new log
		l.known = true
		return nil
	case n.batch && !n.whole:
		return fmt.Errorf("nats: a batch of source %s is being stored; ask again, and if it stays so its end was removed from outside; remove what is left of it, and its events are read again, as far as the outbox has them: nats stream rmm %s %d", l.source, b.stream(l.source), n.seq)
	case !n.whole:
		return fmt.Errorf("nats: message %d of stream %s was not written by onewrite and hides the position of source %s; remove it: nats stream rmm %s %d",
			n.seq, b.stream(l.source), l.source, b.stream(l.source), n.seq)
	}
	l.seq, l.shift, l.last, l.pos, l.known = max(l.seq, n.seq), n.last-n.seq, n.last, n.pos, true
	b.raise(l, n.last)
	return nil
}

// Append stores a batch behind prev; see [onewrite.Bus].
func (b *Bus) Append(ctx context.Context, source string, prev onewrite.Pos, batch onewrite.Batch) (uint64, error) {
	if err := b.checkSource(source); err != nil {
		return 0, err
	}
	l := b.logOf(source)
	l.writing.Lock()
	defer l.writing.Unlock()
	if !l.known {
		if err := b.locate(ctx, l); err != nil {
			return 0, err
		}
	}
	if l.pos != prev {
		l.known = false // another copy may have written: look again next time
		return 0, fmt.Errorf("nats: append for source %s: its position on the bus is another one: %w", source, onewrite.ErrFenced)
	}
	if len(batch.Events) == 0 {
		return l.last, nil
	}
	if err := b.writable(b.stream(source)); err != nil {
		return 0, err
	}
	nc, err := b.link.conn()
	if err != nil {
		return 0, err
	}
	if err := b.admit(ctx, nc, l, batch.Events); err != nil {
		return 0, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if b.emb == nil {
		ctx, cancel = context.WithTimeout(ctx, answerTimeout)
		defer cancel()
	}
	if err := l.listen(nc); err != nil {
		return 0, fmt.Errorf("nats: append for source %s: %w", source, err)
	}
	l.known = false // until the answer is there
	messages, err := b.store(ctx, nc, l, &batch)
	if err == nil {
		err = b.stored(ctx, b.stream(source), l.seq+messages)
	}
	if err != nil {
		return 0, b.suspect(b.stream(source), err)
	}
	n := uint64(len(batch.Events))
	l.seq, l.shift = l.seq+messages, l.shift+n-messages
	l.last, l.pos, l.known = l.seq+l.shift, batch.Pos, true
	l.exists = true // even if a server of a cluster had not heard of a new stream yet
	l.recent.add(l.last-n+1, batch.Events, b.recentLimit())
	if l.shift > 0 {
		b.notePacked(l)
	}
	b.raise(l, l.last)
	b.sendWake(nc, source, l.last)
	return l.last, nil
}

// store sends a batch and says how many messages it became. A server of a cluster
// hears of a new stream, and of its new leader, a moment after the others: until then
// nobody answers, and nothing is stored.
func (b *Bus) store(ctx context.Context, nc *natsgo.Conn, l *logState, batch *onewrite.Batch) (messages uint64, err error) {
	if b.packs() {
		return b.appendPacks(ctx, nc, l, batch)
	}
	messages = uint64(len(batch.Events))
	put := b.appendBatch
	if b.oneByOne(batch) {
		put = b.appendFew
	}
	for pause := 25 * time.Millisecond; ; pause *= 2 {
		err := put(ctx, nc, l, batch)
		if !errors.Is(err, natsgo.ErrNoResponders) || b.emb != nil || pause > time.Second {
			return messages, err
		}
		select {
		case <-ctx.Done():
			return 0, err
		case <-time.After(pause):
		}
		l.calls++ // a late answer is none to the next attempt
	}
}

// oneByOne decides how a batch is stored. Several plain messages in flight are
// safe only where nobody else can write: between two copies on one cluster, the
// second message of a stale one could fit behind the first of the other.
func (b *Bus) oneByOne(batch *onewrite.Batch) bool {
	if len(batch.Events) == 1 {
		return true
	}
	return b.emb != nil && batch.PosAt != nil && len(batch.Events) <= few
}

// admit makes the stream where it is missing and refuses what cannot be stored.
func (b *Bus) admit(ctx context.Context, nc *natsgo.Conn, l *logState, events []onewrite.Event) error {
	if len(events) > onewrite.MaxBatch {
		return fmt.Errorf("nats: a batch of %d events, the bus takes %d: %w", len(events), onewrite.MaxBatch, onewrite.ErrRejected)
	}
	room := int(nc.MaxPayload())
	sum := int64(0)
	for i := range events {
		e := &events[i]
		if e.ID == "" || e.Source == "" || e.Type == "" { // no reader could make an event of it again
			return fmt.Errorf("nats: event %d of the batch (id %q, source %q, type %q): CloudEvents needs all three: %w", i, e.ID, e.Source, e.Type, onewrite.ErrRejected)
		}
		size := e.Size()
		sum += int64(size) + 256
		if size < room/8 { // escaped it may be seven times as large
			continue
		}
		m := l.enc.encode("x", e)
		size = len(m.Data) + 4<<10 // what we and the server add
		for k, v := range m.Header {
			size += len(k) + len(v[0]) + 4
		}
		if size > room {
			return fmt.Errorf("nats: event %s of topic %s needs %d bytes, the bus takes %d: %w; raise max_event (embedded bus) or max_payload of the NATS server", e.ID, e.Topic, size, room, onewrite.ErrRejected)
		}
	}
	if !l.exists {
		if err := b.create(ctx, l.source); err != nil {
			return err
		}
		if err := b.locate(ctx, l); err != nil {
			return err
		}
		if l.pos != "" {
			return fmt.Errorf("nats: append for source %s: another copy was faster: %w", l.source, onewrite.ErrFenced)
		}
	}
	if b.grow(l, sum) {
		return nil
	}
	if err := b.remeasure(ctx); err != nil {
		return err
	}
	if !b.grow(l, sum) {
		return fmt.Errorf("nats: the room of %d bytes is used up: %w; raise bus.max_size, or look at the slowest destination: onewrite status", b.cfg.MaxBytes, onewrite.ErrFull)
	}
	return nil
}

// listen makes the subject that answers come to.
func (l *logState) listen(nc *natsgo.Conn) error {
	l.calls++
	if l.acksOn == nc && l.acks.IsValid() {
		return nil
	}
	s, err := nc.SubscribeSync(nc.NewInbox() + ".*.*")
	if err != nil {
		return err
	}
	l.acks, l.acksOn = s, nc
	return nil
}

// reply returns the subject for the answer to message i of this call.
func (l *logState) reply(i int) string {
	return strings.TrimSuffix(l.acks.Subject, "*.*") + strconv.FormatUint(l.calls, 10) + "." + strconv.Itoa(i)
}

// answer waits for the next answer to this call and tells which it is.
func (l *logState) answer(ctx context.Context) (i int, m *natsgo.Msg, err error) {
	for {
		m, err := l.acks.NextMsgWithContext(ctx)
		if err != nil {
			return 0, nil, err
		}
		rest, is, _ := cutLast(m.Subject)
		_, call, _ := cutLast(rest)
		if n, err := strconv.ParseUint(call, 10, 64); err != nil || n != l.calls {
			continue // late: an append that was given up
		}
		if i, err = strconv.Atoi(is); err == nil {
			return i, m, nil
		}
	}
}

func cutLast(subject string) (before, after string, ok bool) {
	i := strings.LastIndexByte(subject, '.')
	if i < 0 {
		return "", subject, false
	}
	return subject[:i], subject[i+1:], true
}

// appendFew stores events one by one, all in flight, each with its position.
func (b *Bus) appendFew(ctx context.Context, nc *natsgo.Conn, l *logState, batch *onewrite.Batch) error {
	n := len(batch.Events)
	for i := range batch.Events {
		pos := batch.Pos
		if i < n-1 && sabotage.Bug != "pos-early" {
			pos = batch.PosAt(i)
		}
		e := &batch.Events[i]
		m := l.single(b, e, i)
		l.enc.set(hdrPos, cloudevents.Escape(string(pos)))
		l.enc.set(hdrExpect, strconv.FormatUint(l.seq+uint64(i), 10))
		m.Reply = l.reply(i)
		if i > 0 {
			if err := sabotage.At("bus.few"); err != nil {
				return b.failed(l, i, err)
			}
		}
		if err := nc.PublishMsg(m); err != nil {
			return b.failed(l, i, err)
		}
	}
	bad, cause := n, error(nil)
	for range n {
		i, m, err := l.answer(ctx)
		if errors.Is(err, natsgo.ErrNoResponders) {
			return b.failed(l, 0, err)
		}
		if err != nil {
			return fmt.Errorf("nats: append for source %s: no answer: %w", l.source, err)
		}
		if _, err := parseAck(m); err != nil && i < bad {
			bad, cause = i, err
		}
	}
	if cause != nil {
		return b.failed(l, bad, cause)
	}
	return nil
}

// appendBatch stores the events in one atomic step.
func (b *Bus) appendBatch(ctx context.Context, nc *natsgo.Conn, l *logState, batch *onewrite.Batch) error {
	n := len(batch.Events)
	id := b.batchID(l)
	for i := range batch.Events {
		e := &batch.Events[i]
		m := l.single(b, e, i)
		l.enc.set(hdrBatchID, id)
		l.enc.set(hdrBatchSeq, strconv.Itoa(i+1))
		if i == 0 {
			l.enc.set(hdrExpect, strconv.FormatUint(l.seq, 10))
		}
		if i == n-1 {
			l.enc.set(hdrBatchCommit, "1")
			l.enc.set(hdrPos, cloudevents.Escape(string(batch.Pos)))
			m.Reply = l.reply(0)
			if err := sabotage.At("bus.batch"); err != nil {
				return b.failed(l, 0, err)
			}
		}
		if err := nc.PublishMsg(m); err != nil {
			return b.failed(l, 0, err)
		}
	}
	return b.whole(ctx, l)
}

// appendPacks stores the events in packs: one message for most appends, else an atomic
// batch of them.
func (b *Bus) appendPacks(ctx context.Context, nc *natsgo.Conn, l *logState, batch *onewrite.Batch) (messages uint64, err error) {
	id := b.batchID(l)
	limit := min(packBytes, int(nc.MaxPayload())/2) // where events are small, a message is too; the rest is for headers
	for at := 0; at < len(batch.Events); messages++ {
		m, n := l.enc.pack(b.subjects(l.source), batch.Events[at:], l.seq+l.shift+1+uint64(at), l.shift+uint64(at)-messages, limit)
		last := at+n == len(batch.Events)
		if messages == 0 {
			l.enc.set(hdrExpect, strconv.FormatUint(l.seq, 10))
		}
		if messages > 0 || !last {
			l.enc.set(hdrBatchID, id)
			l.enc.set(hdrBatchSeq, strconv.FormatUint(messages+1, 10))
		}
		if last {
			if messages > 0 {
				l.enc.set(hdrBatchCommit, "1")
			}
			l.enc.set(hdrPos, cloudevents.Escape(string(batch.Pos)))
			m.Reply = l.reply(0)
			if err := sabotage.At("bus.pack"); err != nil {
				return 0, b.failed(l, 0, err)
			}
		}
		if err := nc.PublishMsg(m); err != nil {
			return 0, b.failed(l, 0, err)
		}
		at += n
	}
	return messages, b.whole(ctx, l)
}

func (b *Bus) batchID(l *logState) string {
	return b.owner[:16] + "-" + strconv.FormatUint(l.calls, 10)
}

// single is the message of event i of an append that is not packed.
func (l *logState) single(b *Bus, e *onewrite.Event, i int) *natsgo.Msg {
	m := l.enc.encode(b.subjects(l.source)+subjectOf(e.Topic), e)
	if l.shift > 0 { // the log was packed once
		l.enc.set(hdrFirst, strconv.FormatUint(l.seq+l.shift+1+uint64(i), 10))
	}
	return m
}

// whole waits for the answer to an append that is one step.
func (b *Bus) whole(ctx context.Context, l *logState) error {
	_, m, err := l.answer(ctx)
	if errors.Is(err, natsgo.ErrNoResponders) {
		return b.failed(l, 0, err)
	}
	if err != nil {
		return fmt.Errorf("nats: append for source %s: no answer: %w", l.source, err)
	}
	if _, err := parseAck(m); err != nil {
		return b.failed(l, 0, err)
	}
	return nil
}

// failed words an append whose message i was refused, those before it stored.
func (b *Bus) failed(l *logState, i int, err error) error {
	switch {
	case errors.Is(err, natsgo.ErrNoResponders):
		l.exists = false
		return fmt.Errorf("nats: append for source %s: JetStream does not answer for stream %s: %w; is the disk full, or was the stream removed?", l.source, b.stream(l.source), err)
	case i > 0: // what is stored is seen by asking for the position
		return fmt.Errorf("nats: append for source %s: stored %d events, then: %w", l.source, i, unsteered{err})
	case moved(err):
		return fmt.Errorf("nats: append for source %s: %w: %w", l.source, err, onewrite.ErrFenced)
	case full(err):
		return fmt.Errorf("nats: append for source %s: %w: %w", l.source, err, onewrite.ErrFull)
	case code(err) == codeTooLarge, code(err) == codeHeaderTooLarge, errors.Is(err, natsgo.ErrMaxPayload):
		return fmt.Errorf("nats: append for source %s: %w: %w", l.source, err, onewrite.ErrRejected)
	}
	return fmt.Errorf("nats: append for source %s: %w", l.source, err)
}

// unsteered keeps an error's text and none of its meaning.
type unsteered struct{ err error }

func (u unsteered) Error() string { return u.err.Error() }

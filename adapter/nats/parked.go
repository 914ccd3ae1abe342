package nats

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/places"
)

// Headers of a parked event, beside those of the event.
const (
	hdrLog      = private + "Log"
	hdrOffset   = private + "Offset"
	hdrReason   = private + "Reason"
	hdrAttempts = private + "Attempts"
	hdrHolds    = private + "Holds"
	hdrAt       = private + "At"
)

func (b *Bus) parkedSubject(dest string) string { return b.parkedStream() + "." + dest + "." }

// fenceSubject is not that of an entry, which has two more parts.
func (b *Bus) fenceSubject(dest string) string { return b.parkedSubject(dest) + "owner" }

// fenceOf returns the place of a destination's fence, a message in the stream of
// parked events that every owner writes anew. The cursor is in another stream, so
// its revision cannot keep a stale owner from parking; the fence can, as the server
// compares it in the step that stores.
func (b *Bus) fenceOf(ctx context.Context, dest string) (uint64, error) {
	m, err := b.link.get(ctx, b.parkedStream(), query{LastFor: b.fenceSubject(dest)})
	if err != nil {
		return 0, fmt.Errorf("nats: parked events of destination %s: %w", dest, err)
	}
	if m == nil {
		return 0, nil
	}
	return m.Seq, nil
}

// raiseFence replaces the fence that was at seen, before the record was taken. A
// copy that was taken over in between finds another one: ErrFenced.
func (b *Bus) raiseFence(ctx context.Context, dest string, epoch, seen uint64) (uint64, error) {
	subject := b.fenceSubject(dest)
	seq, err := b.publish(ctx, b.parkedStream(), casMsg(subject, seen, strconv.AppendUint(nil, epoch, 10)))
	if moved(err) {
		return 0, fmt.Errorf("nats: parked events of destination %s: %w", dest, onewrite.ErrFenced)
	}
	if err != nil {
		return 0, fmt.Errorf("nats: parked events of destination %s: %w", dest, err)
	}
	if seen > 0 {
		if err := b.link.deleteMsg(ctx, b.parkedStream(), seen); err != nil {
			return 0, fmt.Errorf("nats: parked events of destination %s: %w", dest, err)
		}
	}
	return seq, nil
}

// fenced returns ErrFenced when another owner has raised the fence. What follows may
// still come too late: only Park is safe in one step.
func (s *subscription) fenced(ctx context.Context) error {
	now, err := s.b.fenceOf(ctx, s.in.Name)
	if err == nil && now != s.fence {
		err = fmt.Errorf("nats: parked events of destination %s: %w", s.in.Name, onewrite.ErrFenced)
	}
	return err
}

// hash names its parts in a subject; the parts cannot run into one another.
func hash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(strconv.Itoa(len(p)) + ":" + p))
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// laneHash names the lane of an event; one without a key is a lane by itself.
func laneHash(m *onewrite.Message) string {
	if m.Key == "" {
		return hash("id", m.Log, m.ID)
	}
	return hash("key", m.Log, m.Key)
}

// Park keeps a refused event; see [onewrite.Subscription].
func (s *subscription) Park(ctx context.Context, p onewrite.Parked) (uint64, error) {
	if s.in.Name == "" {
		return 0, errOnlooker
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	m := &p.Message
	subject := s.b.parkedSubject(s.in.Name) + laneHash(m) + "." + hash(m.Log, strconv.FormatUint(m.Offset, 10), m.ID)
	// Only the owner parks, and one event at a time: nothing comes between this look
	// and the publish, or the fence refuses it.
	there, err := s.b.link.get(ctx, s.b.parkedStream(), query{LastFor: subject})
	if err == nil && there != nil {
		return there.Seq, s.fenced(ctx)
	}
	var ref uint64
	if err == nil {
		var enc encoder
		msg := enc.encode(subject, &m.Event)
		enc.set(hdrLog, m.Log)
		enc.set(hdrOffset, strconv.FormatUint(m.Offset, 10))
		enc.set(hdrReason, cloudevents.Escape(places.Shorten(p.Reason, places.MaxReason)))
		enc.set(hdrAttempts, strconv.Itoa(p.Attempts))
		enc.set(hdrHolds, strconv.FormatBool(p.Holds))
		enc.set(hdrAt, p.At.UTC().Format(time.RFC3339Nano))
		enc.set("Nats-Expected-Last-Subject-Sequence", strconv.FormatUint(s.fence, 10))
		enc.set("Nats-Expected-Last-Subject-Sequence-Subject", s.b.fenceSubject(s.in.Name))
		ref, err = s.b.publish(ctx, s.b.parkedStream(), msg)
	}
	if moved(err) {
		return 0, fmt.Errorf("nats: park an event of destination %s: %w: %w", s.in.Name, err, onewrite.ErrFenced)
	}
	if err != nil {
		return 0, fmt.Errorf("nats: park an event of destination %s: %w", s.in.Name, err)
	}
	return ref, nil
}

// Parked lists parked events; see [onewrite.Subscription].
func (s *subscription) Parked(ctx context.Context, after uint64, limit int, key *onewrite.Lane) ([]onewrite.Parked, error) {
	if s.in.Name == "" {
		return nil, errOnlooker
	}
	if after == math.MaxUint64 || limit <= 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	lane := "*"
	if key != nil {
		if key.Key == "" {
			return nil, nil
		}
		lane = hash("key", key.Log, key.Key)
	}
	q := query{Seq: after + 1, NextFor: s.b.parkedSubject(s.in.Name) + lane + ".*"}
	list, err := s.parked(ctx, q, limit)
	if err != nil {
		return nil, fmt.Errorf("nats: parked events of destination %s: %w", s.in.Name, err)
	}
	return list, nil
}

func (s *subscription) parked(ctx context.Context, q query, limit int) ([]onewrite.Parked, error) {
	var list []onewrite.Parked
	add := func(seq uint64, h natsgo.Header, data []byte) error {
		q.Seq = seq + 1
		p, err := decodeParked(h, data)
		if err != nil {
			return fmt.Errorf("entry %d: %w; remove it: nats stream rmm %s %d", seq, err, s.b.parkedStream(), seq)
		}
		p.Ref = seq
		list = append(list, p)
		return nil
	}
	s.b.mu.Lock()
	alone := s.b.replicas == 1
	s.b.mu.Unlock()
	if !alone { // a replica may lag, and what is missing here would let a key flow: ask the leader
		for len(list) < limit {
			m, err := s.b.link.get(ctx, s.b.parkedStream(), q)
			if err != nil || m == nil {
				return list, err
			}
			h, err := m.header()
			if err == nil {
				err = add(m.Seq, h, m.Data)
			}
			if err != nil {
				return nil, err
			}
		}
		return list, nil
	}
	var in inbox
	defer in.close()
	for len(list) < limit {
		q.Batch = min(limit-len(list), readCount)
		f, err := s.b.fetch(ctx, &in, s.b.parkedStream(), q, func(seq uint64, m *natsgo.Msg) error {
			return add(seq, m.Header, m.Data)
		})
		if err != nil {
			return nil, err
		}
		if f.exhausted {
			break
		}
	}
	return list, nil
}

func decodeParked(h natsgo.Header, data []byte) (p onewrite.Parked, err error) {
	if p.Message.Event, err = decode(h, data); err != nil {
		return p, err
	}
	p.Message.Log = first(h, hdrLog)
	if p.Message.Offset, err = strconv.ParseUint(first(h, hdrOffset), 10, 64); err != nil {
		return p, fmt.Errorf("header %s is not a number", hdrOffset)
	}
	if p.Attempts, err = strconv.Atoi(first(h, hdrAttempts)); err != nil {
		return p, fmt.Errorf("header %s is not a number", hdrAttempts)
	}
	if p.At, err = time.Parse(time.RFC3339Nano, first(h, hdrAt)); err != nil {
		return p, fmt.Errorf("header %s is not a time", hdrAt)
	}
	p.Reason = cloudevents.Unescape(first(h, hdrReason))
	p.Holds = first(h, hdrHolds) == "true"
	return p, nil
}

// Unpark forgets entries; one that is gone already is no error.
func (s *subscription) Unpark(ctx context.Context, refs ...uint64) error {
	if s.in.Name == "" {
		return errOnlooker
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := s.fenced(ctx); err != nil {
		return err
	}
	for _, ref := range refs {
		if err := s.unpark(ctx, ref); err != nil {
			return fmt.Errorf("nats: forget parked event %d of destination %s: %w", ref, s.in.Name, err)
		}
	}
	return nil
}

func (s *subscription) unpark(ctx context.Context, ref uint64) error {
	stream := s.b.parkedStream()
	m, err := s.b.link.get(ctx, stream, query{Seq: ref})
	if err != nil || m == nil {
		return err
	}
	if !strings.HasPrefix(m.Subject, s.b.parkedSubject(s.in.Name)) {
		return fmt.Errorf("the entry belongs to another destination")
	}
	return s.b.link.deleteMsg(ctx, stream, ref)
}

// Unparked returns the greatest offset of a log, up to floor, that has no parked
// event of a destination at or before it. It asks for a destination that nobody
// delivers to.
func (b *Bus) Unparked(ctx context.Context, name, log string, floor uint64) (uint64, error) {
	s := &subscription{b: b, in: onewrite.Interest{Name: name}}
	for after := uint64(0); ; {
		list, err := s.Parked(ctx, after, 500, nil)
		if err != nil {
			return 0, err
		}
		for i := range list {
			after = list[i].Ref
			if m := &list[i].Message; m.Log == log && m.Offset <= floor {
				floor = m.Offset - 1
			}
		}
		if len(list) < 500 {
			return floor, nil
		}
	}
}

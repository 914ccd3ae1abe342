package pipeline

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// placed is the place of a destination that its sink keeps, see [onewrite.Placed].
// The cursor on the bus is stored now and then, so after a crash events come again
// that were written. The record in the sink names them, by where they stand on the
// bus and by their ids: who opens the sink finds them there and does not write them.
// It goes by ids because a bus that was made anew, or restored from a copy, may have
// other events at the same offsets.
type placed struct {
	sink    onewrite.Placed  // nil: the sink keeps no place
	pair    string           // ties the record to the cursor on the bus
	written map[place]uint64 // what is in the sink and may come again: hashes of the ids
}

// maxWritten bounds the events that a record names. Beyond, writing waits for the bus
// to store the cursor.
const maxWritten = 20_000

// placeRecord is what is stored in the sink, as JSON.
type placeRecord struct {
	Version int    `json:"version"`
	Pair    string `json:"pair"`
	// Delivered and Filtered are the counters of the cursor when all that the record
	// names is counted.
	Delivered uint64                 `json:"delivered"`
	Filtered  uint64                 `json:"filtered"`
	Logs      map[string]recordedLog `json:"logs"`
	// Again are parked events that were delivered and may not be forgotten yet: the
	// hashes of their ids by their refs.
	Again map[uint64]uint64 `json:"again,omitempty"`
}

type recordedLog struct {
	onewrite.LogCursor
	// Written are offsets, and IDs the hashes of the ids there, eight bytes each.
	Written []onewrite.Span `json:"written,omitempty"`
	IDs     string          `json:"ids,omitempty"`
}

func hashOf(id string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id))
	return h.Sum64()
}

// record is what is stored with a batch.
func (r *deliverer) record(batch []*entry) ([]byte, error) {
	rec := placeRecord{Version: 1, Pair: r.placed.pair, Delivered: r.cursor.Delivered + uint64(len(batch)), Filtered: r.cursor.Filtered, Logs: map[string]recordedLog{}}
	written := maps.Clone(r.placed.written)
	for _, e := range batch {
		if e.ref == 0 {
			written[place{e.msg.Log, e.msg.Offset}] = hashOf(e.msg.ID)
			continue
		}
		if rec.Again == nil {
			rec.Again = map[uint64]uint64{}
		}
		rec.Again[e.ref] = hashOf(e.msg.ID)
	}
	offsets := map[string][]uint64{}
	for p := range written {
		offsets[p.log] = append(offsets[p.log], p.offset)
	}
	for name, t := range r.tracks {
		l := recordedLog{LogCursor: t.cursor()}
		list := offsets[name]
		slices.Sort(list)
		ids := make([]byte, 0, 8*len(list))
		for _, o := range list {
			if n := len(l.Written); n > 0 && l.Written[n-1].To == o-1 {
				l.Written[n-1].To = o
			} else {
				l.Written = append(l.Written, onewrite.Span{From: o, To: o})
			}
			ids = binary.BigEndian.AppendUint64(ids, written[place{name, o}])
		}
		l.IDs = base64.RawStdEncoding.EncodeToString(ids)
		rec.Logs[name] = l
	}
	return json.Marshal(rec)
}

// readRecord reads what a sink keeps; nil if it keeps nothing yet.
func readRecord(data []byte) (*placeRecord, map[place]uint64, error) {
	written := map[place]uint64{}
	if data == nil {
		return nil, written, nil
	}
	var rec placeRecord
	if err := json.Unmarshal(data, &rec); err != nil || rec.Version != 1 {
		return nil, nil, errors.New("the place that the destination keeps cannot be read; was it written by a newer onewrite, or by another program?")
	}
	for name, l := range rec.Logs {
		ids, err := base64.RawStdEncoding.DecodeString(l.IDs)
		n := 0
		for _, s := range l.Written {
			for o := s.From; err == nil && o <= s.To; o++ {
				if n+8 > len(ids) {
					err = errors.New("the place that the destination keeps is damaged")
					break
				}
				written[place{name, o}] = binary.BigEndian.Uint64(ids[n:])
				n += 8
			}
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return &rec, written, nil
}

// takeOver compares what the sink keeps with the cursor, and settles what was
// written already.
func (r *deliverer) takeOver(s onewrite.Placed, data []byte, now time.Time) error {
	rec, written, err := readRecord(data)
	if err != nil {
		return err
	}
	name, known := r.d.Interest.Name, r.cursor.Placed
	if known == onewrite.PlacedVoid {
		rec, known = nil, ""
		clear(written)
	}
	switch {
	case rec == nil && known != "":
		r.log.Error("the destination had a place and has none any more; was it emptied? What it had got is not sent again", "delivered", r.cursor.Delivered,
			"cure", "to fill it again give the destination another name and from: beginning; the bus has what bus.keep says")
	case rec != nil && known != "" && known != rec.Pair:
		return fmt.Errorf("the destination keeps the place of another onewrite, or of another bus, under the name %s; give one of the two another name", name)
	case rec != nil && known != "" && rec.Delivered < r.cursor.Delivered:
		return r.rewind(rec, written)
	}
	p := &r.placed
	p.sink, p.written = s, written
	if p.pair = known; known == "" {
		p.pair = rand.Text()
	}
	if rec == nil {
		return nil
	}
	return r.settleWritten(rec, now)
}

// errRewound ends a session whose cursor was set back.
var errRewound = errors.New("the destination has forgotten events that it had confirmed, and gets them again")

// rewind sets the cursor back to where the sink is: it has lost what it had confirmed.
func (r *deliverer) rewind(rec *placeRecord, written map[place]uint64) error {
	r.log.Error("the destination has forgotten events that it had confirmed; was it restored from a copy, or did it lose its newest writes? They are sent again, as far as the bus has them",
		"forgotten", r.cursor.Delivered-rec.Delivered)
	c := r.cursor
	c.Delivered, c.Filtered = rec.Delivered, rec.Filtered
	c.Logs = make(map[string]onewrite.LogCursor, len(rec.Logs))
	for name, l := range rec.Logs {
		c.Logs[name] = l.LogCursor
	}
	again := uint64(len(rec.Again))
	for p := range written {
		if !covers(c.Logs[p.log], p.offset) {
			again++
		}
	}
	c.Delivered -= min(again, c.Delivered) // what comes again is counted then
	c.Parked, c.LastParked = r.lot.owed(c.Settled)
	if r.storing != nil {
		if err := r.stored(<-r.commits); err != nil {
			return err
		}
	}
	if err := r.commit(c); err != nil {
		return fmt.Errorf("bus: store the cursor of %s: %w", r.d.Interest.Name, err)
	}
	r.dirty, r.torn = false, errRewound
	return errRewound
}

// settleWritten takes what is in the sink already out of the lanes, and forgets parked
// events that are.
func (r *deliverer) settleWritten(rec *placeRecord, now time.Time) error {
	var there []*entry
	for l := range r.lanes.all() {
		rest := l.queue[:0:0]
		for _, e := range l.queue {
			if r.isWritten(e, rec) {
				there = append(there, e)
			} else {
				rest = append(rest, e)
			}
		}
		if len(rest) < len(l.queue) {
			l.queue, l.retry = rest, time.Time{}
			r.lanes.settle(l)
		}
	}
	for _, e := range there {
		delete(rec.Again, e.ref)
		if err := r.delivered(e, now); err != nil {
			return err
		}
	}
	for ref, hash := range rec.Again {
		at, parked := r.lot.places[ref]
		if !parked || hashOf(r.lot.at[at]) != hash {
			continue
		}
		r.cursor.Delivered++
		if err := r.forget(&lane{index: -1}, ref); err != nil {
			return err
		}
	}
	return nil
}

// isWritten reports whether the sink has an event.
func (r *deliverer) isWritten(e *entry, rec *placeRecord) bool {
	if e.ref != 0 {
		hash, ok := rec.Again[e.ref]
		return ok && hash == hashOf(e.msg.ID)
	}
	return r.placed.has(&e.msg)
}

func (p *placed) has(m *onewrite.Message) bool {
	hash, ok := p.written[place{m.Log, m.Offset}]
	return ok && hash == hashOf(m.ID)
}

// full reports whether writing has to wait for the cursor.
func (p *placed) full() bool { return p.sink != nil && len(p.written) >= maxWritten }

// note adds what is written now.
func (r *deliverer) note(batch []*entry) {
	r.cursor.Placed = r.placed.pair
	for _, e := range batch {
		if e.ref == 0 {
			r.placed.written[place{e.msg.Log, e.msg.Offset}] = hashOf(e.msg.ID)
		}
	}
}

// stored forgets what cannot come again: the cursor is past it.
func (p *placed) stored(c *onewrite.Cursor) {
	maps.DeleteFunc(p.written, func(at place, _ uint64) bool { return covers(c.Logs[at.log], at.offset) })
}

// writePlaced writes a batch with the record.
func (r *deliverer) writePlaced(batch []*entry) {
	record, err := r.record(batch)
	sink, msgs := r.placed.sink, make([]onewrite.Message, len(batch))
	for i, e := range batch {
		msgs[i] = e.msg
		msgs[i].Event = *e.event()
	}
	go func() {
		bad := 0
		if err == nil {
			bad, err = sabotaged(func() (int, error) { return sink.WriteAt(r.finish, msgs, record) })
		}
		n := 0
		if err == nil {
			n = len(batch)
		}
		r.results <- result{batch: batch, n: n, bad: max(0, min(bad, len(batch)-1)), err: err}
	}()
}

// failedPlaced decides what a failed write of a whole batch means. If the sink did not
// say that nothing is durable, it is opened again, which says what is.
func (r *deliverer) failedPlaced(res result, now time.Time) error {
	if errors.Is(res.err, onewrite.ErrRejected) || answered(res.err) {
		e := res.batch[res.bad]
		e.solo = true
		if e.lane.queue[0] != e { // what its key has before goes first, without it
			return nil
		}
		return r.failed([]*entry{e}, res.err, now)
	}
	err := r.failed(res.batch, res.err, now)
	r.shut()
	return err
}

// open opens the sink, and asks for its place if it keeps one.
func (r *deliverer) open() (res result) {
	if res.err = sabotage.At("delivery.open"); res.err != nil {
		return res
	}
	res.sink, res.err = r.d.Open(r.finish)
	p, keeps := res.sink.(onewrite.Placed)
	if res.err != nil || !keeps {
		return res
	}
	ctx, cancel := context.WithTimeout(r.finish, time.Minute)
	defer cancel()
	if res.record, res.err = p.Place(ctx); res.err != nil {
		if err := p.Close(); err != nil {
			r.log.Debug("close the sink", "error", err)
		}
		res.sink = nil
	}
	return res
}

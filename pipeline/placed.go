package pipeline

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
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
	pair    pairing          // ties the record to the cursor on the bus
	written map[place]uint64 // what this session has written and may come again: hashes of the ids
	read    map[place]uint64 // and what it found in the record
}

const (
	// maxWritten bounds the events that a session adds to a record. Beyond, writing waits
	// for the bus to store the cursor.
	maxWritten = 20_000
	// maxLot bounds the parked events that a record names.
	maxLot = 200
)

// pairing is the same in a cursor and in the record that belongs to it.
type pairing struct {
	name string
	gen  uint64 // grows when the cursor is moved back on purpose: what an older record names is to be written again
	base uint64 // events that were delivered before it
}

func (p pairing) String() string { return fmt.Sprintf("%s/%d/%d", p.name, p.gen, p.base) }

// parsePairing reads a pairing; void: records of before are of no use.
func parsePairing(text string) (p pairing, void bool) {
	text, void = strings.CutPrefix(text, onewrite.PlacedVoid)
	name, rest, _ := strings.Cut(text, "/")
	gen, base, _ := strings.Cut(rest, "/")
	p.name = name
	p.gen, _ = strconv.ParseUint(gen, 10, 64)
	p.base, _ = strconv.ParseUint(base, 10, 64)
	return p, void
}

// placeRecord is what is stored in the sink, as JSON.
type placeRecord struct {
	Version int    `json:"version"`
	Pair    string `json:"pair"`
	// Delivered, Filtered and Skipped are the counters of the cursor when all that the
	// record names is counted.
	Delivered uint64                 `json:"delivered"`
	Filtered  uint64                 `json:"filtered"`
	Skipped   uint64                 `json:"skipped"`
	Logs      map[string]recordedLog `json:"logs"`
	// Lot are the places of parked events, by their refs: as many as there is room for.
	Lot map[uint64]lotPlace `json:"lot,omitempty"`
	// Again are parked events that were delivered and may not be forgotten yet: the
	// hashes of their ids by their refs.
	Again map[uint64]uint64 `json:"again,omitempty"`
	// Ahead is that of the cursor when all of Again is forgotten: a cursor that is set
	// back to this record hands those events out once more.
	Ahead []onewrite.Ahead `json:"ahead,omitempty"`
}

type recordedLog struct {
	onewrite.LogCursor
	// Written are offsets, and IDs the hashes of the ids there, eight bytes each.
	Written []onewrite.Span `json:"written,omitempty"`
	IDs     string          `json:"ids,omitempty"`
}

// lotPlace is where a parked event stood on the bus.
type lotPlace struct {
	Log    string `json:"log"`
	Offset uint64 `json:"offset"`
}

func hashOf(id string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id))
	return h.Sum64()
}

// record is what is stored with a batch.
func (r *deliverer) record(batch []*entry) ([]byte, error) {
	rec := placeRecord{Version: 1, Pair: r.placed.pair.String(), Delivered: r.cursor.Delivered + uint64(len(batch)), Filtered: r.cursor.Filtered, Skipped: r.cursor.Skipped, Logs: map[string]recordedLog{}, Ahead: slices.Clone(r.cursor.Ahead)}
	written := maps.Clone(r.placed.written)
	if len(written)+len(r.placed.read) <= 2*maxWritten { // what does not come again in all that time never will
		maps.Copy(written, r.placed.read)
		rec.Delivered += r.unmet()
	}
	for ref, at := range r.lot.places {
		if rec.Lot == nil {
			rec.Lot = map[uint64]lotPlace{}
		}
		if len(rec.Lot) < maxLot {
			rec.Lot[ref] = lotPlace{at.log, at.offset}
		}
	}
	for _, e := range batch {
		if e.ref == 0 {
			written[place{e.msg.Log, e.msg.Offset}] = hashOf(e.msg.ID)
			continue
		}
		if rec.Again == nil {
			rec.Again = map[uint64]uint64{}
		}
		rec.Again[e.ref] = hashOf(e.msg.ID)
		if _, ahead := r.lot.ahead[place{e.msg.Log, e.msg.Offset}]; ahead {
			rec.Ahead = append(rec.Ahead, onewrite.Ahead{Log: e.msg.Log, Offset: e.msg.Offset, ID: hashOf(e.msg.ID)})
		}
	}
	offsets := map[string][]uint64{}
	for p := range written {
		offsets[p.log] = append(offsets[p.log], p.offset)
	}
	for name, t := range r.tracks {
		rec.Logs[name] = recordedLog{LogCursor: t.cursor()}
	}
	for name, list := range offsets { // one that the loop has read nothing of yet has no track
		l := rec.Logs[name]
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

// unmet is how much of what an earlier session has written is yet to come from the bus,
// and to be counted.
func (r *deliverer) unmet() (n uint64) {
	for at := range r.placed.read {
		if t := r.tracks[at.log]; t == nil || !covers(onewrite.LogCursor{Floor: t.handed, Done: t.prior}, at.offset) {
			n++
		}
	}
	return n
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

func (p *placed) has(m *onewrite.Message) bool {
	at := place{m.Log, m.Offset}
	if sabotage.Bug == "placed-floor" && p.beyond(at) {
		return true
	}
	hash, ok := p.written[at]
	if !ok {
		hash, ok = p.read[at]
	}
	return ok && hash == hashOf(m.ID)
}

// beyond reports whether something behind a place is written. It says nothing of the
// place: that is the bug.
func (p *placed) beyond(at place) bool {
	for w := range p.read {
		if w.log == at.log && w.offset > at.offset {
			return true
		}
	}
	return false
}

// full reports whether writing has to wait for the cursor.
func (p *placed) full() bool { return p.sink != nil && len(p.written) >= maxWritten }

// note adds what is written now.
func (p *placed) note(batch []*entry) {
	for _, e := range batch {
		if e.ref == 0 {
			p.written[place{e.msg.Log, e.msg.Offset}] = hashOf(e.msg.ID)
		}
	}
}

// stored forgets what cannot come again: the cursor is past it.
func (p *placed) stored(c *onewrite.Cursor) {
	past := func(at place, _ uint64) bool { return covers(c.Logs[at.log], at.offset) }
	maps.DeleteFunc(p.written, past)
	maps.DeleteFunc(p.read, past)
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
// say that nothing is durable, it is opened again, which says what is: until then no
// event is parked.
func (r *deliverer) failedPlaced(res result, now time.Time) error {
	if errors.Is(res.err, onewrite.ErrRejected) || answered(res.err) {
		e := res.batch[res.bad]
		e.solo = true
		if e.lane.queue[0] != e { // what its key has before goes first, without it
			return nil
		}
		return r.failed([]*entry{e}, res.err, now)
	}
	r.undecided = true
	err := r.failed(res.batch, res.err, now)
	r.undecided = false
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
	if res.record, res.err = p.Place(ctx); res.err == nil {
		res.err = sabotage.At("placed.read")
	}
	if res.err != nil {
		if err := p.Close(); err != nil {
			r.log.Debug("close the sink", "error", err)
		}
		res.sink = nil
	}
	return res
}

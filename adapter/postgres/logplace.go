package postgres

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// logPlace is a place in the log: after the transactions that end at or before done,
// and after the first changes of the transaction that commits at tx. It never holds
// the place of a change: those go backwards, as transactions are sent in the order of
// their commits.
type logPlace struct {
	slot  pgoutput.LSN // where the slot began; the identity of the slot
	line  uint32       // the timeline
	done  pgoutput.LSN
	when  int64        // the moment of the commit that ended at done, as the server writes it; 0: not known
	tx    pgoutput.LSN // 0: not inside a transaction
	ends  int64        // the moment of its commit, as when; 0: not known
	index uint32       // changes of tx that were handed over whole
	sub   uint8        // events of the next change that were handed over
	snaps *snapPlaces
}

// snapPlaces are the snapshots under way. It is shared by many places and does not
// change.
type snapPlaces []snapPlace

// snapPlace is how far the snapshot of a table is.
type snapPlace struct {
	rel    uint32
	wanted int      // which snapshot of the table, counted from 1
	key    []string // of the last row that was handed over, after what says by what it was sorted; empty: none was
	done   bool
}

// with returns the places with one of them replaced or added.
func (s *snapPlaces) with(p snapPlace) *snapPlaces {
	next := s.without(p.rel)
	if next == nil {
		next = &snapPlaces{}
	}
	*next = append(*next, p)
	return next
}

// without returns the places without that of a table.
func (s *snapPlaces) without(rel uint32) *snapPlaces {
	if s == nil {
		return nil
	}
	next := slices.DeleteFunc(slices.Clone(*s), func(p snapPlace) bool { return p.rel == rel })
	if len(next) == 0 {
		return nil
	}
	return &next
}

// of returns the place of the snapshot of a table.
func (s *snapPlaces) of(rel uint32, wanted int) snapPlace {
	if s != nil {
		for _, p := range *s {
			if p.rel == rel && p.wanted == wanted {
				return p
			}
		}
	}
	return snapPlace{rel: rel, wanted: wanted}
}

const logPlaceVersion = "wal1"

// append writes the place; parseLogPlace reads it.
func (p logPlace) append(b []byte) []byte {
	b = append(b, logPlaceVersion...)
	for _, n := range []uint64{uint64(p.slot), uint64(p.line), uint64(p.done), uint64(p.tx), uint64(p.index), uint64(p.sub)} {
		b = append(b, ',')
		b = strconv.AppendUint(b, n, 16)
	}
	if p.when != 0 {
		b = append(b, ",@"...)
		b = strconv.AppendInt(b, p.when, 16)
	}
	if p.ends != 0 {
		b = append(b, ",~"...)
		b = strconv.AppendInt(b, p.ends, 16)
	}
	if p.snaps == nil {
		return b
	}
	for _, s := range *p.snaps {
		b = append(b, ',')
		b = strconv.AppendUint(b, uint64(s.rel), 10)
		b = append(b, ':')
		b = strconv.AppendInt(b, int64(s.wanted), 10)
		b = append(b, ':')
		switch {
		case s.done:
			b = append(b, '!')
		case s.key != nil:
			text, _ := json.Marshal(s.key) // texts cannot fail
			b = base64.RawURLEncoding.AppendEncode(b, text)
		}
	}
	return b
}

func parseLogPlace(text string) (p logPlace, err error) {
	bad := fmt.Errorf("postgres: %q is not a place in the log; put the configuration back, or start with an empty bus folder", text)
	f := strings.Split(text, ",")
	if len(f) < 7 || f[0] != logPlaceVersion {
		return p, bad
	}
	var n [6]uint64
	for i := range n {
		if n[i], err = strconv.ParseUint(f[i+1], 16, 64); err != nil {
			return p, bad
		}
	}
	p = logPlace{slot: pgoutput.LSN(n[0]), line: uint32(n[1]), done: pgoutput.LSN(n[2]), tx: pgoutput.LSN(n[3]), index: uint32(n[4]), sub: uint8(n[5])}
	for _, word := range f[7:] {
		if when, ok := strings.CutPrefix(word, "@"); ok {
			if p.when, err = strconv.ParseInt(when, 16, 64); err != nil {
				return p, bad
			}
			continue
		}
		if ends, ok := strings.CutPrefix(word, "~"); ok {
			if p.ends, err = strconv.ParseInt(ends, 16, 64); err != nil {
				return p, bad
			}
			continue
		}
		w := strings.Split(word, ":")
		if len(w) != 3 {
			return p, bad
		}
		rel, err := strconv.ParseUint(w[0], 10, 32)
		if err != nil {
			return p, bad
		}
		s := snapPlace{rel: uint32(rel), done: w[2] == "!"}
		if s.wanted, err = strconv.Atoi(w[1]); err != nil {
			return p, bad
		}
		if w[2] != "" && !s.done {
			key, err := base64.RawURLEncoding.DecodeString(w[2])
			if err != nil || json.Unmarshal(key, &s.key) != nil {
				return p, bad
			}
		}
		p.snaps = p.snaps.with(s)
	}
	return p, nil
}

// dual separates the place in the log from the place in the ring, in the position of
// a source that reads both.
const dual = "|"

// joinPlaces makes the position of a source that reads log and ring.
func joinPlaces(log logPlace, ring onewrite.Pos) onewrite.Pos {
	b := make([]byte, 0, 80+len(ring))
	b = log.append(b)
	b = append(b, dual...)
	return onewrite.Pos(append(b, ring...))
}

// splitPlaces takes a position apart; one of a source that read the ring alone has no
// place in the log.
func splitPlaces(pos onewrite.Pos) (log *logPlace, ring onewrite.Pos, err error) {
	head, tail, ok := strings.Cut(string(pos), dual)
	if !ok {
		return nil, pos, nil
	}
	p, err := parseLogPlace(head)
	return &p, onewrite.Pos(tail), err
}

// ringOf is the ring's part of a position. The bus may have one of a time when the log was
// read too: tables: was taken out since.
func ringOf(pos onewrite.Pos) onewrite.Pos {
	if _, ring, ok := strings.Cut(string(pos), dual); ok {
		return onewrite.Pos(ring)
	}
	return pos
}

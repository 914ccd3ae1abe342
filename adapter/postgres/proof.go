package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// claim is what a place knows of the transactions that it has on the word of the log, until
// they are proven: the log leaves out rows where the outbox was taken out of the publication, or
// put into it, while a transaction was open. Such a transaction is not read to its end,
// though the place has it. So the rows of it are compared with those in the ring, by how
// many they are and by their numbers, and only then may a leaf with them be emptied.
type claim struct {
	sure snapshot // what the place has without them; zero: they are none
	all  tally    // of all of them
	xid  uint64   // the transaction that is told in part, 0: there is none
	part tally    // of it
}

// tally is of events: how many, and the sum of their numbers, each modulo tallyModulo.
type tally struct{ n, sum int64 }

// tallyModulo keeps sums of numbers within an int64: it is 2^31-1.
const tallyModulo = 1<<31 - 1

func (t tally) add(seq int64) tally { return tally{t.n + 1, t.sum + seq%tallyModulo} }

func (t tally) plus(u tally) tally { return tally{t.n + u.n, t.sum + u.sum} }

// claimMark begins the part of a position that is a claim.
const claimMark = "~"

func (t claim) String() string {
	return fmt.Sprintf("%s%d.%d.%d.%d.%d.%s", claimMark, t.all.n, t.all.sum, t.xid, t.part.n, t.part.sum, t.sure.text)
}

func parseClaim(s string) (t claim, err error) {
	f := strings.SplitN(strings.TrimPrefix(s, claimMark), ".", 6)
	if len(f) != 6 {
		return t, errors.New("another form")
	}
	for i, to := range []any{&t.all.n, &t.all.sum, &t.xid, &t.part.n, &t.part.sum} {
		if _, err := fmt.Sscan(f[i], to); err != nil {
			return t, err
		}
	}
	if f[5] != "" {
		t.sure, err = parseSnapshot(f[5])
	}
	return t, err
}

// none reports whether there is nothing to be proven.
func (t claim) none() bool { return t.sure.text == "" && t.xid == 0 }

// proven is what the place has and the ring is known to have no more of.
func (p *place) proven() snapshot {
	if p.claim.sure.text == "" {
		return p.from
	}
	return p.claim.sure
}

// after is the place behind an item of the log.
func (p place) after(it *item) place {
	p.top = max(p.top, it.seq)
	if it.seq != 0 {
		if p.claim.xid != it.xid {
			p.claim.xid, p.claim.part = it.xid, tally{}
		}
		p.claim.part = p.claim.part.add(it.seq)
	}
	if it.at.tx != 0 || it.xid == 0 || p.from.has(it.xid) {
		return p
	}
	if p.claim.sure.text == "" {
		p.claim.sure = p.from
	}
	p.from = p.from.add(it.xid)
	if p.claim.xid == it.xid {
		p.claim.all = p.claim.all.plus(p.claim.part)
	}
	p.claim.xid, p.claim.part = 0, tally{}
	return p
}

// proof is what this process knows of them.
type proof struct {
	told map[uint64]tally // by transaction
	seqs []numbered       // of the events that were told of them, and of one that is told in part
	skip map[int64]struct{}
}

type numbered struct {
	xid uint64
	seq int64
}

// maxNumbered bounds them. What is beyond comes again, with the same ids, if it has to be
// read from the ring.
const maxNumbered = 200_000

// note remembers what an item tells that is handed over; before is the place then.
func (p *proof) note(before *place, it *item) {
	if it.seq != 0 && len(p.seqs) < maxNumbered {
		p.seqs = append(p.seqs, numbered{it.xid, it.seq})
	}
	if it.at.tx != 0 || it.xid == 0 || before.from.has(it.xid) {
		return
	}
	t := tally{}
	if before.claim.xid == it.xid {
		t = before.claim.part
	}
	if it.seq != 0 {
		t = t.add(it.seq)
	}
	if p.told == nil {
		p.told = map[uint64]tally{}
	}
	p.told[it.xid] = t
}

// unproven are the transactions that are told and not proven, in their order.
func (p *proof) unproven() []uint64 { return slices.Sorted(maps.Keys(p.told)) }

// toldSQL counts what the ring has of transactions between two snapshots: $3 and $4 are
// the end and the transactions in progress of the lower one, $1 and $2.
const toldSQL = `FROM onewrite.outbox WHERE (xid >= (SELECT $3::text::xid8) OR xid = ANY ((SELECT $4::text::xid8[])::xid8[]))
	AND pg_visible_in_snapshot(xid, (SELECT $2::text::pg_snapshot)) AND NOT pg_visible_in_snapshot(xid, (SELECT $1::text::pg_snapshot))`

var (
	tallySQL   = fmt.Sprintf(`SELECT pg_current_snapshot()::text, count(*), coalesce(sum(seq %% %d), 0)::bigint `, tallyModulo) + toldSQL
	talliesSQL = fmt.Sprintf(`SELECT xid::text::bigint, count(*), sum(seq %% %d)::bigint `, tallyModulo) + toldSQL + ` GROUP BY xid`
)

// between are the arguments of these.
func between(sure, from snapshot) []any {
	return []any{sure.text, from.text, fmt.Sprint(sure.xmax), sure.array()}
}

// prove compares what the log told since the last look with the ring. What it told in
// part is read from there, without what came already.
func (s *Source) prove(ctx context.Context) error {
	s.proof.skip = nil
	if len(s.proof.told) == 0 {
		return nil
	}
	var text string
	var there, came tally
	if err := s.conn.QueryRow(ctx, tallySQL, between(s.at.proven(), s.at.from)...).Scan(&text, &there.n, &there.sum); err != nil {
		return explain(err)
	}
	now, err := parseSnapshot(text)
	if err != nil {
		return err
	}
	for xid, t := range s.proof.told {
		if now.has(xid) {
			came = came.plus(t)
		}
	}
	var bad []uint64
	if came != there {
		if bad, err = s.inPart(ctx, now); err != nil {
			return err
		}
	}
	maps.DeleteFunc(s.proof.told, func(xid uint64, _ tally) bool { return now.has(xid) })
	if len(bad) > 0 {
		s.log.Error("the log has told some events of transactions and not others: was the outbox taken out of the publication, or put into it? The others are read from the ring, perhaps behind newer ones of their keys",
			"transactions", len(bad), "publication", publicationOf(s.cfg.Name))
		s.at.from, s.proof.skip = s.at.from.without(bad), map[int64]struct{}{}
		for _, n := range s.proof.seqs {
			if slices.Contains(bad, n.xid) {
				s.proof.skip[n.seq] = struct{}{}
			}
		}
	}
	s.proof.seqs = slices.DeleteFunc(s.proof.seqs, func(n numbered) bool {
		_, open := s.proof.told[n.xid]
		return !open && n.xid != s.at.claim.xid
	})
	s.at.claim.all = tally{}
	for _, t := range s.proof.told {
		s.at.claim.all = s.at.claim.all.plus(t)
	}
	s.stand()
	return nil
}

// inPart returns which of the transactions that can be seen now have more than was told.
// One that has less was told all the same: somebody has deleted rows.
func (s *Source) inPart(ctx context.Context, now snapshot) (bad []uint64, err error) {
	rows, err := s.conn.Query(ctx, talliesSQL, between(s.at.proven(), s.at.from)...)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	for rows.Next() {
		var xid uint64
		var there tally
		if err := rows.Scan(&xid, &there.n, &there.sum); err != nil {
			return nil, explain(err)
		}
		if t, is := s.proof.told[xid]; is && now.has(xid) && there != t && there.n >= t.n {
			bad = append(bad, xid)
		}
	}
	slices.Sort(bad)
	return bad, explain(rows.Err())
}

// stand sets what is proven of the place, when the ring was read up to it.
func (s *Source) stand() {
	s.at.claim.sure = snapshot{}
	if len(s.proof.told) > 0 {
		s.at.claim.sure = s.at.from.without(s.proof.unproven())
	}
}

// proveStart compares, when reading begins, what an earlier process was told by the log.
// If the ring has other rows, all that was not proven is read again.
func (s *Source) proveStart(ctx context.Context) error {
	if s.at.claim.sure.text == "" {
		return nil
	}
	sure := s.at.proven()
	var text string
	var there tally
	if err := s.conn.QueryRow(ctx, tallySQL, between(sure, s.at.from)...).Scan(&text, &there.n, &there.sum); err != nil {
		return explain(err)
	}
	now, err := parseSnapshot(text)
	if err != nil {
		return err
	}
	hidden := s.at.from.xmax > now.xmax || slices.ContainsFunc(now.xip, func(x uint64) bool { return s.at.from.has(x) && !sure.has(x) })
	if hidden || there.n > s.at.claim.all.n || there.n == s.at.claim.all.n && there != s.at.claim.all {
		s.log.Error("the log had told some events of transactions and not others before the restart: was the outbox taken out of the publication, or put into it? What it told last is read again from the ring, with the same ids",
			"told", s.at.claim.all.n, "there", there.n)
		s.at.from, s.at.to, s.at.seq = sure, snapshot{}, 0
	}
	s.at.claim.sure, s.at.claim.all = snapshot{}, tally{}
	return nil
}

// drop takes out what came already.
func (r *rows) drop(seqs map[int64]struct{}) {
	if len(seqs) == 0 {
		return
	}
	var kept rows
	for i, seq := range r.seqs {
		if _, came := seqs[seq]; !came {
			kept.events, kept.seqs = append(kept.events, r.events[i]), append(kept.seqs, seq)
		}
	}
	*r = kept
}

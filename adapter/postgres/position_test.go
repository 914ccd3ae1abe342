package postgres

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/onewrite/onewrite"
)

func drawSnapshot(t *rapid.T, name string) snapshot {
	xmin := rapid.Uint64Range(1, 1<<40).Draw(t, name+".xmin")
	s := of(xmin, nil)
	for x, n := xmin, rapid.IntRange(0, 5).Draw(t, name+".open"); n > 0; n-- {
		s.xip = append(s.xip, x)
		x += rapid.Uint64Range(1, 9).Draw(t, name+".step")
		s.xmax = x
	}
	s.text = fmt.Sprintf("%d:%d:%s", xmin, s.xmax, strings.Trim(s.array(), "{}"))
	return s
}

// What pos writes, parsePlace reads; and a text that it reads is one that pos
// would write.
func TestPositionRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := place{
			system: rapid.Uint64().Draw(t, "system"), line: rapid.Uint64Range(1, 99).Draw(t, "line"), bus: rapid.StringMatching(`[a-zA-Z0-9-]{1,30}`).Draw(t, "bus"),
			epoch: rapid.Int64Range(1, 1<<40).Draw(t, "epoch"), base: drawSnapshot(t, "base"), top: rapid.Int64Range(0, 1<<60).Draw(t, "top"), from: drawSnapshot(t, "from"),
		}
		if rapid.Bool().Draw(t, "inside") {
			p.to, p.seq = drawSnapshot(t, "to"), rapid.Int64Range(0, 1<<60).Draw(t, "seq")
		}
		got, err := parsePlace(p.pos())
		if err != nil || got.pos() != p.pos() || got.from.array() != p.from.array() || got.to.xmax != p.to.xmax || got.from.xmin != p.from.xmin || got.base.text != p.base.text {
			t.Fatalf("%s was read as %+v, %v", p.pos(), got, err)
		}
	})
}

// ended reports what a snapshot says of a transaction.
func (s snapshot) ended(x uint64) bool { return x < s.xmax && !slices.Contains(s.xip, x) }

// The meeting of two snapshots saw what both saw; the short form of one never
// more than it, and a transaction that stays open does not make it see less.
func TestSnapshotArithmetic(t *testing.T) {
	draw := func(t *rapid.T, name string) snapshot {
		xmax := rapid.Uint64Range(1, 80).Draw(t, name+".xmax")
		var xip []uint64
		for x := uint64(1); x < xmax; x++ {
			if rapid.Bool().Draw(t, name+".open") {
				xip = append(xip, x)
			}
		}
		return of(xmax, xip)
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw(t, "a"), draw(t, "b")
		both, short := a.meet(b), a.short()
		for x := range uint64(90) {
			if both.ended(x) != (a.ended(x) && b.ended(x)) {
				t.Fatalf("%s and %s meet in %s: %d", a.text, b.text, both.text, x)
			}
			if short.ended(x) && !a.ended(x) || len(a.xip) > 0 && x < a.xip[min(listed, len(a.xip))-1] && short.ended(x) != a.ended(x) {
				t.Fatalf("%s is short for %s: %d", short.text, a.text, x)
			}
		}
		for _, s := range []snapshot{both, short} {
			if again, err := parseSnapshot(s.text); err != nil || again.array() != s.array() || again.xmin != s.xmin || again.xmax != s.xmax {
				t.Fatalf("%s is read as %+v, %v", s.text, again, err)
			}
		}
		if len(short.xip) > listed {
			t.Fatalf("%s is not short", short.text)
		}
	})
}

func FuzzParsePlace(f *testing.F) {
	p := place{system: 1, line: 1, epoch: 2, base: of(9, []uint64{4, 6}), bus: "b", top: 3, from: empty}
	f.Add(string(p.pos()))
	p.to, p.seq = snapshot{text: "5:9:5,7", xmin: 5, xmax: 9, xip: []uint64{5, 7}}, 4
	f.Add(string(p.pos()))
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePlace(onewrite.Pos(text))
		if err != nil {
			return
		}
		again, err := parsePlace(p.pos())
		if err != nil || again.pos() != p.pos() {
			t.Fatalf("%q was read as %s, and that as %s, %v", text, p.pos(), again.pos(), err)
		}
	})
}

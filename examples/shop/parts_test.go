package shop

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"pgregory.net/rapid"
)

func TestPlan(t *testing.T) {
	p := newPlan(7, 500)
	if !reflect.DeepEqual(p, newPlan(7, 500)) {
		t.Error("one seed gives two plans")
	}
	if reflect.DeepEqual(p, newPlan(8, 500)) {
		t.Error("two seeds give one plan")
	}
	declined, fansAtPeak, others := 0, 0, 0
	for i, b := range p.purchases {
		if b.N != i+1 {
			t.Fatalf("purchase %d has the number %d", i+1, b.N)
		}
		switch {
		case b.Declined:
			declined++
		case b.Item != console:
			others++
		case b.N >= p.peakFrom && b.N <= p.peakTo:
			fansAtPeak++
		}
	}
	if declined != 30 || others != 500 || fansAtPeak != 200 || p.orders != 501 || len(p.purchases) != 730 {
		t.Errorf("declined %d, others %d, fans at the peak %d, orders %d, all %d", declined, others, fansAtPeak, p.orders, len(p.purchases))
	}
}

func TestFaultRates(t *testing.T) {
	const n = 100_000
	for _, c := range []struct {
		peak bool
		rate float64
	}{{false, 0.007}, {true, 0.14}} {
		var kinds [4]int
		for i := range n {
			f := drawFault(5, "email", i, i%3, c.peak)
			if f != drawFault(5, "email", i, i%3, c.peak) {
				t.Fatal("the same try meets two faults")
			}
			kinds[f]++
		}
		for kind := requestLost; kind <= unavailable; kind++ {
			if got, want := float64(kinds[kind])/n, c.rate/3; got < want*0.8 || got > want*1.2 {
				t.Errorf("peak %v: fault %d has the rate %.5f in the place of %.5f", c.peak, kind, got, want)
			}
		}
	}
	same := 0
	for i := range n {
		if drawFault(5, "email", i, 0, true) != noFault && drawFault(5, "fraud", i, 0, true) != noFault {
			same++
		}
	}
	if same < n*14*14/10000/2 || same > n*14*14/10000*2 {
		t.Errorf("%d orders fail at two consumers: they do not fail on their own", same)
	}
}

// TestCompare draws good histories, which have to pass, and spoils each in one
// way, which has to be found and named.
func TestCompare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		owners := rapid.SliceOfN(rapid.SampledFrom([]string{"ann", "bob", "cid"}), 2, 40).Draw(t, "owners")
		seqs := map[string]int{}
		var truth []order
		var good []effect
		for i, who := range owners {
			seqs[who]++
			truth = append(truth, order{N: i + 1, Customer: who, Seq: seqs[who]})
			good = append(good, effect{n: i + 1, times: 1, customer: who, seq: seqs[who]})
		}
		if got := compare(truth, good); got != (Tally{Effects: len(good)}) {
			t.Fatalf("a good history: %+v", got)
		}
		i := rapid.IntRange(0, len(good)-1).Draw(t, "i")
		with := func(e ...effect) []effect { return append(append([]effect(nil), good...), e...) }
		cut := append(append([]effect(nil), good[:i]...), good[i+1:]...)
		foreign, altered, twice := good[i], with(), with()
		foreign.n = 99
		altered[i].seq += 50
		twice[i].times = 2
		for name, c := range map[string]struct {
			effects []effect
			want    Tally
		}{
			"dropped":  {cut, Tally{Effects: len(good) - 1, Missing: 1}},
			"repeated": {with(good[i]), Tally{Effects: len(good) + 1, Doubled: 1}},
			"twice":    {twice, Tally{Effects: len(good) + 1, Doubled: 1}},
			"foreign":  {with(foreign), Tally{Effects: len(good) + 1, Phantom: 1}},
			"altered":  {altered, Tally{Effects: len(good), Phantom: 1, Missing: 1}},
		} {
			if got := compare(truth, c.effects); got != c.want {
				t.Errorf("%s: %+v, want %+v", name, got, c.want)
			}
		}
		late := append(append([]effect(nil), cut...), good[i])
		behind := 0
		if good[i].seq < seqs[good[i].customer] {
			behind = 1
		}
		if got, want := compare(truth, late), (Tally{Effects: len(good), OutOfOrder: behind}); got != want {
			t.Errorf("late: %+v, want %+v", got, want)
		}
	})
}

func TestTotals(t *testing.T) {
	truth := []order{
		{N: 1, Customer: "ann", Seq: 1, Item: "lamp", Quantity: 2, Cents: 100},
		{N: 3, Customer: "ann", Seq: 2, Item: "lamp", Quantity: 1, Cents: 31},
	}
	for name, want := range map[string]map[string]int{
		"inventory": {"lamp": 7, console: 1},
		"analytics": {"lamp orders": 2, "lamp cents": 131},
		"fraud":     {"ann": 81},
	} {
		if got := totals(name, truth, map[string]int{"lamp": 10, console: 1}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	a := map[string]int{"x": 1, "y": 2}
	for want, b := range map[int]map[string]int{0: {"x": 1, "y": 2}, 1: {"x": 1, "y": 3}, 2: {"x": 1, "z": 2}} {
		if got := differences(a, b); got != want {
			t.Errorf("%v and %v: %d differences, want %d", a, b, got, want)
		}
	}
}

// TestSigned checks our reading of Standard Webhooks against the official
// library.
func TestSigned(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	official, err := standardwebhooks.NewWebhook("whsec_" + base64.StdEncoding.EncodeToString(key))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	request := func(id, body string, at time.Time) http.Header {
		s, err := official.Sign(id, at, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		h.Set("webhook-id", id)
		h.Set("webhook-timestamp", itoa(at.Unix()))
		h.Set("webhook-signature", s)
		return h
	}
	good := request("msg_1", `{"order":1}`, now)
	if !signed(key, good, []byte(`{"order":1}`), now) {
		t.Error("a good signature is refused")
	}
	rotated := good.Clone()
	rotated.Set("webhook-signature", "v1,bm9uc2Vuc2U= v2,x "+good.Get("webhook-signature"))
	if !signed(key, rotated, []byte(`{"order":1}`), now) {
		t.Error("a good signature among others is refused")
	}
	otherID, noID := good.Clone(), good.Clone()
	otherID.Set("webhook-id", "msg_2")
	noID.Del("webhook-id")
	none, wrongVersion := good.Clone(), good.Clone()
	none.Del("webhook-signature")
	wrongVersion.Set("webhook-signature", strings.Replace(good.Get("webhook-signature"), "v1,", "v9,", 1))
	for name, c := range map[string]struct {
		h    http.Header
		body string
	}{
		"other body": {good, `{"order":2}`}, "other id": {otherID, `{"order":1}`}, "no id": {noID, `{"order":1}`},
		"none": {none, `{"order":1}`}, "version": {wrongVersion, `{"order":1}`},
		"old":    {request("msg_1", `{"order":1}`, now.Add(-6*time.Minute)), `{"order":1}`},
		"future": {request("msg_1", `{"order":1}`, now.Add(6*time.Minute)), `{"order":1}`},
	} {
		if signed(key, c.h, []byte(c.body), now) {
			t.Errorf("%s: accepted", name)
		}
	}
	if signed([]byte("another key"), good, []byte(`{"order":1}`), now) {
		t.Error("another key: accepted")
	}
}

// TestReceiver: the receiver of act two works once for an id, that of act one as
// often as it is told, and an unsigned request moves nothing.
func TestReceiver(t *testing.T) {
	for _, c := range consumers {
		for _, naive := range []bool{true, false} {
			db, err := openSQLite(filepath.Join(t.TempDir(), "store.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			ctx := context.Background()
			if err := c.prepare(ctx, db, 100); err != nil {
				t.Fatal(err)
			}
			o := order{N: 4, Customer: "ann", Seq: 1, Item: "lamp", Quantity: 2, Cents: 100}
			r := &receiver{consumer: c, db: db}
			if !naive {
				r.key = []byte("key")
				w := httptest.NewRecorder()
				r.ServeHTTP(w, httptest.NewRequest("POST", "/", strings.NewReader(`{"order":4}`)))
				if w.Code != http.StatusUnauthorized {
					t.Errorf("%s: unsigned: %d", c.name, w.Code)
				}
			}
			for range 3 {
				if err := r.take(ctx, "id-1", o); err != nil {
					t.Fatal(err)
				}
			}
			got, err := tally(ctx, c.name, db, []order{o}, stock(100))
			if err != nil {
				t.Fatal(err)
			}
			if naive && (got.Effects != 3 || got.Doubled != 2) || !naive && (got.Effects != 1 || got.harmed()) {
				t.Errorf("naive %v: %+v", naive, got)
			}
			if wrong := naive && totalsOf[c.name] != ""; wrong != (got.WrongTotals > 0) {
				t.Errorf("naive %v: %+v", naive, got)
			}
		}
	}
}

// TestProgress: one is one.
func TestProgress(t *testing.T) {
	for kills, want := range map[int]string{0: "0 processes killed", 1: "1 process killed", 2: "2 processes killed"} {
		var b strings.Builder
		newScreen(&b, false).progress(true, 4, 4, map[string]int{"service": kills})
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q, want %q", b.String(), want)
		}
	}
}

// TestJudge: each floor and each sort of damage is a problem.
func TestJudge(t *testing.T) {
	good := func() Report {
		act := func() Act {
			a := Act{Committed: 101, RolledBack: 10, Consoles: 1, Faults: 5, Repeats: 3, Kills: map[string]int{"service": 1, "consumer": 1, "onewrite": 1}}
			for _, c := range consumers {
				a.Tallies = append(a.Tallies, Tally{Consumer: c.name, Effects: 101})
			}
			return a
		}
		r := Report{Orders: 101, Naive: act(), Onewrite: act()}
		r.Naive.Tallies[0].Missing, r.Naive.Tallies[1].Doubled = 1, 1
		return r
	}
	r := good()
	if r.judge(); r.Verdict() != nil {
		t.Fatal(r.Verdict())
	}
	for name, spoil := range map[string]func(*Report){
		"no damage":       func(r *Report) { r.Naive.Tallies[0].Missing = 0 },
		"no double":       func(r *Report) { r.Naive.Tallies[1].Doubled = 0 },
		"few orders":      func(r *Report) { r.Onewrite.Committed-- },
		"few rollbacks":   func(r *Report) { r.Naive.RolledBack = 5 },
		"two consoles":    func(r *Report) { r.Onewrite.Consoles = 2 },
		"no faults":       func(r *Report) { r.Naive.Faults = 0 },
		"no kill":         func(r *Report) { delete(r.Onewrite.Kills, "onewrite") },
		"no repeats":      func(r *Report) { r.Onewrite.Repeats = 0 },
		"a consumer less": func(r *Report) { r.Onewrite.Tallies = r.Onewrite.Tallies[1:] },
		"missing":         func(r *Report) { r.Onewrite.Tallies[2].Missing = 1 },
		"doubled":         func(r *Report) { r.Onewrite.Tallies[2].Doubled = 1 },
		"out of order":    func(r *Report) { r.Onewrite.Tallies[2].OutOfOrder = 1 },
		"phantom":         func(r *Report) { r.Onewrite.Tallies[2].Phantom = 1 },
		"totals":          func(r *Report) { r.Onewrite.Tallies[2].WrongTotals = 1 },
	} {
		r := good()
		spoil(&r)
		if r.judge(); len(r.Problems) != 1 {
			t.Errorf("%s: %d problems: %v", name, len(r.Problems), r.Problems)
		}
	}
}

func TestOptions(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"few orders": {Options{Orders: 99, Self: "x"}, "--orders 100"},
		"no self":    {Options{}, "Options.Self"},
		"full":       {Options{Self: "x", Dir: full}, "not empty"},
		"bad url":    {Options{Self: testBinary(t), Postgres: "mysql://u:secret@h/d"}, "postgres://"},
	} {
		_, err := Demo(context.Background(), c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

package search

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/onewrite/onewrite"
)

func TestNames(t *testing.T) {
	for text, want := range map[string]string{
		"order.placed": "order.placed", "Public.Orders": "public.orders", "a b/c": "a-b-c", "_x": "index_x", "-x": "index-x", ".x": "index.x",
		"": "index", "Zoë": "zo--", "..": "index..", "a#b:c": "a-b-c",
	} {
		if got := indexName(text); got != want {
			t.Errorf("index of %q is %q, want %q", text, got, want)
		}
	}
	long := strings.Repeat("a", 300)
	if a, b := indexName(long+"1"), indexName(long+"2"); len(a) > maxIndexName || a == b {
		t.Errorf("long names: %q and %q", a, b)
	}
	for key, want := range map[string]string{
		`{"id":1}`: "1", `{"id":12345678901234567890}`: "12345678901234567890", `{"id":"a b"}`: "a b", `{"id":""}`: `{"id":""}`,
		`{"a":1,"b":"x"}`: `{"a":1,"b":"x"}`, `{"id":null}`: "null", `{"id":true}`: "true", `{"id":{"a":1}}`: `{"id":{"a":1}}`, "plain": "plain",
	} {
		if got := rowKey(key); got != want {
			t.Errorf("id of %s is %q, want %q", key, got, want)
		}
	}
	seen := map[string]bool{}
	for _, text := range []string{"", strings.Repeat("x", 513), strings.Repeat("é", 300), "\xff", "\xfe", strings.Repeat("x", 512), "é"} {
		id := documentID(text)
		if id == "" || len(id) > maxID || !utf8.ValidString(id) || seen[id] {
			t.Errorf("id of %q is %q", text, id)
		}
		seen[id] = true
	}
	e := onewrite.Event{ID: "i", Source: "s", Topic: "{key}", Type: "y"}
	if got := parseTemplate("{source}/{topic}/{type}/{id}/{key}").fill(&e, "k"); got != "s/{key}/y/i/k" {
		t.Errorf("filled: %q", got)
	}
}

func TestPlace(t *testing.T) {
	at := func(seq string) int64 {
		t.Helper()
		_, n, ok := place(&onewrite.Event{Seq: seq})
		if !ok {
			t.Errorf("%q is no place", seq)
		}
		return n
	}
	// Greater as text is never less as a place, and greater but where bits are left out.
	counts := []string{"00000000000000000000", "00000000000000000001", "00000000000000000010", "00000000009999999999", "00100000000000000000"}
	logs := []string{"0000000001600000.0000000000", "0000000001600000.0000000100", "0000000001600000.0000000f00", "0000000001600028.0000000000", "00000000ffffffff.0000000000", "0001000000000000.0000000000"}
	for _, list := range [][]string{counts, logs} {
		if !slices.IsSorted(list) {
			t.Fatal("the list is not in order")
		}
		for i := 1; i < len(list); i++ {
			if at(list[i]) <= at(list[i-1]) {
				t.Errorf("%s is not behind %s: %d, %d", list[i], list[i-1], at(list[i]), at(list[i-1]))
			}
		}
	}
	if at("0000000001600000.ffffffff00") >= at("0000000001600028.0000000000") || at("0000000001600000.0000100000") != at("0000000001600000.0fffffff00") {
		t.Error("the last number of a transaction is not below the next transaction")
	}
	for _, seq := range []string{"", "x", "-1", "99999999999999999999", "0000000001600000.00000000", "0000000001600000-0000000000", "000000000160000g.0000000000", "ffffffffffffffff.0000000000", "a1"} {
		if _, n, ok := place(&onewrite.Event{Seq: seq}); ok {
			t.Errorf("%q is place %d", seq, n)
		}
	}
}

func TestEras(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	now := at(10000)
	for _, numbering := range []string{counted, logged} {
		var tr track
		see := func(n int64, s float64) (version int64, fresh, store bool) {
			fresh, store = tr.see(numbering, n, at(s), now)
			return tr.version(n, at(s)), fresh, store
		}
		first, fresh, store := see(100, 1)
		if first <= 0 || fresh || !store {
			t.Errorf("%s: the first: %d, %v, %v", numbering, first, fresh, store)
		}
		if _, fresh, store = see(101, 2); fresh || store {
			t.Error("the second needs nothing stored")
		}
		if v, fresh, _ := see(100, 1); v != first || fresh {
			t.Errorf("a repeat: %d, %v", v, fresh)
		}
		if _, fresh, _ = see(102, 1.5); fresh { // the clock was set back
			t.Error("a clock that was set back is no restore")
		}
		top, _, _ := see(500, 100)
		if _, fresh, _ := see(50, 99.9); fresh { // committed late
			t.Error("what commits late is no restore")
		}
		if _, fresh, _ := see(51, 100.5); fresh != (numbering == logged) {
			t.Errorf("%s: half a second: %v", numbering, fresh)
		}
		v, _, _ := see(52, 102)
		if v <= top || !tr.gave(v) {
			t.Errorf("%s: after a restore %d is not above %d", numbering, v, top)
		}
		if len(tr.Eras) != 2 {
			t.Errorf("%s: %d eras", numbering, len(tr.Eras))
		}
		if w, fresh, _ := see(500, 100); w != top || fresh { // a replay of what was before
			t.Errorf("%s: a repeat of the first era: %d, want %d; %v", numbering, w, top, fresh)
		}
		if w, fresh, _ := see(53, 103); w <= v || fresh {
			t.Errorf("%s: it goes on with %d after %d, %v", numbering, w, v, fresh)
		}
		if _, fresh, _ := see(54, 20000); fresh || tr.At > now.UnixMicro() {
			t.Error("a time in the future is believed")
		}
		if tr.gave(math.MaxInt64) || tr.gave(v+1<<60) {
			t.Error("any version is ours")
		}
		text, err := json.Marshal(&tr)
		if err != nil {
			t.Fatal(err)
		}
		var other track
		if err := json.Unmarshal(text, &other); err != nil {
			t.Fatal(err)
		}
		if other.version(53, at(103)) != tr.version(53, at(103)) {
			t.Error("what is stored is another")
		}
		var late track
		late.see(numbering, 100, at(1), now)
		late.merge(&other)
		if len(late.Eras) != 2 || late.version(53, at(103)) != tr.version(53, at(103)) {
			t.Error("a copy does not take over what the other stored")
		}
	}
}

func TestWords(t *testing.T) {
	p := problem{Type: "document_parsing_exception", Reason: "[1:6] failed to parse field [n] of type [long] in document with id '1'. Preview of field's value: 'it's secret'", Cause: &problem{Type: "x", Reason: "For input string"}}
	if got := p.String(); strings.Contains(got, "secret") || !strings.Contains(got, "field [n]") || !strings.HasSuffix(got, "'***' (x)") && !strings.HasSuffix(got, "*** (x)") {
		t.Error(got)
	}
	if got := words(strings.Repeat("é", 1000)); len(got) > maxWords+10 || !utf8.ValidString(got) {
		t.Errorf("%d bytes", len(got))
	}
	if n, ok := conflict("[1]: version conflict, current version [6] is higher than the one provided [5]"); !ok || n != 6 {
		t.Error(n, ok)
	}
	if _, ok := conflict("version conflict, required seqNo [1]"); ok {
		t.Error("a version was read from nothing")
	}
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		index  string
		topics []string
		want   string
	}{
		{"{topic}", nil, "*"}, {"{topic}", []string{"order.>", "public.orders"}, "order.*,public.orders"}, {"Shop-{topic}", []string{"*.placed"}, "shop-*.placed"},
		{"{source}-{topic}", []string{"a"}, "*-a"}, {"all", []string{"a", "b"}, "all"}, {"_x-{type}", nil, "index_x-*"},
	} {
		e := examiner{c: Config{Index: c.index}, topics: c.topics}
		if got := e.pattern(); got != c.want {
			t.Errorf("%s of %v: %s, want %s", c.index, c.topics, got, c.want)
		}
	}
}

package pgoutput

import (
	"fmt"
	"testing"
)

// transaction is B, as many I with 8 columns, and C.
func transaction(rows int) (messages [][]byte) {
	messages = append(messages, encode(&Message{Kind: KindBegin, FinalLSN: 1 << 33, CommitTime: 1, XID: 5}, false))
	tuple := Tuple{text("1234567"), text("customer-1234"), text("2026-04-15 13:20:00.123456+00"), text("199.90"), {Kind: ColumnNull},
		text("paid"), text(`{"lines": [{"sku": "a-1", "count": 2}, {"sku": "b-2", "count": 1}]}`), text("t")}
	for range rows {
		messages = append(messages, encode(&Message{Kind: KindInsert, RelationID: 16401, New: tuple}, false))
	}
	return append(messages, encode(&Message{Kind: KindCommit, CommitLSN: 1 << 33, EndLSN: 1<<33 + 48, CommitTime: 1}, false))
}

func decodeAll(tb testing.TB, d *Decoder, m *Message, messages [][]byte) {
	for _, data := range messages {
		if err := d.Decode(data, m); err != nil {
			tb.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, rows := range []int{1, 1000} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			messages := transaction(rows)
			size := 0
			for _, data := range messages {
				size += len(data)
			}
			d, m := new(Decoder), new(Message)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				decodeAll(b, d, m, messages)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*rows), "ns/row")
		})
	}
}

// TestNoAllocations: what comes with every row and transaction costs none.
func TestNoAllocations(t *testing.T) {
	none := 0
	for _, s := range samples {
		data, d, m := unhex(t, s.hex), streamed(t, s.inside, s.parallel), new(Message)
		kind := Kind(data[0])
		if kind == KindStreamStart || kind == KindStreamStop {
			continue // once only; they are a part of the golden streams below
		}
		got := testing.AllocsPerRun(100, func() { decodeAll(t, d, m, [][]byte{data}) })
		switch kind {
		case KindRelation, KindType, KindBeginPrepare, KindPrepare, KindCommitPrepared, KindRollbackPrepared, KindStreamPrepare:
			if got == 0 {
				t.Errorf("%s: no allocations; is it measured?", kind)
			}
		default:
			none++
			if got != 0 {
				t.Errorf("%s (%s): %v allocations", kind, s.hex, got)
			}
		}
	}
	if none < 20 {
		t.Errorf("only %d samples were measured", none)
	}
	messages, d, m := transaction(1000), new(Decoder), new(Message)
	if got := testing.AllocsPerRun(10, func() { decodeAll(t, d, m, messages) }); got != 0 {
		t.Errorf("a transaction of 1000 rows: %v allocations", got)
	}
	d = streamed(t, false, true)
	block := [][]byte{unhex(t, "'S' 00000007 01"), unhex(t, "'I' 00000008 00004001 'N' 0001 't' 00000001 'a'"), unhex(t, "'E'"), unhex(t, "'c' 00000007 00"+lsn1+lsn2+time1)}
	if got := testing.AllocsPerRun(100, func() { decodeAll(t, d, m, block) }); got != 0 {
		t.Errorf("a stream block: %v allocations", got)
	}
}

package kafka

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
)

// TestEncoder: records in slabs are those that are made one by one, be the slabs too small
// for them, and be they made over. Before that, none writes over another.
func TestEncoder(t *testing.T) {
	var kept encoder
	var few *kgo.Record
	for round, n := range []int{3000, 1500, 10, 1500} {
		enc := kept.lend()
		events, made := make([]onewrite.Event, n), make([]*kgo.Record, n)
		for i := range events {
			e := &events[i]
			*e = onewrite.Event{ID: fmt.Sprint("id-", round, i), Source: "shop", Type: "t", Topic: "t", Data: []byte(strings.Repeat("x", i%7)), Key: strings.Repeat("k", i%11)}
			if i%5 == 0 {
				e.Header = map[string]string{"trace": strings.Repeat("v", i*100%70_000)}
			}
			made[i] = enc.record("to", e, kgo.RecordHeader{Key: "own", Value: fmt.Append(nil, i)})
		}
		for i, r := range made {
			var one encoder
			want := one.record("to", &events[i], kgo.RecordHeader{Key: "own", Value: fmt.Append(nil, i)})
			if !reflect.DeepEqual(r, want) {
				t.Fatalf("round %d: record %d is %v, want %v", round, i, r, want)
			}
		}
		headers := made[n-1].Headers
		kept.back(enc)
		if r := made[n-1]; r.Value != nil || r.Headers != nil || headers[0].Value != nil {
			t.Errorf("round %d: the last event is kept: %v, %v", round, r, headers)
		}
		if few != nil && few != made[0] {
			t.Errorf("round %d: not in the room of round %d", round, round-1)
		}
		if few = nil; n < slabRecords {
			few = made[0]
		}
	}
	if records, bytes := cap(kept.records), cap(kept.bytes); records != slabRecords || bytes < slabBytes/16 {
		t.Errorf("slabs of %d records and %d bytes", records, bytes)
	}
}

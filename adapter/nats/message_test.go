package nats_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
)

// overWire sends a message through the client's own encoding.
func overWire(t *rapid.T, m *natsgo.Msg) natsgo.Header {
	block := []byte("NATS/1.0\r\n")
	for k, vs := range m.Header {
		for _, v := range vs {
			block = append(block, k+": "+v+"\r\n"...)
		}
	}
	h, err := natsgo.DecodeHeadersMsg(append(block, "\r\n"...))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// drawEvent makes any event that a source could make, and some that none does.
func drawEvent(t *rapid.T) onewrite.Event {
	text := rapid.OneOf(rapid.String(), rapid.StringOf(rapid.SampledFrom([]rune("a \r\n\t%:\"✓\x00{}"))), rapid.Just(""))
	name := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"topic", "id", "content-type", "Content-Type", "traceparent", "X-A", "nats-rollup", "Nats-Msg-Id", "Status", "ce-id", "onewrite-pos", "tenant", ":", ""}))
	e := onewrite.Event{
		ID: "id" + text.Draw(t, "id"), Source: "shop", Topic: text.Draw(t, "topic"), Type: "t" + text.Draw(t, "type"), Key: text.Draw(t, "key"),
		Seq: text.Draw(t, "seq"), ContentType: text.Draw(t, "content type"),
		Header: rapid.MapOfN(name, text, 0, 4).Draw(t, "header"),
		Tx:     onewrite.Tx{ID: text.Draw(t, "tx"), Index: rapid.Int().Draw(t, "index"), Last: rapid.Bool().Draw(t, "last")},
	}
	if rapid.Bool().Draw(t, "timed") {
		e.Time = time.Unix(rapid.Int64Range(-1e9, 1e10).Draw(t, "s"), rapid.Int64Range(0, 999999999).Draw(t, "ns"))
	}
	switch rapid.IntRange(0, 2).Draw(t, "data") {
	case 1:
		e.Data = []byte{}
	case 2:
		e.Data = rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "bytes")
	}
	if rapid.IntRange(0, 9).Draw(t, "wide") == 0 {
		e.Header = map[string]string{"x-wide": strings.Repeat("w", 60000), "topic": "no"}
	}
	return e
}

// sameForm compares an event from the store with the same from memory.
func sameForm(t *rapid.T, got, want onewrite.Event) {
	if !got.Time.Equal(want.Time) {
		t.Fatalf("time %v, want %v", got.Time, want.Time)
	}
	got.Time = want.Time
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("from the store\n%.2000v\nfrom memory\n%.2000v", fmt.Sprintf("%#v", got), fmt.Sprintf("%#v", want))
	}
}

// TestOneForm: an event from the store and the same event from memory are one.
func TestOneForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEvent(t)
		m := nats.Encode(&e)
		got, err := nats.Decode(overWire(t, m), m.Data)
		if err != nil {
			t.Fatal(err)
		}
		sameForm(t, got, nats.Canonical(&e))
	})
}

// FuzzDecode: whatever is in a stream, reading it ends.
func FuzzDecode(f *testing.F) {
	f.Add("ce-id", "1", "ce-source", "/s", []byte("x"))
	f.Add("content-type", "application/cloudevents+json", "Onewrite-Headers", "{", []byte(`{"id":"1","source":"/s","type":"t"}`))
	f.Add("ce-time", "yesterday", "ce-txindex", "x", []byte(nil))
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string, data []byte) {
		h := natsgo.Header{"ce-type": {"t"}, k1: {v1}, k2: {v2}}
		e, err := nats.Decode(h, data)
		if err == nil && (e.ID == "" || e.Type == "") {
			t.Fatalf("an event without its identity: %+v", e)
		}
	})
}

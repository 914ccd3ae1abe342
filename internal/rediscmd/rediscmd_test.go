package rediscmd_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/rediscmd"
)

// show fills a command and prints its arguments.
func show(t *testing.T, text string, e onewrite.Event) (string, error) {
	t.Helper()
	c, err := rediscmd.ParseCommand(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	args, _, err := rediscmd.For(&e).Fill(c)
	for i, a := range args {
		if b, ok := a.([]byte); ok {
			args[i] = string(b)
		}
	}
	return fmt.Sprintf("%q", args), err
}

func TestFill(t *testing.T) {
	row := onewrite.Event{Topic: "public.orders", Type: "update", Source: "shop", ID: "i1", Key: `{"id":9007199254740993}`,
		Data: []byte(`{"before":{"n":1},"after":{"id":9007199254740993,"name":"a \"b\"\u0000\n","gone":null,"tags":["x", 1],"ok":true,"my col":"c","a.b":"d"},"source":{"unchanged":["big"]}}`)}
	for text, want := range map[string]string{
		`set  o:{key.id} "{after.name} {after.tags}"`:      `["SET" "o:9007199254740993" "a \"b\"\x00\n [\"x\", 1]"]`,
		`HSET o {after.ok} {after.gone} f {before.n}`:      `["HSET" "o" "true" "" "f" "1"]`,
		`HSET h 'a b' {after.my col} "" {after.a.b}`:       `["HSET" "h" "a b" "c" "" "d"]`,
		`PUBLISH {{x}}{topic}/{source}/{type}/{id} {data}`: fmt.Sprintf("%q", []string{"PUBLISH", "{x}public.orders/shop/update/i1", string(row.Data)}),
		"insert,update: SET k{key}k 1 EX 60":               `["SET" "k{\"id\":9007199254740993}k" "1" "EX" "60"]`,
		"DEL\ta\n{key.id} b":                               `["DEL" "a" "9007199254740993" "b"]`,
		"EXPIRE k {after.id} NX":                           `["EXPIRE" "k" "9007199254740993" "NX"]`,
		"UNLINK a{{b}}":                                    `["UNLINK" "a{b}"]`, "HDEL h {after.ok}": `["HDEL" "h" "true"]`,
	} {
		if got, err := show(t, text, row); got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"DEL {after.nope}": "no such column", "DEL {after.big}": "REPLICA IDENTITY FULL", "DEL {after.gone}": "would be empty", "DEL {key.x}": "no such column",
	} {
		if _, err := show(t, text, row); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	bare := onewrite.Event{Topic: "a", Type: "t"}
	for text, want := range map[string]string{"SET a {data}": "no data", "DEL {key}": "no key", "DEL {after.x}": "no row change"} {
		if _, err := show(t, text, bare); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	empty := onewrite.Event{Data: []byte{}}
	if got, err := show(t, "SET a {data}", empty); got != `["SET" "a" ""]` || err != nil {
		t.Errorf("data of no bytes: %s, %v", got, err)
	}
}

// TestInjection: whatever an event holds, it makes no argument more and changes no
// other one.
func TestInjection(t *testing.T) {
	c, err := rediscmd.ParseCommand(`SET "o:{key}" {data}`)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"a b", `" FLUSHALL "`, "\r\nFLUSHALL\r\n", "{key}", "{{", "\x00", "'", "{after.x}"}))
		e := onewrite.Event{Key: "k" + word.Draw(t, "key"), Data: []byte(word.Draw(t, "data"))}
		args, key, err := rediscmd.For(&e).Fill(c)
		if err != nil || len(args) != 3 || args[0] != "SET" || key != "o:"+e.Key || string(args[1].([]byte)) != key || string(args[2].([]byte)) != string(e.Data) {
			t.Fatalf("%q, %q, %v", args, key, err)
		}
	})
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		"": "empty", "  ": "empty", "FLUSHALL": "not one of DEL", "EVAL x 0": "not one of", "{topic} a b": "not one of", "DEL": "needs 1", "SET a": "needs 2",
		"HSET a b": "needs 3", "HSET a b c d": "pairs", "SET a b {data}": "an option of SET", "EXPIRE a 1 {type}": "an option of EXPIRE", "PUBLISH a b c": "too many",
		"DEL {nope}": "no placeholder", "DEL {after.}": "no placeholder", "DEL {": "not closed", "DEL }": "alone", `DEL "a`: "quote", ",: DEL a": "empty before the colon", "insert: ": "not one of",
	} {
		if _, err := rediscmd.ParseCommand(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	for text, want := range map[string]string{"": "empty", "{id}": "no place", "a{after.x}": "no place", "{data}": "no place", "x{": "not closed", "{shop}:{topic}": "written {{"} {
		if _, err := rediscmd.ParseKey(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestTag(t *testing.T) {
	for text, want := range map[string]string{"{{shop}}:{topic}": "shop", "{topic}": "", "a{{b}}c{{d}}": "b", "{topic}{{x}}": "", "{{{topic}}}": "", "plain": "", "{{}}{{x}}": ""} {
		k, err := rediscmd.ParseKey(text)
		if err != nil || k.Tag() != want {
			t.Errorf("%s: %q, %v; want %q", text, k.Tag(), err, want)
		}
	}
	types, err := rediscmd.ParseCommand("order.placed,delete: DEL a")
	if err != nil || !types.For("delete") || types.For("insert") {
		t.Errorf("%+v, %v", types, err)
	}
}

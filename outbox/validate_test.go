package outbox

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestBadEventsAreRefused(t *testing.T) {
	long := strings.Repeat("a", 2000)
	for name, c := range map[string]struct {
		event Event
		field string
	}{
		"no topic":              {Event{}, "Topic"},
		"topic with space":      {Event{Topic: "a b"}, "Topic"},
		"topic leading dot":     {Event{Topic: ".a"}, "Topic"},
		"topic trailing dot":    {Event{Topic: "a."}, "Topic"},
		"topic double dot":      {Event{Topic: "a..b"}, "Topic"},
		"topic wildcard":        {Event{Topic: "a.>"}, "Topic"},
		"topic umlaut":          {Event{Topic: "größe"}, "Topic"},
		"topic newline":         {Event{Topic: "a\n"}, "Topic"},
		"topic too long":        {Event{Topic: strings.Repeat("a", 256)}, "Topic"},
		"id is no uuid":         {Event{Topic: "a", ID: "order-1"}, "ID"},
		"id in braces":          {Event{Topic: "a", ID: "{0190163d-8694-739b-aea5-966c26f8ad9}"}, "ID"},
		"id without dashes":     {Event{Topic: "a", ID: "0190163d8694739baea5966c26f8ad90"}, "ID"},
		"nil id":                {Event{Topic: "a", ID: nilID}, "ID"},
		"key too long":          {Event{Topic: "a", Key: long}, "Key"},
		"key with NUL":          {Event{Topic: "a", Key: "a\x00b"}, "Key"},
		"key no UTF-8":          {Event{Topic: "a", Key: "\xff"}, "Key"},
		"type too long":         {Event{Topic: "a", Type: long}, "Type"},
		"type with newline":     {Event{Topic: "a", Type: "a\nb"}, "Type"},
		"type with C1 control":  {Event{Topic: "a", Type: "a\u0085b"}, "Type"},
		"content type":          {Event{Topic: "a", Payload: []byte("x"), ContentType: "json"}, "ContentType"},
		"content type newline":  {Event{Topic: "a", Payload: []byte("x"), ContentType: "text/plain;\r\nX: y"}, "ContentType"},
		"content type too long": {Event{Topic: "a", Payload: []byte("x"), ContentType: "text/" + long}, "ContentType"},
		"json no UTF-8":         {Event{Topic: "a", Payload: []byte("\"\xff\""), ContentType: "application/json"}, "Payload"},
		"ld+json no UTF-8":      {Event{Topic: "a", Payload: []byte("\"\xff\""), ContentType: "application/ld+json; a=b"}, "Payload"},
		"text with NUL":         {Event{Topic: "a", Payload: []byte("a\x00"), ContentType: "text/plain"}, "Payload"},
		"text of utf-8":         {Event{Topic: "a", Payload: []byte("\xff"), ContentType: `TEXT/html; charset="UTF-8"`}, "Payload"},
		"too large":             {Event{Topic: "a", Payload: make([]byte, DefaultMaxBytes)}, "Size"},
		"large header":          {Event{Topic: "a", Headers: map[string]string{"x": strings.Repeat("y", DefaultMaxBytes)}}, "Size"},
		"empty header name":     {Event{Topic: "a", Headers: map[string]string{"": "x"}}, "Headers"},
		"header name space":     {Event{Topic: "a", Headers: map[string]string{"a b": "x"}}, "Headers"},
		"header name colon":     {Event{Topic: "a", Headers: map[string]string{"a:b": "x"}}, "Headers"},
		"header name umlaut":    {Event{Topic: "a", Headers: map[string]string{"ä": "x"}}, "Headers"},
		"header name too long":  {Event{Topic: "a", Headers: map[string]string{long: "x"}}, "Headers"},
		"header value newline":  {Event{Topic: "a", Headers: map[string]string{"x": "a\r\nSet-Cookie: b"}}, "Headers"},
		"header value no UTF-8": {Event{Topic: "a", Headers: map[string]string{"x": "\xff"}}, "Headers"},
		"header value DEL":      {Event{Topic: "a", Headers: map[string]string{"x": "\x7f"}}, "Headers"},
		"headers by case":       {Event{Topic: "a", Headers: map[string]string{"X-A": "1", "x-a": "2"}}, "Headers"},
		"bad traceparent":       {Event{Topic: "a", Headers: map[string]string{"traceparent": "00-0-0-0"}}, "Headers"},
		"Traceparent":           {Event{Topic: "a", Headers: map[string]string{"Traceparent": goodTrace}}, "Headers"},
	} {
		assertRefused(t, name, c.event, c.field)
	}
	for _, name := range []string{"specversion", "id", "source", "type", "time", "datacontenttype", "data",
		"data_base64", "topic", "partitionkey", "sequence", "txid", "txindex", "txlast", "headers",
		"content-type", "Content-Type", "ID", "ce-id", "CE_x", "Nats-Msg-Id", "nats-x", "onewrite-position",
		"Onewrite-x", "webhook-id", "Webhook-Signature"} {
		assertRefused(t, name, Event{Topic: "a", Headers: map[string]string{name: "x"}}, "Headers")
	}
}

func assertRefused(t *testing.T, name string, e Event, field string) {
	t.Helper()
	_, err := New(SQLite).Statements(context.Background(), e)
	var invalid *InvalidError
	if !errors.As(err, &invalid) {
		t.Errorf("%s: %v, want an InvalidError", name, err)
		return
	}
	if len(invalid.Problems) != 1 || invalid.Problems[0].Field != field || invalid.Problems[0].Event != 0 {
		t.Errorf("%s: %v, want one problem with %s", name, invalid, field)
	}
}

func TestGoodEventsPass(t *testing.T) {
	for name, e := range map[string]Event{
		"least":              {Topic: "a"},
		"topic":              {Topic: "Order-1.placed_2.v3"},
		"topic 255":          {Topic: strings.Repeat("a", 255)},
		"key 1024":           {Topic: "a", Key: strings.Repeat("k", 1024)},
		"key any":            {Topic: "a", Key: "ä \" \\ \n"},
		"type":               {Topic: "a", Type: "com.example/Größe v1"},
		"id upper":           {Topic: "a", ID: "0190163D-8694-739B-AEA5-966C26F8AD90"},
		"binary":             {Topic: "a", Payload: []byte{0, 255}},
		"binary type":        {Topic: "a", Payload: []byte{0, 255}, ContentType: "application/x-protobuf"},
		"text in latin1":     {Topic: "a", Payload: []byte{'a', 255}, ContentType: "text/plain; charset=iso-8859-1"},
		"no data, any type":  {Topic: "a", ContentType: "application/json"},
		"attribute":          {Topic: "a", Headers: map[string]string{"tenant": "ä1"}},
		"header":             {Topic: "a", Headers: map[string]string{"X-Tenant": "", "sourceid": "x", "cex": "y"}},
		"trace":              {Topic: "a", Headers: map[string]string{"traceparent": goodTrace}},
		"as large as can be": {Topic: "a", Payload: []byte(strings.Repeat("x", DefaultMaxBytes-1))},
	} {
		if _, err := New(SQLite).Statements(context.Background(), e); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAllProblemsAreToldAtOnce(t *testing.T) {
	id := NewID()
	const secret = "s3cr3t"
	err := New(Postgres).Publish(context.Background(), nil,
		Event{Topic: "fine", ID: id},
		Event{Topic: "", Key: secret + "\x00"},
		Event{Topic: "fine", ID: strings.ToUpper(id), Payload: []byte(secret + "\x00"), ContentType: "text/plain",
			Headers: map[string]string{"source": "x", "a b": secret + "\n"}},
	)
	var invalid *InvalidError
	if !errors.As(err, &invalid) {
		t.Fatalf("%v, want an InvalidError", err)
	}
	var got []string
	for _, p := range invalid.Problems {
		got = append(got, p.Field)
		if !strings.Contains(err.Error(), p.String()) {
			t.Errorf("the error does not tell %q", p)
		}
	}
	if s := strings.Join(got, " "); s != "Topic Key Payload Headers Headers Headers ID" {
		t.Errorf("problems with %s", s)
	}
	if invalid.Problems[0].Event != 1 || invalid.Problems[6].Event != 2 {
		t.Errorf("wrong events: %v", invalid.Problems)
	}
	if strings.Contains(err.Error(), secret) {
		t.Errorf("the error tells what is in the event: %v", err)
	}
}

func TestErrorOfManyProblemsIsShort(t *testing.T) {
	err := New(SQLite).Publish(context.Background(), nil, make([]Event, 5000)...)
	if err == nil || len(err.Error()) > 3000 || !strings.Contains(err.Error(), "and 4980 more") {
		t.Errorf("%v", err)
	}
}

func TestMaxBytes(t *testing.T) {
	e := Event{Topic: "abcd", Key: "k", Type: "t", ContentType: "a/b", Payload: []byte("12345"), Headers: map[string]string{"x": "y"}}
	const size = 4 + 1 + 1 + 3 + 5 + len(`{"x":"y"}`)
	if _, err := New(SQLite, MaxBytes(size)).Statements(context.Background(), e); err != nil {
		t.Error(err)
	}
	if _, err := New(SQLite, MaxBytes(size-1)).Statements(context.Background(), e); err == nil {
		t.Error("an event of one byte too many passed")
	}
	if _, err := New(SQLite, MaxBytes(0)).Statements(context.Background(), e); err != nil {
		t.Error(err)
	}
}

func TestDefaultContentType(t *testing.T) {
	for _, c := range []struct {
		payload []byte
		binary  bool
		want    string
	}{
		{nil, false, ""},
		{nil, true, ""},
		{[]byte{}, false, "text/plain; charset=utf-8"},
		{[]byte{}, true, "application/octet-stream"},
		{[]byte(`{"a":1}`), false, "application/json"},
		{[]byte(` 1 `), false, "application/json"},
		{[]byte(`{"a":1}`), true, "application/octet-stream"},
		{[]byte(`{a:1}`), false, "text/plain; charset=utf-8"},
		{[]byte("\"\xff\""), false, "application/octet-stream"},
	} {
		if got := DefaultContentType(c.payload, c.binary); got != c.want {
			t.Errorf("%q, %v: %q, want %q", c.payload, c.binary, got, c.want)
		}
	}
}

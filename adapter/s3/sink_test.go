package s3_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/s3"
	"github.com/onewrite/onewrite/internal/diagnosis"
)

// messages are events from..to of a log, of two topics and two days.
func messages(from, to int) (list []onewrite.Message) {
	for i := from; i <= to; i++ {
		topic := []string{"order.placed", "order.paid"}[i%2]
		list = append(list, onewrite.Message{Log: "shop", Offset: uint64(i), Event: onewrite.Event{ID: fmt.Sprint("e-", i), Source: "shop", Topic: topic, Type: topic, Key: fmt.Sprint(i % 3),
			Time: time.Date(2026, 1, 1, 23, 58, i, 0, time.UTC).Add(time.Duration(i) * time.Second), Seq: fmt.Sprintf("%08d", i), ContentType: "application/json", Data: fmt.Appendf(nil, `{"n":%d}`, i)}})
	}
	return list
}

func mustPlace(t *testing.T, s *s3.Sink, want string) {
	t.Helper()
	got, err := s.Place(t.Context())
	if err != nil || string(got) != want {
		t.Fatalf("Place = %q, %v; want %q", got, err, want)
	}
}

func mustWrite(t *testing.T, s *s3.Sink, place string, list []onewrite.Message) {
	t.Helper()
	if bad, err := s.WriteAt(t.Context(), list, []byte(place)); err != nil {
		t.Fatalf("WriteAt = %d, %v", bad, err)
	}
}

// once demands that who reads what is committed has each event once, in the order of
// its topic.
func (x *store) once(t *testing.T, n int) {
	t.Helper()
	objects, _ := x.committed(t)
	last, seen := map[string]string{}, map[string]int{}
	for _, key := range objects {
		for _, e := range x.events(t, key) {
			if seen[e.ID]++; seen[e.ID] > 1 {
				t.Errorf("event %s is committed twice", e.ID)
			}
			if e.Seq < last[e.Topic] {
				t.Errorf("event %s came late", e.ID)
			}
			last[e.Topic] = e.Seq
		}
	}
	if len(seen) != n {
		t.Errorf("%d events are committed, want %d", len(seen), n)
	}
}

func isRecord(req *http.Request) bool {
	return req.Method == http.MethodPut && strings.HasSuffix(req.URL.Path, "/archive.json")
}

// A crash at any step of a commit: the next writer begins where the record is, and
// whoever reads what is committed has every event once. The same batch makes the same
// objects; another one leaves those that nothing names.
func TestCrashes(t *testing.T) {
	steps := map[string]func(req *http.Request) bool{
		"list": func(req *http.Request) bool { return commitName.MatchString(req.URL.Path) },
		"objects": func(req *http.Request) bool {
			return req.Method == http.MethodPut && strings.Contains(req.URL.Path, "order.paid")
		},
		"record": isRecord,
	}
	for step, hits := range steps {
		for _, stored := range []bool{false, true} { // whether what was asked last was done
			for _, same := range []bool{false, true} { // whether the next batch is the same
				t.Run(fmt.Sprint(step, " stored=", stored, " same=", same), func(t *testing.T) {
					x := newStore(t)
					first := open(t, x.config())
					mustPlace(t, first, "")
					mustWrite(t, first, "one", messages(1, 10))
					x.set(func(w http.ResponseWriter, req *http.Request, pass func()) bool {
						if !hits(req) {
							return false
						}
						if stored {
							pass()
						}
						hangUp(w)
						return true
					})
					bad, err := first.WriteAt(t.Context(), messages(11, 20), []byte("two"))
					if bad != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrFenced) {
						t.Fatalf("WriteAt = %d, %v", bad, err)
					}
					x.set(nil)
					if _, err := first.WriteAt(t.Context(), messages(11, 20), []byte("two")); err == nil {
						t.Error("a sink that does not know what is there goes on")
					}
					second := open(t, x.config())
					if step == "record" && stored {
						mustPlace(t, second, "two")
						mustWrite(t, second, "three", messages(21, 25))
						x.once(t, 25)
						return
					}
					mustPlace(t, second, "one")
					before := x.keys(t)
					to := 17
					if same {
						to = 20
					}
					mustWrite(t, second, "two", messages(11, to))
					if same && step == "record" && len(x.keys(t)) != len(before)+1 { // the list
						t.Errorf("the same events made other objects: %q, then %q", before, x.keys(t))
					}
					mustWrite(t, second, "three", messages(to+1, 25))
					x.once(t, 25)
				})
			}
		}
	}
}

// A writer that was taken over changes nothing that is committed, at whatever step it
// learns of it, and its late lists do not count.
func TestFenced(t *testing.T) {
	x := newStore(t)
	first := open(t, x.config())
	mustPlace(t, first, "")
	mustWrite(t, first, "one", messages(1, 10))
	second := open(t, x.config())
	mustPlace(t, second, "one")
	if _, err := first.WriteAt(t.Context(), messages(11, 15), []byte("stale")); !errors.Is(err, onewrite.ErrFenced) {
		t.Errorf("before the newer one wrote: %v", err)
	}
	third := open(t, x.config())
	mustPlace(t, third, "one")
	mustWrite(t, third, "two", messages(11, 20))
	if _, err := second.WriteAt(t.Context(), messages(11, 12), []byte("stale")); !errors.Is(err, onewrite.ErrFenced) {
		t.Errorf("after the newer one wrote: %v", err)
	}
	x.once(t, 20)
	mustWrite(t, third, "three", messages(21, 22))
	x.once(t, 22)
	mustPlace(t, open(t, x.config()), "three")
}

// Two that take over at once: one is told so, and no place is lost.
func TestTakeOverAtOnce(t *testing.T) {
	x := newStore(t)
	first := open(t, x.config())
	mustPlace(t, first, "")
	mustWrite(t, first, "one", messages(1, 2))
	done := false
	x.set(func(_ http.ResponseWriter, req *http.Request, _ func()) bool {
		if isRecord(req) && !done { // another one, between the look and the step
			done = true
			mustPlace(t, open(t, func() s3.Config { c := x.config(); c.Endpoint = x.moto.URL(); return c }()), "one")
		}
		return false
	})
	if _, err := open(t, x.config()).Place(t.Context()); err == nil || errors.Is(err, onewrite.ErrFenced) || !strings.Contains(err.Error(), "same moment") {
		t.Errorf("Place = %v", err)
	}
}

// A store that takes no notice of conditions is refused, before anything is written,
// and the doctor says so too.
func TestConditionsAreHeeded(t *testing.T) {
	x := newStore(t)
	x.set(func(_ http.ResponseWriter, req *http.Request, _ func()) bool {
		req.Header.Del("If-None-Match")
		req.Header.Del("If-Match")
		return false
	})
	if _, err := open(t, x.config()).Place(t.Context()); err == nil || !strings.Contains(err.Error(), "no notice of conditions") {
		t.Errorf("Place = %v", err)
	}
	find(t, s3.Examine(t.Context(), x.config()), diagnosis.Problem, "conditions", "no notice")
}

func find(t *testing.T, found []diagnosis.Finding, s diagnosis.Severity, check, has string) {
	t.Helper()
	if !slices.ContainsFunc(found, func(f diagnosis.Finding) bool {
		return f.Severity == s && f.Check == check && strings.Contains(f.Text+f.Cure, has) && (s == diagnosis.OK || f.Cure != "")
	}) {
		t.Errorf("no %v of %s with %q in %+v", s, check, has, found)
	}
}

// The classes of errors, each with its cure, for the sink and for the doctor.
func TestErrors(t *testing.T) {
	x := newStore(t)
	for _, c := range []struct {
		status int
		code   string
		after  time.Duration
		has    string
	}{
		{404, "NoSuchBucket", 0, "aws s3 mb"},
		{403, "AccessDenied", 0, "s3:PutObject"},
		{403, "InvalidAccessKeyId", 0, "set access_key"},
		{403, "SignatureDoesNotMatch", 0, "set access_key"},
		{400, "ExpiredToken", 0, "renew"},
		{403, "RequestTimeTooSkewed", 0, "timedatectl"},
		{301, "PermanentRedirect", 0, "set region"},
		{400, "AuthorizationHeaderMalformed", 0, "set region"},
		{503, "SlowDown", 7 * time.Second, "asks for time"},
		{503, "ServiceUnavailable", 7 * time.Second, "asks for time"},
		{429, "TooManyRequests", 7 * time.Second, "asks for time"},
		{500, "InternalError", 0, "tried again"},
		{501, "NotImplemented", 0, "conditional writes"},
		{409, "ConditionalRequestConflict", 0, "another writer"},
		{400, "Strange", 0, "see what the store says"},
	} {
		x.set(func(w http.ResponseWriter, req *http.Request, _ func()) bool {
			_, _ = io.Copy(io.Discard, req.Body)
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(c.status)
			_, _ = fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>because\nof this</Message></Error>", c.code)
			return true
		})
		s := open(t, x.config())
		_, placeErr := s.Place(t.Context())
		n, err := s.Write(t.Context(), []onewrite.Event{messages(1, 1)[0].Event})
		for _, err := range []error{placeErr, err} {
			var f interface{ RetryAfter() time.Duration }
			if n != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrFenced) || !strings.Contains(err.Error(), c.has) || !strings.Contains(err.Error(), c.code) || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %d, %v; want %q", c.code, n, err, c.has)
			}
			if !errors.As(err, &f) || f.RetryAfter() != c.after {
				t.Errorf("%s: asks for a pause of %v, want %v", c.code, f, c.after)
			}
		}
		if len(x.reqs) != 2 {
			t.Errorf("%s: %d requests for two calls: something tries again", c.code, len(x.reqs))
		}
		find(t, s3.Examine(t.Context(), x.config()), diagnosis.Problem, "bucket", c.has)
		x.mu.Lock()
		x.reqs = nil
		x.mu.Unlock()
	}
	c := x.config()
	c.Endpoint = "http://127.0.0.1:1"
	if _, err := open(t, c).Write(t.Context(), []onewrite.Event{messages(1, 1)[0].Event}); err == nil || !strings.Contains(err.Error(), "check that the store runs") {
		t.Errorf("of nobody: %v", err)
	}
	x.set(func(_ http.ResponseWriter, req *http.Request, _ func()) bool {
		_, _ = io.Copy(io.Discard, req.Body)
		<-req.Context().Done()
		return true
	})
	c = x.config()
	c.Timeout = 50 * time.Millisecond
	if _, err := open(t, c).Write(t.Context(), []onewrite.Event{messages(1, 1)[0].Event}); err == nil || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Errorf("of a store that says nothing: %v", err)
	}
}

// An object that is too large is a refusal only where it is one event's.
func TestTooLarge(t *testing.T) {
	x := newStore(t)
	x.set(func(w http.ResponseWriter, req *http.Request, _ func()) bool {
		if strings.Contains(req.URL.Path, "/.onewrite/") {
			return false
		}
		_, _ = io.Copy(io.Discard, req.Body)
		w.WriteHeader(400)
		_, _ = io.WriteString(w, "<Error><Code>EntityTooLarge</Code><Message>no</Message></Error>")
		return true
	})
	for n, rejected := range map[int]bool{1: true, 2: false} {
		s := open(t, x.config())
		if _, err := s.Place(t.Context()); err != nil {
			t.Fatal(err)
		}
		list := messages(1, n)
		if bad, err := s.WriteAt(t.Context(), list, []byte("p")); bad != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) != rejected || !strings.Contains(err.Error(), "roll.bytes") {
			t.Errorf("WriteAt of %d = %d, %v", n, bad, err)
		}
		events := []onewrite.Event{list[0].Event, list[n-1].Event}[2-n:]
		if done, err := s.Write(t.Context(), events); done != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) != rejected {
			t.Errorf("Write of %d = %d, %v", n, done, err)
		}
	}
	x.once(t, 0)
}

// The store's certificate is verified.
func TestTLS(t *testing.T) {
	x := newStore(t)
	server := httptest.NewUnstartedServer(x.gate.Config.Handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	c := x.config()
	c.Endpoint = server.URL
	if _, err := open(t, c).Place(t.Context()); err == nil || !strings.Contains(err.Error(), "tls: {ca:") {
		t.Errorf("of an unknown authority: %v", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	c.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10}
	s := open(t, c)
	mustPlace(t, s, "")
	mustWrite(t, s, "p", messages(1, 3))
	x.once(t, 3)
}

// Names of objects: the same for the same events, with nothing in them that tools
// stumble over, and an event that can have none is refused alone.
func TestNames(t *testing.T) {
	x := newStore(t)
	c := x.config()
	c.Prefix = "lake/{type}/{source}-{topic}/{date}/{hour}/"
	s := open(t, c)
	e := messages(7, 7)[0]
	e.Type = "../a b/ü"
	mustPlace(t, s, "")
	mustWrite(t, s, "p", []onewrite.Message{e})
	e.Type, e.Time = "..", time.Time{}
	mustWrite(t, s, "q", []onewrite.Message{e})
	var names []string
	for _, key := range x.keys(t) {
		if !strings.Contains(key, ".onewrite/") {
			names = append(names, key[:strings.LastIndexByte(key, '-')])
		} else if !strings.HasPrefix(key, "lake/.onewrite/archive") {
			t.Errorf("the record is at %s", key)
		}
	}
	if want := []string{"lake/.._a_b__/shop-order.paid/2026-01-01/23/shop-0000000000000007-0000000000000007", "lake/_../shop-order.paid/undated/undated/shop-0000000000000007-0000000000000007"}; !slices.Equal(names, want) {
		t.Errorf("names are %q, want %q", names, want)
	}
	long := e
	long.Type = strings.Repeat("t", 1000)
	list := []onewrite.Message{messages(8, 8)[0], long, messages(9, 9)[0]}
	if bad, err := s.WriteAt(t.Context(), list, []byte("r")); bad != 1 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "1,024") {
		t.Errorf("WriteAt = %d, %v", bad, err)
	}
	if n, err := s.Write(t.Context(), []onewrite.Event{list[0].Event, long.Event, list[2].Event}); n != 1 || !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("Write = %d, %v", n, err)
	}
	mustWrite(t, s, "r", []onewrite.Message{list[0], list[2]})
	mustPlace(t, open(t, c), "r")
}

func TestNewSaysTheCure(t *testing.T) {
	ok := s3.Config{Bucket: "events", Destination: "archive", Region: "eu-central-1"}
	for has, change := range map[string]func(*s3.Config){
		"set bucket":        func(c *s3.Config) { c.Bucket = "" },
		"no name":           func(c *s3.Config) { c.Destination = "a/b" },
		"only one of":       func(c *s3.Config) { c.SecretKey = "canary" },
		"timeout":           func(c *s3.Config) { c.Timeout = -1 },
		"stands for":        func(c *s3.Config) { c.Prefix = "{day}/" },
		"begins with /":     func(c *s3.Config) { c.Prefix = "/a/" },
		"none of none":      func(c *s3.Config) { c.Compression = "lz4" },
		"none of jsonl":     func(c *s3.Config) { c.Format = "avro" },
		"snappy, lz4":       func(c *s3.Config) { c.Format, c.Compression = "parquet", "brotli" },
		"there is no regio": func(c *s3.Config) { c.Region = "" },
	} {
		t.Setenv("AWS_REGION", "")
		c := ok
		change(&c)
		if _, err := s3.New(t.Context(), c); err == nil || !strings.Contains(err.Error(), has) || strings.Contains(err.Error(), "canary") {
			t.Errorf("want %q, got %v", has, err)
		}
	}
}

// A good bucket, and one with a rule that would remove the record.
func TestExamine(t *testing.T) {
	x := newStore(t)
	found := s3.Examine(t.Context(), x.config())
	find(t, found, diagnosis.OK, "bucket", x.bucket)
	find(t, found, diagnosis.OK, "record", "nothing was written yet")
	find(t, found, diagnosis.OK, "conditions", "heeded")
	if keys := x.keys(t); len(keys) != 0 {
		t.Errorf("the doctor wrote %q", keys)
	}
	s := open(t, x.config())
	mustPlace(t, s, "")
	mustWrite(t, s, "p", messages(1, 1))
	if _, err := x.client.PutBucketLifecycleConfiguration(t.Context(), &awss3.PutBucketLifecycleConfigurationInput{Bucket: &x.bucket, LifecycleConfiguration: &types.BucketLifecycleConfiguration{
		Rules: []types.LifecycleRule{{ID: aws.String("old"), Status: types.ExpirationStatusEnabled, Filter: &types.LifecycleRuleFilter{Prefix: aws.String("")}, Expiration: &types.LifecycleExpiration{Days: aws.Int32(30)}}},
	}}); err != nil {
		t.Fatal(err)
	}
	found = s3.Examine(t.Context(), x.config())
	find(t, found, diagnosis.OK, "record", "1 commits")
	find(t, found, diagnosis.Warning, "lifecycle", "old")
	c := x.config()
	c.Bucket = "not-there"
	find(t, s3.Examine(t.Context(), c), diagnosis.Problem, "bucket", "aws s3 mb s3://not-there")
}

// Another family of clients, boto3, reads exactly once by the rule of the package,
// after a crash that left objects which do not count.
func TestPythonReads(t *testing.T) {
	x := newStore(t)
	c := x.config()
	c.Compression = "gzip"
	first := open(t, c)
	mustPlace(t, first, "")
	mustWrite(t, first, "one", messages(1, 50))
	x.set(func(w http.ResponseWriter, req *http.Request, _ func()) bool {
		if isRecord(req) {
			hangUp(w)
		}
		return isRecord(req)
	})
	if _, err := first.WriteAt(context.Background(), messages(51, 100), []byte("two")); err == nil {
		t.Fatal("the commit went through")
	}
	x.set(nil)
	second := open(t, c)
	mustPlace(t, second, "one")
	mustWrite(t, second, "two", messages(51, 80))
	mustWrite(t, second, "three", messages(81, 120))
	out, err := x.moto.Python(reader, x.moto.URL(), x.bucket, "archive").Output()
	if err != nil {
		t.Fatalf("%v %s", err, err.(interface{ Error() string }))
	}
	var got struct {
		IDs     []string
		Objects int
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got.IDs)
	if len(got.IDs) != 120 || len(slices.Compact(got.IDs)) != 120 {
		t.Errorf("%d events, want 120, each once", len(got.IDs))
	}
	if objects, _ := x.committed(t); got.Objects <= len(objects) {
		t.Errorf("%d objects and %d that are committed: the crash left none, so nothing was tried", got.Objects, len(objects))
	}
}

// reader is the one of docs/destinations/s3.md.
const reader = `
import boto3, gzip, json, sys
from botocore.config import Config

endpoint, bucket, name = sys.argv[1:4]
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b",
                  config=Config(s3={"addressing_style": "path"}))
get = lambda key: s3.get_object(Bucket=bucket, Key=key)["Body"].read()
keys = lambda prefix: [o["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
                       for o in page.get("Contents", [])]

record = json.loads(get(f".onewrite/{name}.json"))
lists = {}
for key in keys(f".onewrite/{name}/{record['history']}/"):
    commit, epoch = key.rsplit("/", 1)[1].removesuffix(".json").split("-")
    if int(commit) <= record["commit"]:
        lists[int(commit)] = key  # sorted by epoch: the last one counts
ids = []
for commit in sorted(lists):
    for o in json.loads(get(lists[commit]))["objects"]:
        lines = gzip.decompress(get(o["key"])).splitlines()
        assert len(lines) == o["events"], o
        ids += [json.loads(line)["id"] for line in lines]
print(json.dumps({"ids": ids, "objects": len([k for k in keys("") if not k.startswith(".onewrite/")])}))
`

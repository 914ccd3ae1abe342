package s3_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/klauspost/compress/zstd"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/s3"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/parquet"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/onewritetest"
)

var buckets atomic.Int64

// store is a bucket of its own, behind a gate that may break requests.
type store struct {
	moto   *servers.S3Server
	bucket string
	gate   *httptest.Server
	client *awss3.Client

	mu    sync.Mutex
	fault func(w http.ResponseWriter, req *http.Request, pass func()) bool // true: it has answered
	reqs  []string
	seen  map[string][]byte
}

func newStore(t *testing.T) *store {
	t.Helper()
	x := &store{moto: servers.Moto(t), bucket: fmt.Sprintf("events-%d", buckets.Add(1)), seen: map[string][]byte{}}
	x.moto.Bucket(t, x.bucket)
	target, err := url.Parse(x.moto.URL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	transport := &http.Transport{}
	proxy.Transport = transport
	x.gate = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		x.mu.Lock()
		x.reqs = append(x.reqs, req.Method+" "+req.URL.Path)
		fault := x.fault
		x.mu.Unlock()
		if fault != nil && fault(w, req, func() { proxy.ServeHTTP(httptest.NewRecorder(), req) }) {
			return
		}
		proxy.ServeHTTP(w, req)
	}))
	t.Cleanup(func() { x.gate.CloseClientConnections(); x.gate.Close(); transport.CloseIdleConnections() })
	x.client = awss3.New(awss3.Options{BaseEndpoint: aws.String(x.moto.URL()), Region: "us-east-1", UsePathStyle: true, Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""),
		HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}})
	return x
}

func (x *store) set(f func(w http.ResponseWriter, req *http.Request, pass func()) bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fault = f
}

// hangUp ends a request without an answer.
func hangUp(w http.ResponseWriter) {
	if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
		_ = c.Close()
	}
}

func (x *store) config() s3.Config {
	return s3.Config{Bucket: x.bucket, Endpoint: x.gate.URL, PathStyle: true, AccessKey: "key", SecretKey: "canary-secret", Destination: "archive"}
}

func open(t *testing.T, c s3.Config) *s3.Sink {
	t.Helper()
	s, err := s3.New(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// keys lists the objects in the order of their last change, as far as it can be told.
func (x *store) keys(t *testing.T) (keys []string) {
	t.Helper()
	p := awss3.NewListObjectsV2Paginator(x.client, &awss3.ListObjectsV2Input{Bucket: &x.bucket})
	for p.HasMorePages() {
		page, err := p.NextPage(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			keys = append(keys, *o.Key)
		}
	}
	return keys
}

func (x *store) get(t *testing.T, key string) []byte {
	t.Helper()
	out, err := x.client.GetObject(context.Background(), &awss3.GetObjectInput{Bucket: &x.bucket, Key: &key})
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	defer func() { _ = out.Body.Close() }()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// events reads an object of events; those are never changed, so each is read once.
func (x *store) events(t *testing.T, key string) (list []onewrite.Event) {
	t.Helper()
	body, has := x.seen[key]
	if !has {
		body = x.get(t, key)
		x.seen[key] = body
	}
	switch {
	case strings.HasSuffix(key, ".parquet"):
		list, err := parquet.Events(bytes.NewReader(body), int64(len(body)))
		if err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		return list
	case strings.HasSuffix(key, ".gz"):
		r, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if body, err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	case strings.HasSuffix(key, ".zst"):
		r, err := zstd.NewReader(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if body, err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range bytes.Split(bytes.TrimSuffix(body, []byte("\n")), []byte("\n")) {
		e, err := cloudevents.ParseJSON(line)
		if err != nil {
			t.Fatalf("%s: %v in %.200s", key, err, line)
		}
		list = append(list, e)
	}
	return list
}

type record struct {
	History string
	Epoch   uint64
	Commit  uint64
	Place   []byte
}

type list struct {
	Commit, Epoch uint64
	Objects       []struct {
		Key         string
		Events      int
		First, Last uint64
	}
}

var commitName = regexp.MustCompile(`\.onewrite/[^/]+/([^/]+)/(\d{16})-(\d{8})\.json$`)

// committed returns the objects that a reader who reads exactly once reads, in their
// order, and those that some list names.
func (x *store) committed(t *testing.T) (objects []string, named map[string]bool) {
	t.Helper()
	named = map[string]bool{}
	var rec record
	best := map[string]list{}
	for _, key := range x.keys(t) {
		if strings.HasSuffix(key, ".onewrite/archive.json") {
			if err := json.Unmarshal(x.get(t, key), &rec); err != nil {
				t.Fatal(err)
			}
		}
		m := commitName.FindStringSubmatch(key)
		if m == nil {
			continue
		}
		var l list
		if err := json.Unmarshal(x.get(t, key), &l); err != nil {
			t.Fatal(err)
		}
		for _, o := range l.Objects {
			named[o.Key] = true
		}
		best[m[2]] = l // those of higher epochs come later
	}
	for n := uint64(1); n <= rec.Commit; n++ {
		l, has := best[fmt.Sprintf("%016d", n)]
		if !has {
			t.Fatalf("commit %d of %d has no list", n, rec.Commit)
		}
		for _, o := range l.Objects {
			objects = append(objects, o.Key)
		}
	}
	return objects, named
}

// received are the events that are committed, and those of Write, which no list names.
func (x *store) received(t *testing.T) (events []onewrite.Event) {
	t.Helper()
	objects, named := x.committed(t)
	keys := x.keys(t)
	x.mu.Lock() // objects of Write have no order among them, but for that of the requests
	at := map[string]int{}
	for i, r := range x.reqs {
		if key, put := strings.CutPrefix(r, "PUT /"+x.bucket+"/"); put && at[key] == 0 {
			at[key] = i + 1
		}
	}
	x.mu.Unlock()
	slices.SortFunc(keys, func(a, b string) int { return at[a] - at[b] })
	for _, key := range keys {
		if !named[key] && !strings.Contains(key, ".onewrite/") {
			events = append(events, x.events(t, key)...)
		}
	}
	for _, key := range objects {
		events = append(events, x.events(t, key)...)
	}
	return events
}

func TestSink(t *testing.T) {
	for name, shape := range map[string][2]string{"gzip": {"jsonl", "gzip"}, "parquet": {"parquet", ""}} {
		t.Run(name, func(t *testing.T) {
			x := newStore(t)
			onewritetest.TestSink(t, onewritetest.SinkHarness{
				New: func(t *testing.T) onewrite.Sink {
					c := x.config()
					c.Format, c.Compression = shape[0], shape[1]
					c.Prefix = "{source}/{topic}/" // a day has an object of its own, and the suite looks at the order across days
					s, err := s3.New(context.Background(), c)
					if err != nil {
						t.Fatal(err)
					}
					return s
				},
				Received:    x.received,
				JSONByValue: true,
				Break: func(*testing.T) func() {
					x.set(func(w http.ResponseWriter, _ *http.Request, _ func()) bool { hangUp(w); return true })
					return func() { x.set(nil) }
				},
				Stall: func(*testing.T) func() {
					resumed := make(chan struct{})
					x.set(func(w http.ResponseWriter, req *http.Request, _ func()) bool {
						_, _ = io.Copy(io.Discard, req.Body)
						select {
						case <-resumed:
						case <-req.Context().Done():
						}
						hangUp(w)
						return true
					})
					return func() { x.set(nil); close(resumed) }
				},
			})
		})
	}
}

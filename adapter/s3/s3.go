package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"github.com/onewrite/onewrite"
)

const (
	defaultTimeout = 15 * time.Second
	atOnce         = 8 // objects that are put at the same time
	maxRecord      = 16 << 20
)

// Config says where to write and how.
type Config struct {
	// Bucket has to exist.
	Bucket string
	// Prefix is the begin of objects' names; {source}, {topic}, {type}, {date} and
	// {hour} stand for the event's. Default "{source}/{topic}/{date}/".
	Prefix string
	// Destination names the record of the place.
	Destination string
	// Region is the bucket's; empty: what AWS's configuration says, and with Endpoint
	// us-east-1.
	Region string
	// Endpoint is the URL of a store that is not AWS's own.
	Endpoint string
	// PathStyle puts the bucket into the path of requests.
	PathStyle bool
	// AccessKey and SecretKey log in; without them AWS's own chain is asked.
	AccessKey, SecretKey string
	// Format is "jsonl", which is the default, or "parquet".
	Format string
	// Compression is "none", which is the default, "gzip" or "zstd". With Format "parquet"
	// it is that of the columns: "zstd" by default, or "gzip", "snappy", "lz4", "none".
	Compression string
	// Timeout bounds each request; default 15 s.
	Timeout time.Duration
	// TLS holds certificates, where the system's do not do; the least version is 1.2
	// in any case.
	TLS *tls.Config
	// Logger is told of what was taken over; nil is silent.
	Logger *slog.Logger
}

// Sink writes objects to one bucket. Its methods may be called by several goroutines at
// once; those about the place take turns.
type Sink struct {
	bucket, prefix, root, destination string
	pack                              packer
	timeout                           time.Duration
	client                            *s3.Client
	transport                         *http.Transport
	log                               *slog.Logger

	closing context.Context // ends with Close
	end     context.CancelFunc
	mu      sync.Mutex
	closed  bool           // under mu
	calls   sync.WaitGroup // grows under mu while not closed

	place place
}

// New makes a sink; it asks no store yet. The error names what can never work in the
// configuration, and the cure.
func New(ctx context.Context, c Config) (*Sink, error) {
	if c.Prefix == "" {
		c.Prefix = "{source}/{topic}/{date}/"
	}
	s := &Sink{bucket: c.Bucket, prefix: c.Prefix, destination: c.Destination, timeout: c.Timeout, log: c.Logger}
	switch {
	case c.Bucket == "":
		return nil, errors.New("s3: there is no bucket; set bucket")
	case c.Destination == "" || strings.ContainsAny(c.Destination, "/ "):
		return nil, errors.New("s3: the destination has no name that could be one of an object; give it one of letters, digits, _ and -")
	case (c.AccessKey == "") != (c.SecretKey == ""):
		return nil, errors.New("s3: there is only one of access_key and secret_key; set both, or neither")
	case c.Timeout < 0:
		return nil, errors.New("s3: timeout is negative; remove it for the default of 15s")
	}
	var err error
	if s.root, err = rootOf(c.Prefix); err != nil {
		return nil, err
	}
	if s.pack, err = packerOf(c.Format, c.Compression); err != nil {
		return nil, err
	}
	if s.timeout == 0 {
		s.timeout = defaultTimeout
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.connect(ctx, c); err != nil {
		return nil, err
	}
	s.place.turn = make(chan struct{}, 1)
	s.place.turn <- struct{}{}
	s.closing, s.end = context.WithCancel(context.Background())
	return s, nil
}

// connect makes the client, which connects with the first request.
func (s *Sink) connect(ctx context.Context, c Config) error {
	options := []func(*awsconfig.LoadOptions) error{awsconfig.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} })}
	region := c.Region
	if region == "" && c.Endpoint != "" {
		region = "us-east-1" // such stores want one, and take any
	}
	if region != "" {
		options = append(options, awsconfig.WithRegion(region))
	}
	if c.AccessKey != "" {
		options = append(options, awsconfig.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(c.AccessKey, c.SecretKey, "")))
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return fmt.Errorf("s3: the configuration of AWS cannot be read: %w; see ~/.aws/config and AWS_PROFILE", err)
	}
	if cfg.Region == "" {
		return errors.New("s3: there is no region; set region: eu-central-1, or what the bucket's is: aws s3api get-bucket-location --bucket " + c.Bucket)
	}
	s.transport = &http.Transport{Proxy: http.ProxyFromEnvironment}
	if b, is := cfg.HTTPClient.(*awshttp.BuildableClient); is { // it has what AWS's configuration says, such as AWS_CA_BUNDLE
		s.transport = b.GetTransport()
	}
	if c.TLS != nil {
		s.transport.TLSClientConfig = c.TLS.Clone()
	} else if s.transport.TLSClientConfig == nil {
		s.transport.TLSClientConfig = &tls.Config{}
	}
	s.transport.TLSClientConfig.MinVersion = max(s.transport.TLSClientConfig.MinVersion, tls.VersionTLS12)
	s.transport.ForceAttemptHTTP2, s.transport.MaxIdleConnsPerHost, s.transport.IdleConnTimeout = true, atOnce, 50*time.Second
	s.client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.HTTPClient = &http.Client{Transport: s.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		o.UsePathStyle = c.PathStyle
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
		// Content-MD5 is sent instead, which every store knows.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.DisableLogOutputChecksumValidationSkipped = true
	})
	return nil
}

// enter begins a call. The context that it returns ends with Close too.
func (s *Sink) enter(ctx context.Context) (context.Context, func(), error) {
	if ctx.Err() != nil {
		return nil, nil, fmt.Errorf("s3: %w", context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, fmt.Errorf("s3: %w", os.ErrClosed)
	}
	s.calls.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.closing, func() { cancel(os.ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		s.calls.Done()
	}, nil
}

// Write makes objects of the events, without a commit. It is all or nothing but for an
// event that can have no name: those before it are durable then. A delivery uses
// [Sink.WriteAt].
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (n int, err error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	messages := make([]onewrite.Message, len(events))
	for i := range events {
		messages[i].Event = events[i]
	}
	objects, bad, refused := s.objects(messages)
	if refused != nil {
		if objects, _, err = s.objects(messages[:bad]); err != nil {
			return 0, err
		}
	}
	if err := s.putAll(ctx, objects); err != nil {
		return 0, blame(err, len(events))
	}
	if refused != nil {
		return bad, refused
	}
	return len(events), nil
}

// Close ends the calls under way, which return an error, and closes all connections.
// It may be called again.
func (s *Sink) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end()
	s.calls.Wait()
	s.transport.CloseIdleConnections()
	return nil
}

// putAll puts objects that are not there. One that is, is the same: its name has the
// digest of its content.
func (s *Sink) putAll(ctx context.Context, objects []object) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i := range objects {
		g.Go(func() error {
			body, err := s.pack.pack(objects[i].lines)
			if err != nil {
				return fmt.Errorf("s3: make %s: %w", objects[i].key, err)
			}
			_, err = s.put(ctx, objects[i].key, s.pack.kind, body, ifAbsent)
			if errors.Is(err, errPrecondition) {
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// ifAbsent is the condition that there is no such object; any other is the ETag that
// the object has to have.
const ifAbsent = "*"

// put writes an object under a condition; errPrecondition if it does not hold.
func (s *Sink) put(ctx context.Context, key, kind string, body []byte, condition string) (etag string, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	sum := md5.Sum(body) // not for security: that the body arrives as it was
	in := &s3.PutObjectInput{Bucket: &s.bucket, Key: &key, Body: bytes.NewReader(body), ContentLength: aws.Int64(int64(len(body))), ContentType: &kind,
		ContentMD5: aws.String(base64.StdEncoding.EncodeToString(sum[:]))}
	if condition == ifAbsent {
		in.IfNoneMatch = &condition
	} else {
		in.IfMatch = &condition
	}
	out, err := s.client.PutObject(ctx, in)
	if err != nil {
		return "", s.failed(ctx, "put", key, err)
	}
	return aws.ToString(out.ETag), nil
}

// get reads an object; errNoKey if there is none.
func (s *Sink) get(ctx context.Context, key string) (body []byte, etag string, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: &key})
	if err != nil {
		return nil, "", s.failed(ctx, "get", key, err)
	}
	defer func() { _ = out.Body.Close() }()
	body, err = io.ReadAll(io.LimitReader(out.Body, maxRecord+1))
	if err != nil {
		return nil, "", s.failed(ctx, "get", key, err)
	}
	if len(body) > maxRecord {
		return nil, "", fmt.Errorf("s3: %s is larger than onewrite makes it; is it another program's? Give the destination another name", key)
	}
	return body, aws.ToString(out.ETag), nil
}

var _ onewrite.Placed = (*Sink)(nil)

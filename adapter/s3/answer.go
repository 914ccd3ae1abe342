package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/onewrite/onewrite"
)

var (
	// errPrecondition: the condition of a put does not hold.
	errPrecondition = errors.New("the condition does not hold")
	// errNoKey: there is no such object.
	errNoKey = errors.New("there is no such object")
	// errTooLarge: the object is larger than the store takes.
	errTooLarge = errors.New("the object is too large")
)

const (
	// slowDown is the pause of a store that asks for one and does not say how long.
	slowDown = time.Second
	maxPause = time.Hour
)

// failure is an error with what the pipeline asks errors for.
type failure struct {
	text  string
	cause error
	after time.Duration
}

func (f *failure) Error() string             { return f.text }
func (f *failure) Unwrap() error             { return f.cause }
func (f *failure) RetryAfter() time.Duration { return f.after }

// failed makes the error of a request. Those of S3 have a code, and a message without
// secrets.
func (s *Sink) failed(ctx context.Context, op, key string, err error) error {
	status, header := 0, http.Header{}
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) && resp.Response != nil {
		status, header = resp.HTTPStatusCode(), resp.Response.Header
	}
	code, said := "", ""
	var api smithy.APIError
	if errors.As(err, &api) {
		code, said = api.ErrorCode(), api.ErrorMessage()
	}
	switch {
	case status == http.StatusPreconditionFailed:
		return errPrecondition
	case status == http.StatusNotFound && code != "NoSuchBucket":
		return errNoKey
	case status == 0:
		return s.unreached(ctx, op, key, err)
	}
	f := &failure{cause: err}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests || code == "SlowDown" || strings.Contains(code, "Throttl") || code == "RequestLimitExceeded" {
		f.after = slowDown
		if n, err := strconv.Atoi(header.Get("Retry-After")); err == nil && n > 0 {
			f.after = min(time.Duration(n)*time.Second, maxPause)
		}
	}
	if code == "EntityTooLarge" {
		f.cause = errTooLarge
	}
	if code == "" {
		code = http.StatusText(status)
	}
	if len(said) > 200 {
		said = strings.ToValidUTF8(said[:200], "") + "…"
	}
	said = strings.Join(strings.Fields(said), " ")
	f.text = fmt.Sprintf("s3: bucket %s answered %d %s (%s) to %s %s; %s", s.bucket, status, code, said, op, key, s.cure(status, code))
	return f
}

// blame makes a refusal of an error that can only be about one event. Of several, any
// may be what is too large: they are tried alone then.
func blame(err error, events int) error {
	if events == 1 && (errors.Is(err, errTooLarge) || errors.Is(err, errLine)) {
		return &failure{text: err.Error(), cause: onewrite.ErrRejected}
	}
	return err
}

// cure says what to do about an answer.
func (s *Sink) cure(status int, code string) string {
	switch code {
	case "NoSuchBucket":
		return "make it: aws s3 mb s3://" + s.bucket
	case "AccessDenied", "AllAccessDisabled", "Forbidden":
		return "allow s3:PutObject and s3:GetObject on arn:aws:s3:::" + s.bucket + "/* and s3:ListBucket on arn:aws:s3:::" + s.bucket + " (without it an object that is not there looks like a forbidden one)"
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity":
		return "set access_key and secret_key to a pair that the store knows"
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException":
		return "renew the credentials: aws sts get-caller-identity says whose they are"
	case "RequestTimeTooSkewed", "RequestExpired":
		return "set this machine's clock: timedatectl set-ntp true"
	case "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException":
		return "set region to the bucket's: aws s3api get-bucket-location --bucket " + s.bucket
	case "NotImplemented", "MethodNotAllowed":
		return "use a store that has conditional writes (If-None-Match, If-Match), in its newest version"
	case "ConditionalRequestConflict", "OperationAborted":
		return "another writer was at the same object; it is tried again"
	case "InvalidBucketName":
		return "correct bucket, or set path_style: true"
	case "EntityTooLarge":
		return "lower roll.bytes, or publish less in one event"
	case "QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity":
		return "make room in the store"
	}
	switch {
	case status/100 == 3:
		return "set region and endpoint to the bucket's"
	case status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests || code == "SlowDown":
		return "the store asks for time; larger batches make fewer requests: roll"
	case status >= 500:
		return "see the status of the store; it is tried again"
	}
	return "see what the store says of this code"
}

// unreached makes the error of a request without an answer.
func (s *Sink) unreached(ctx context.Context, op, key string, err error) error {
	// What the library wraps around is of no use to a reader.
	inner, cure := err, "check that the store runs and can be reached from here"
	var dns *net.DNSError
	var network *net.OpError
	text := ""
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		text, cure = "no answer within "+s.timeout.String(), cure+", or raise timeout"
	case ctx.Err() != nil:
		return fmt.Errorf("s3: %s %s: %w", op, key, context.Cause(ctx))
	case errors.As(err, &dns):
		text, cure = "the name "+dns.Name+" cannot be resolved: "+dns.Err, "check endpoint and region; for a store that has no names for buckets: path_style: true"
	case strings.Contains(err.Error(), "get credentials") || strings.Contains(err.Error(), "credential"):
		cure = "set access_key and secret_key, or what AWS's chain looks for: AWS_ACCESS_KEY_ID, AWS_PROFILE, a role"
	case strings.Contains(err.Error(), "tls:") || strings.Contains(err.Error(), "x509:"):
		cure = "name the authority that signed the store's certificate: tls: {ca: ca.pem}"
	case errors.As(err, &network):
		inner = network
	}
	if text == "" {
		text = inner.Error()
	}
	return &failure{cause: err, text: fmt.Sprintf("s3: bucket %s: %s %s: %s; %s", s.bucket, op, key, text, cure)}
}

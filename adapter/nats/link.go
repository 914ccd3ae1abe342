package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// link is a connection that is dialled again by the next call after it broke.
type link struct {
	addr  string
	opts  []natsgo.Option
	setup func(*natsgo.Conn) error // after each dial; may be nil

	mu     sync.Mutex
	nc     *natsgo.Conn
	js     jetstream.JetStream
	closed bool
}

var errClosed = errors.New("nats: the bus is closed")

// conn returns the connection, dialling if there is none.
func (l *link) conn() (*natsgo.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	if l.nc != nil && !l.nc.IsClosed() {
		return l.nc, nil
	}
	nc, err := natsgo.Connect(l.addr, l.opts...)
	if err != nil {
		return nil, fmt.Errorf("nats: connect: %w; check the address, the credentials and that the server is up", err)
	}
	js, err := jetstream.New(nc)
	if err == nil && l.setup != nil {
		err = l.setup(nc)
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("nats: %w", err)
	}
	l.nc, l.js = nc, js
	return nc, nil
}

func (l *link) jetStream() (jetstream.JetStream, error) {
	if _, err := l.conn(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.js, nil
}

// drop ends the connection, and with it every call that waits for an answer; the
// next call dials.
func (l *link) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nc != nil {
		l.nc.Close()
	}
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.nc != nil {
		l.nc.Close()
	}
}

// quiet sends what the client would print to the log.
func quiet(log *slog.Logger) []natsgo.Option {
	return []natsgo.Option{natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) {
		log.Debug("nats connection", "error", err)
	})}
}

// external returns the client's options for a cluster.
func external(c *Config) ([]natsgo.Option, error) {
	for _, one := range strings.Split(c.URL, ",") {
		if _, err := url.Parse(strings.TrimSpace(one)); err != nil {
			return nil, errors.New("nats: the address is not a URL; write it as nats://host:4222 or tls://host:4222") // the error would show a password
		}
	}
	opts := append(quiet(c.Logger), natsgo.Name(c.Name), natsgo.NoReconnect(), natsgo.Timeout(3*time.Second))
	if c.User != "" {
		opts = append(opts, natsgo.UserInfo(c.User, c.Password))
	}
	if c.Creds != "" {
		opts = append(opts, natsgo.UserCredentials(c.Creds))
	}
	if c.NKey != "" {
		o, err := natsgo.NkeyOptionFromSeed(c.NKey)
		if err != nil {
			return nil, fmt.Errorf("nats: nkey file %s: %w", c.NKey, err)
		}
		opts = append(opts, o)
	}
	if c.TLS != nil {
		opts = append(opts, natsgo.Secure(c.TLS))
	}
	return opts, nil
}

// apiError is an answer of JetStream that is a refusal.
type apiError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string { return e.Description + " (" + strconv.Itoa(e.ErrCode) + ")" }

// JetStream's error codes that steer.
const (
	codeNoMessage         = 10037
	codeNoSequence        = 10043
	codeTooLarge          = 10054
	codeNoStream          = 10059
	codeWrongSequence     = 10071
	codeStoreFailed       = 10077
	codeNeedsLimit        = 10113
	codeHeaderTooLarge    = 10097
	codeWrongSequenceRepl = 10164 // the same as codeWrongSequence, with replicas
)

func code(err error) int {
	var e *apiError
	if errors.As(err, &e) {
		return e.ErrCode
	}
	return 0
}

// moved reports that an expected sequence was not the stream's.
func moved(err error) bool {
	c := code(err)
	return c == codeWrongSequence || c == codeWrongSequenceRepl
}

// full reports that the stream has no room.
func full(err error) bool {
	var e *apiError
	if !errors.As(err, &e) {
		return false
	}
	return e.ErrCode == codeStoreFailed && strings.HasPrefix(e.Description, "maximum ")
}

// ack is the answer to a publish.
type ack struct {
	Seq   uint64    `json:"seq"`
	Batch string    `json:"batch"`
	Error *apiError `json:"error"`
}

// parseAck returns the sequence of a stored message, or why it was not stored.
func parseAck(m *natsgo.Msg) (uint64, error) {
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		return 0, natsgo.ErrNoResponders
	}
	var a ack
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return 0, fmt.Errorf("answer to a publish: %w", err)
	}
	if a.Error != nil {
		return 0, a.Error
	}
	if a.Seq == 0 {
		return 0, errors.New("answer to a publish: no sequence; does another program answer on these subjects?")
	}
	return a.Seq, nil
}

// publish stores one message and waits for the answer.
func (l *link) publish(ctx context.Context, m *natsgo.Msg) (uint64, error) {
	nc, err := l.conn()
	if err != nil {
		return 0, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	answer, err := nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return 0, err
	}
	return parseAck(answer)
}

// stored is a message of a stream as the leader gives it.
type stored struct {
	Subject string    `json:"subject"`
	Seq     uint64    `json:"seq"`
	Hdrs    []byte    `json:"hdrs"`
	Data    []byte    `json:"data"`
	Time    time.Time `json:"time"`
}

func (s *stored) header() (natsgo.Header, error) {
	if len(s.Hdrs) == 0 {
		return natsgo.Header{}, nil
	}
	return natsgo.DecodeHeadersMsg(s.Hdrs)
}

// query names one message of a stream.
type query struct {
	Seq       uint64     `json:"seq,omitempty"`
	LastFor   string     `json:"last_by_subj,omitempty"`
	NextFor   string     `json:"next_by_subj,omitempty"`
	StartTime *time.Time `json:"start_time,omitempty"`
	Batch     int        `json:"batch,omitempty"`
	MaxBytes  int        `json:"max_bytes,omitempty"`
}

// get asks the stream's leader for one message; nil means that there is none, or
// no such stream.
func (l *link) get(ctx context.Context, stream string, q query) (*stored, error) {
	nc, err := l.conn()
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	answer, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, body)
	if err != nil {
		return nil, err
	}
	var r struct {
		Message *stored   `json:"message"`
		Error   *apiError `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		return nil, fmt.Errorf("message of stream %s: %w", stream, err)
	}
	if r.Error != nil {
		if r.Error.ErrCode == codeNoMessage || r.Error.ErrCode == codeNoStream {
			return nil, nil
		}
		return nil, r.Error
	}
	return r.Message, nil
}

// bounded gives ctx an end if it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, callTimeout)
}

// deleteMsg removes a message of a stream; one that is gone is no error.
func (l *link) deleteMsg(ctx context.Context, stream string, seq uint64) error {
	nc, err := l.conn()
	if err != nil {
		return err
	}
	body := fmt.Appendf(nil, `{"seq":%d,"no_erase":true}`, seq)
	answer, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.DELETE."+stream, body)
	if err != nil {
		return err
	}
	var r struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		return fmt.Errorf("answer to a delete: %w", err)
	}
	if r.Error != nil && r.Error.ErrCode != codeNoMessage && r.Error.ErrCode != codeNoSequence {
		return r.Error
	}
	return nil
}

package shop

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// receiver is a consumer's HTTP handler. With a key it is the receiver of the
// second act: it checks the signature and remembers the ids of what it has done.
// Without one it is the first act's and believes everything.
type receiver struct {
	consumer
	db  *sql.DB
	key []byte
}

func newReceiver(c consumer, db *sql.DB, keyFile string) (*receiver, error) {
	r := &receiver{consumer: c, db: db}
	if keyFile == "" {
		return r, nil
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("shop: %s: %w", c.name, err)
	}
	r.key, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(string(text)), "whsec_"))
	if err != nil {
		return nil, fmt.Errorf("shop: %s: %s holds no key: %w", c.name, keyFile, err)
	}
	return r, nil
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	if err != nil {
		http.Error(w, "cannot read the request", http.StatusBadRequest)
		return
	}
	if r.key != nil && !signed(r.key, req.Header, body, time.Now()) {
		http.Error(w, "the signature does not fit", http.StatusUnauthorized)
		return
	}
	var o order
	if err := json.Unmarshal(body, &o); err != nil {
		http.Error(w, "this is no order", http.StatusBadRequest)
		return
	}
	// The work goes on when the caller hangs up: it cannot tell anyway.
	ctx := context.WithoutCancel(req.Context())
	if err := r.take(ctx, req.Header.Get("webhook-id"), o); err != nil {
		http.Error(w, "the store does not answer", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// take does the work of an order, once for each id if the ids are remembered.
func (r *receiver) take(ctx context.Context, id string, o order) error {
	if r.key == nil {
		id = ""
	}
	return once(ctx, r.db, id, func(tx *sql.Tx) error { return r.effect(ctx, tx, o) })
}

// effect is what an order does in the store.
func (c consumer) effect(ctx context.Context, tx *sql.Tx, o order) error {
	if o.Closed {
		_, err := tx.ExecContext(ctx, `INSERT INTO closed (customer) VALUES ($1) ON CONFLICT DO NOTHING`, o.Customer)
		return err
	}
	return c.work(ctx, tx, o)
}

// once has an effect once. The id and the effect are one transaction: after a
// crash either both are there or neither is. A repeat, which has the same id,
// finds it and changes nothing. Without an id nothing is remembered.
func once(ctx context.Context, db *sql.DB, id string, effect func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if id != "" {
		var times int
		err := tx.QueryRowContext(ctx, `INSERT INTO inbox (id, times) VALUES ($1, 1)
			ON CONFLICT (id) DO UPDATE SET times = times + 1 RETURNING times`, id).Scan(&times)
		if err != nil {
			return err
		}
		if times > 1 {
			return tx.Commit() // done before; only the repeat is counted
		}
	}
	if err := effect(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// signed checks a request after Standard Webhooks: the HMAC of id, time and body
// under the shared key is one of those in the header, and the time is about now.
func signed(key []byte, h http.Header, body []byte, now time.Time) bool {
	id, stamp := h.Get("webhook-id"), h.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || id == "" || now.Sub(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		return false
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.", id, stamp)
	mac.Write(body)
	want := mac.Sum(nil)
	for _, signature := range strings.Fields(h.Get("webhook-signature")) {
		version, text, _ := strings.Cut(signature, ",")
		got, err := base64.StdEncoding.DecodeString(text)
		if version == "v1" && err == nil && hmac.Equal(got, want) {
			return true
		}
	}
	return false
}

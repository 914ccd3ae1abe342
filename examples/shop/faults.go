package shop

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
)

// How many of the requests go wrong, in thousandths.
const (
	calmFaults = 7   // 0.7 %
	peakFaults = 140 // 14 %
)

// fault is what happens to a request at a consumer's door.
type fault int

const (
	noFault     fault = iota
	requestLost       // the line breaks before the consumer hears anything
	replyLost         // the consumer does its work; the caller never learns of it
	unavailable       // 503
)

// door stands before a consumer and spoils some requests. What happens to the
// k-th try of an order is drawn from the seed, the consumer's name, the order
// and k: both acts meet the same faults, whatever the order of arrival.
type door struct {
	seed             uint64
	name             string
	peakFrom, peakTo int
	db               *sql.DB // where the faults are written down
	next             http.Handler

	mu     sync.Mutex
	spoilt map[int]int // per order, how many of its requests were spoilt
}

// newDoor reads what was spoilt before the consumer was killed, so that a
// restart begins no fault twice.
func newDoor(ctx context.Context, s consumerSettings, db *sql.DB, next http.Handler) (*door, error) {
	d := &door{seed: s.Seed, name: s.Name, peakFrom: s.PeakFrom, peakTo: s.PeakTo, db: db, next: next, spoilt: map[int]int{}}
	rows, err := db.QueryContext(ctx, `SELECT n, count(*) FROM faults GROUP BY n`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n, times int
		if err := rows.Scan(&n, &times); err != nil {
			return nil, err
		}
		d.spoilt[n] = times
	}
	return d, rows.Err()
}

// draw decides about the next try of order n.
func (d *door) draw(n int) (fault, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	try := d.spoilt[n]
	f := drawFault(d.seed, d.name, n, try, n >= d.peakFrom && n <= d.peakTo)
	if f != noFault {
		d.spoilt[n]++
	}
	return f, try
}

func drawFault(seed uint64, name string, n, try int, peak bool) fault {
	h := fnv.New64a()
	h.Write([]byte(name))
	rng := rand.New(rand.NewPCG(seed^h.Sum64(), uint64(n)<<16|uint64(try)))
	rate := calmFaults
	if peak {
		rate = peakFaults
	}
	if rng.IntN(1000) >= rate {
		return noFault
	}
	return requestLost + fault(rng.IntN(3))
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return // the caller is gone
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var o order
	if json.Unmarshal(body, &o) != nil || o.N == 0 {
		d.next.ServeHTTP(w, r) // no order: not ours to spoil
		return
	}
	f, try := d.draw(o.N)
	if f != noFault {
		if _, err := d.db.ExecContext(r.Context(), `INSERT INTO faults (n, try, kind) VALUES ($1, $2, $3)`, o.N, try, f); err != nil {
			http.Error(w, "the faults cannot be written down", http.StatusInternalServerError)
			return
		}
	}
	switch f {
	case requestLost:
		hangUp(w)
	case replyLost:
		d.next.ServeHTTP(nowhere{}, r)
		hangUp(w)
	case unavailable:
		http.Error(w, "out of order", http.StatusServiceUnavailable)
	default:
		d.next.ServeHTTP(w, r)
	}
}

// hangUp closes the connection without an answer.
func hangUp(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		conn.Close()
	}
}

// nowhere is where a lost reply goes.
type nowhere struct{}

func (nowhere) Header() http.Header         { return http.Header{} }
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) WriteHeader(int)             {}

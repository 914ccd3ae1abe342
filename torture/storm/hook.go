package storm

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/onewrite/onewrite/torture/history"
)

// book counts the different events that a sink has.
type book struct {
	mu  sync.Mutex
	ids map[string]struct{}
}

// note reports whether an id is new.
func (b *book) note(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ids == nil {
		b.ids = map[string]struct{}{}
	}
	n := len(b.ids)
	b.ids[id] = struct{}{}
	return len(b.ids) > n
}

func (b *book) has(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.ids[id]
	return ok
}

func (b *book) seen() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(len(b.ids))
}

// hook is a webhook whose consumer remembers ids in the transaction of the
// effect. After some of the commits it loses its answer.
type hook struct {
	book
	s      *storm
	db     *sql.DB
	l      net.Listener
	server *http.Server
	log    *history.Log
	again  atomic.Int64

	mu  sync.Mutex // orders the arrivals
	rng *rand.Rand
}

func newHook(s *storm) (*hook, error) {
	db, err := sql.Open("sqlite", "file:"+s.path("consumer.db")+"?_pragma=journal_mode(wal)&_pragma=synchronous(off)&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	h := &hook{s: s, db: db, rng: rand.New(rand.NewPCG(s.Seed, 2))}
	if _, err = db.Exec(`CREATE TABLE inbox (id TEXT PRIMARY KEY) WITHOUT ROWID; CREATE TABLE effect (tx INTEGER, i INTEGER)`); err == nil {
		h.l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err == nil {
		h.log, err = history.Create(s.Dir, history.ArrivedFile, h.name())
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	h.server = &http.Server{Handler: h}
	go func() { _ = h.server.Serve(h.l) }()
	return h, nil
}

func (h *hook) name() string       { return "hook" }
func (h *hook) kind() history.Kind { return history.Kind{Once: true} }
func (h *hook) yaml() string {
	return fmt.Sprintf(`{type: webhook, url: "http://%s/", allow_private: true, secret: of-this-run-only}`, h.l.Addr())
}

// arrival reads what came: the payload says which event it is.
func arrival(s *storm, id string, body []byte) (history.Arrival, error) {
	var p payload
	if err := json.Unmarshal(body, &p); err != nil {
		return history.Arrival{}, fmt.Errorf("event %s: %w", id, err)
	}
	return history.Arrival{Event: history.Event{Tx: p.Tx, Part: p.Part, Of: p.Of, Key: p.Key, Seq: p.Seq, ID: id, Hash: digest(body)}, At: s.now()}, nil
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a, err := arrival(h.s, r.Header.Get("webhook-id"), body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	lost, err := h.take(&a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if lost {
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_ = conn.Close()
		}
	}
}

// take acts on an event once, and says whether to lose the answer.
func (h *hook) take(a *history.Arrival) (lost bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	tx, err := h.db.Begin()
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	res, err := tx.Exec(`INSERT OR IGNORE INTO inbox VALUES (?)`, a.ID)
	if err != nil {
		return false, err
	}
	if n, _ := res.RowsAffected(); n > 0 {
		if _, err := tx.Exec(`INSERT INTO effect VALUES (?, ?)`, int64(a.Tx), a.Part); err != nil {
			return false, err
		}
		if err := tx.Commit(); err != nil {
			return false, err
		}
	}
	h.log.Add(a)
	if !h.note(a.ID) {
		h.again.Add(1)
	}
	if h.rng.IntN(500) > 0 {
		return false, nil
	}
	h.s.labels.hit("ack_lost_after_persist")
	return true, nil
}

// settle writes what the consumer did.
func (h *hook) settle(dir string) error {
	if err := h.server.Close(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	out, err := history.Create(dir, history.EffectFile, h.name())
	if err != nil {
		return err
	}
	rows, err := h.db.Query(`SELECT tx, i, count(*) FROM effect GROUP BY tx, i`)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	defer rows.Close()
	for rows.Next() {
		var e history.Effect
		if err := rows.Scan(&e.Tx, &e.Part, &e.Times); err != nil {
			return errors.Join(err, out.Close())
		}
		out.Add(&e)
	}
	err = errors.Join(rows.Err(), out.Close(), h.log.Close())
	h.log = nil
	return err
}

func (h *hook) close() error {
	err := h.server.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.log != nil {
		err = errors.Join(err, h.log.Close())
	}
	return errors.Join(err, h.db.Close())
}

package storm

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/torture/history"
)

// ahead bounds how many events the writers may be ahead of the slowest sink, so
// that a storm ends on a slow machine too.
const ahead = 20_000

// errAbort rolls a transaction back on purpose.
var errAbort = errors.New("rolled back on purpose")

// writer is a client of the application's database.
type writer struct {
	*storm
	id  int
	n   uint64
	rng *rand.Rand
	pub *outbox.Publisher
}

func (s *storm) writer(id int) *writer {
	return &writer{storm: s, id: id, rng: rand.New(rand.NewPCG(s.Seed, uint64(100+id))), pub: outbox.New(s.db.dialect)}
}

// write runs the writers until there are enough events.
func (s *storm) write(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	run := func(f func(context.Context) error) {
		all.Go(func() {
			s.gate.enter()
			defer s.gate.leave()
			if err := f(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	for i := range s.Writers {
		run(s.writer(i).ledger)
	}
	for i := range 3 {
		run(s.writer(70 + i).orders)
	}
	if s.db.postgres() {
		for i := range 2 {
			run(s.writer(50 + i).inversions)
		}
		if len(s.Traps) == 0 { // a slot that is made anew waits for them
			run(s.writer(60).longOnes)
		}
	}
	if s.Rows != "" {
		s.rowing(ctx, run)
	}
	all.Wait()
	return context.Cause(ctx)
}

// enough reports whether the writers are done, and holds them back while the
// sinks are far behind.
func (s *storm) enough(ctx context.Context) bool {
	for ctx.Err() == nil {
		s.gate.pass()
		done := s.committed.Load()
		if done >= int64(s.Events) && s.labels.tormented() {
			return true
		}
		slowest := done
		for _, k := range s.sinks {
			if !k.kind().Rows && k.name() != "archive" {
				slowest = min(slowest, int64(k.seen()))
			}
		}
		lull := s.Point != "" && time.Since(s.start)%time.Second < 150*time.Millisecond // onewrite may rest
		if s.Idle || done-slowest < ahead && !lull {
			return false
		}
		time.Sleep(5 * time.Millisecond)
	}
	return true
}

// tormented reports whether the nemesis is done: until then the writers go on.
func (l *labels) tormented() bool { return l.of("tormented") > 0 }

// leg is one event of a transaction in the making.
type leg struct {
	account string
	amount  int64
	number  uint64 // of the event within its key, where the account does not tell
	delay   time.Duration
}

// payload is what an event says.
type payload struct {
	Tx     uint64 `json:"tx"`
	Part   int    `json:"i"`
	Of     int    `json:"of"`
	Key    string `json:"k"`
	Seq    uint64 `json:"s"`
	Amount int64  `json:"amount"`
	Pad    string `json:"pad,omitempty"`
}

func digest(text []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(text)
	return h.Sum64()
}

// publish moves the accounts, which fixes the order within their keys, and
// publishes an event for each, and writes both into the oracle. The legs are in
// the order of their accounts, so that no two transactions wait in a circle.
func (w *writer) publish(ctx context.Context, tx *sql.Tx, id uint64, legs []leg) error {
	facts := make([]history.Event, len(legs))
	events := make([]outbox.Event, len(legs))
	for i, l := range legs {
		var n uint64 // of the event within its key
		if l.number > 0 {
			n = l.number
		} else if err := tx.QueryRowContext(ctx, `UPDATE account SET balance = balance + $1, n = n + 1 WHERE id = $2 RETURNING n`, l.amount, l.account).Scan(&n); err != nil {
			return err
		}
		body, err := json.Marshal(payload{id, i, len(legs), l.account, n, l.amount, w.pad()})
		if err != nil {
			return err
		}
		events[i] = outbox.Event{ID: outbox.NewID(), Topic: "ledger.moved", Key: l.account, Payload: body}
		if l.delay > 0 {
			events[i].DeliverAt = time.Now().Add(l.delay)
			w.labels.hit("scheduled")
		}
		facts[i] = history.Event{Tx: id, Part: i, Of: len(legs), Key: l.account, Seq: n, ID: events[i].ID, Hash: digest(body), Amount: l.amount}
	}
	if err := w.pub.Publish(ctx, tx, events...); err != nil {
		return err
	}
	text, err := json.Marshal(facts)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO oracle_tx VALUES ($1, $2)`, int64(id), string(text))
	return err
}

func (w *writer) pad() string {
	const text = "the quick brown fox jumps over the lazy dog, and then once more over the same dog, which sleeps on"
	return text[:w.rng.IntN(len(text))]
}

// next gives a transaction its number.
func (w *writer) next() uint64 {
	w.n++
	return uint64(w.id+1)<<32 | w.n
}

// transact runs one transaction, and records what the writer was told of it. It
// returns an error only for one that no storm explains.
func (w *writer) transact(ctx context.Context, id uint64, events int, do func(tx *sql.Tx) error) error {
	told := "fail"
	w.doubtful.Add(int64(events))
	defer func() {
		if told != "info" { // else it stays in doubt
			w.doubtful.Add(-int64(events))
		}
		w.clients.Add(&history.Outcome{Tx: id, Told: told})
	}()
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return w.forgive(ctx, err)
	}
	if err := do(tx); err != nil {
		_ = tx.Rollback()
		if errors.Is(err, errAbort) || errors.Is(err, errSoldOut) {
			return nil
		}
		return w.forgive(ctx, err)
	}
	told = "info"
	if err := tx.Commit(); err != nil {
		return w.forgive(ctx, err)
	}
	told = "ok"
	w.committed.Add(int64(events))
	return nil
}

// forgive takes an error of a database that is being crashed; others end the
// storm. Either way the writer waits a little, so that it does not spin.
func (w *writer) forgive(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if w.Crashes == 0 && len(w.Traps) == 0 {
		return fmt.Errorf("writer %d: %w", w.id, err)
	}
	time.Sleep(20 * time.Millisecond)
	return nil
}

// ledger is W1: transfers as double entry, an event for each leg; some are rolled
// back after the events were published, some roll a part back.
func (w *writer) ledger(ctx context.Context) error {
	for !w.enough(ctx) {
		from, to := w.rng.IntN(keys-5), w.rng.IntN(keys-5)
		if from == to {
			continue
		}
		if from > to {
			from, to = to, from
		}
		amount := 1 + w.rng.Int64N(100)
		abort, part := w.rng.IntN(100) < 10, w.rng.IntN(100) < 5
		id := w.next()
		err := w.transact(ctx, id, 2, func(tx *sql.Tx) error {
			if part {
				if err := w.undone(ctx, tx, id); err != nil {
					return err
				}
			}
			if err := w.publish(ctx, tx, id, []leg{{account: account(from), amount: -amount}, {account: account(to), amount: amount}}); err != nil {
				return err
			}
			if abort {
				return errAbort
			}
			return nil
		})
		if err != nil {
			return err
		}
		outbox.Ring()
		w.rest(ctx)
	}
	return nil
}

// rest waits until this writer's next transaction is due.
func (w *writer) rest(ctx context.Context) {
	if w.Rate > 0 {
		each := time.Second * time.Duration(w.Writers) / time.Duration(w.Rate)
		pause(ctx, each/2+time.Duration(w.rng.Int64N(int64(each))))
	}
}

// undone publishes within a savepoint and rolls back to it.
func (w *writer) undone(ctx context.Context, tx *sql.Tx, id uint64) error {
	if _, err := tx.ExecContext(ctx, `SAVEPOINT undone`); err != nil {
		return err
	}
	if err := w.pub.Publish(ctx, tx, outbox.Event{Topic: "ledger.moved", Key: "undone", Payload: fmt.Appendf(nil, `{"tx":%d,"i":9}`, id)}); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `ROLLBACK TO SAVEPOINT undone`)
	return err
}

// latest is how much later an event is to be sent at most.
const latest = 1500 * time.Millisecond

// buyers want the same item, of which there is one.
const buyers = 12

// errSoldOut rolls an order back.
var errSoldOut = errors.New("sold out")

// remind takes the last reminder back, and schedules one for a time that no storm
// sees: it must not come, whether it is taken back or not.
func (w *writer) remind(ctx context.Context, tx *sql.Tx, last string, id uint64) (string, error) {
	if last != "" {
		was, err := w.pub.Cancel(ctx, tx, last)
		if err != nil {
			return "", err
		}
		if was {
			w.labels.hit("cancelled")
		}
	}
	e := outbox.Event{ID: outbox.NewID(), Topic: "ledger.moved", Key: "reminder", Payload: fmt.Appendf(nil, `{"tx":%d,"i":9}`, id), DeliverAt: time.Now().Add(time.Hour)}
	return e.ID, w.pub.Publish(ctx, tx, e)
}

// orders is W2: many want the last of an item. Who takes it from the stock has an
// order, and the consumers send as many mails, some of them a moment later. A
// reminder is scheduled with each order and taken back with the next.
func (w *writer) orders(ctx context.Context) error {
	reminder := ""
	for !w.enough(ctx) {
		item := fmt.Sprintf("item%06d", w.wanted.Add(1)/buyers)
		id, next := w.next(), reminder
		order := leg{account: item, amount: 1, number: 1}
		if reminder == "" || w.rng.IntN(4) == 0 {
			order.delay = 1 + time.Duration(w.rng.Int64N(int64(latest)))
		}
		err := w.transact(ctx, id, 1, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, `INSERT INTO stock VALUES ($1, 1) ON CONFLICT DO NOTHING`, item); err != nil {
				return err
			}
			res, err := tx.ExecContext(ctx, `UPDATE stock SET available = available - 1 WHERE item = $1 AND available > 0`, item)
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); n == 0 || err != nil {
				w.labels.hit("sold_out")
				return errors.Join(errSoldOut, err)
			}
			if next, err = w.remind(ctx, tx, reminder, id); err != nil {
				return err
			}
			return w.publish(ctx, tx, id, []leg{order})
		})
		if err != nil {
			return err
		}
		reminder = next
		outbox.Ring()
		w.rest(ctx)
	}
	return nil
}

// inversions is W3: a transaction takes its place in the outbox, another takes a
// later one and commits, and only then the first does.
func (w *writer) inversions(ctx context.Context) error {
	mine, other := account(keys-1-2*(w.id-50)), account(keys-2-2*(w.id-50))
	for !w.enough(ctx) {
		first, second := w.next(), w.next()
		err := w.transact(ctx, first, 1, func(tx *sql.Tx) error {
			if err := w.publish(ctx, tx, first, []leg{{account: mine, amount: 1}}); err != nil {
				return err
			}
			err := w.transact(ctx, second, 1, func(tx *sql.Tx) error { return w.publish(ctx, tx, second, []leg{{account: other, amount: 1}}) })
			if err == nil {
				w.labels.hit("inversion")
			}
			return err
		})
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(w.rng.IntN(4)) * time.Millisecond):
		}
		w.rest(ctx)
	}
	return nil
}

// longOnes keeps a transaction open across a restart of onewrite, with an event
// before it.
func (w *writer) longOnes(ctx context.Context) error {
	for w.Rows != "" && w.captured.Load() == 0 && ctx.Err() == nil { // the slot is made when all that are open have ended
		time.Sleep(10 * time.Millisecond)
	}
	for !w.enough(ctx) {
		id, before := w.next(), w.restarts.Load()
		err := w.transact(ctx, id, 1, func(tx *sql.Tx) error {
			if err := w.publish(ctx, tx, id, []leg{{account: account(keys - 5), amount: 1}}); err != nil {
				return err
			}
			for w.restarts.Load() == before && !w.labels.tormented() && !w.gate.held() && ctx.Err() == nil {
				time.Sleep(20 * time.Millisecond)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if w.restarts.Load() > before {
			w.labels.hit("open_across_restart")
		}
	}
	return nil
}

// probe publishes one event and returns its id.
func (w *writer) probe(ctx context.Context) (string, error) {
	return w.marked(ctx, w.next(), leg{account: account(0)})
}

// marked publishes one event in a transaction and returns its id.
func (w *writer) marked(ctx context.Context, id uint64, l leg) (string, error) {
	if err := w.transact(ctx, id, 1, func(tx *sql.Tx) error { return w.publish(ctx, tx, id, []leg{l}) }); err != nil {
		return "", err
	}
	var text string
	if err := w.db.QueryRowContext(ctx, `SELECT events FROM oracle_tx WHERE tx = $1`, int64(id)).Scan(&text); err != nil {
		return "", err
	}
	var facts []history.Event
	if err := json.Unmarshal([]byte(text), &facts); err != nil {
		return "", err
	}
	return facts[0].ID, nil
}

// sentinels publishes the last event of each account, and one that is due after all
// that are scheduled, and returns their ids.
func (s *storm) sentinels(ctx context.Context) ([]string, error) {
	if s.Rows != "" {
		if err := s.settleRows(ctx); err != nil {
			return nil, err
		}
	}
	w := s.writer(90)
	legs := []leg{{account: "last", number: 1, delay: latest}}
	for i := range keys {
		legs = append(legs, leg{account: account(i)})
	}
	var ids []string
	for _, l := range legs {
		id, err := w.marked(ctx, w.next(), l)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

package storm

import (
	"encoding/json"
	"fmt"
	"sync"

	"github.com/onewrite/onewrite/torture/history"
)

// sink is an independent client that records what arrives.
type sink interface {
	name() string
	kind() history.Kind
	yaml() string // the destination, as flow YAML
	seen() uint64 // different events so far
	has(id string) bool
	settle(dir string) error // writes what is recorded at the end
	close() error
}

// labels counts what has to happen in a run for its green to mean something.
type labels struct {
	mu sync.Mutex
	n  map[string]int
}

func (l *labels) hit(label string) { l.hits(label, 1) }

func (l *labels) hits(label string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == nil {
		l.n = map[string]int{}
	}
	l.n[label] += n
}

// of returns how often a label was hit.
func (l *labels) of(label string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n[label]
}

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

// arrival reads what came from a copy of onewrite: the payload says which event it
// is.
func (s *storm) arrival(copied int, id string, body []byte) (history.Arrival, error) {
	var p payload
	if err := json.Unmarshal(body, &p); err != nil {
		return history.Arrival{}, fmt.Errorf("event %s: %w", id, err)
	}
	if s.Copies == 1 {
		copied = 0
	}
	return history.Arrival{
		Event: history.Event{Tx: p.Tx, Part: p.Part, Of: p.Of, Key: p.Key, Seq: p.Seq, ID: id, Hash: digest(body), Amount: p.Amount},
		Copy:  copied, At: s.now(),
	}, nil
}

// Package history holds what a storm recorded and says whether it was right.
//
// A run leaves a folder of files of JSON lines, one writer each: what the
// database holds as committed, what the writers were told, what independent
// clients saw arrive and did with it, what onewrite said of itself, and what was
// done to it. [Check] reads them once and names each law that was broken. It
// shares no code with what it judges.
package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// The files of a run. Those with a * exist once for each sink.
const (
	RunFile     = "run.json"
	TruthFile   = "truth.jsonl"     // Event: what the database holds, after recovery
	ClientFile  = "client.jsonl"    // Outcome: what the writers were told
	ArrivedFile = "arrived-*.jsonl" // Arrival, in the order of arrival
	EffectFile  = "effect-*.jsonl"  // Effect: the consumer's own database at the end
	BalanceFile = "balance-*.jsonl" // Balance: the same
	SampleFile  = "sample.jsonl"    // Sample
	FaultFile   = "fault.jsonl"     // Fault

	CheckpointFile = "checkpoint-*.jsonl" // Checkpoint

	ShadowFile = "shadow.jsonl"   // Change: what triggers noted of each change of a row, in order for each row
	ChangeFile = "change-*.jsonl" // Change, in the order of arrival
	RowFile    = "row.jsonl"      // Row: what the tables hold
)

// Event is an event as the database committed it.
type Event struct {
	Tx   uint64 `json:"tx"`             // the transaction; unique in a run, never 0
	Part int    `json:"i"`              // its place in the transaction, from 0
	Of   int    `json:"of"`             // how many the transaction has
	Key  string `json:"k,omitempty"`    // events of one key are ordered by Seq
	Seq  uint64 `json:"s,omitempty"`    // 1, 2, 3 … within the key, in commit order
	ID   string `json:"id"`             // the event's id
	Hash uint64 `json:"h"`              // of its payload
	Sink string `json:"sink,omitempty"` // the only sink that wants it; empty: all

	Amount int64 `json:"a,omitempty"` // what it adds to the balance of its key
}

// Outcome is what a writer was told of a transaction: ok, fail, or info when the
// answer was lost.
type Outcome struct {
	Tx   uint64 `json:"tx"`
	Told string `json:"told"`
}

// Arrival is an event as a sink got it.
type Arrival struct {
	Event
	At   int64  `json:"at"`             // nanoseconds of the monotonic clock of the run
	Copy int    `json:"copy,omitempty"` // which copy of onewrite sent it, from 1; 0 unknown
	Pos  uint64 `json:"pos,omitempty"`  // its place on the bus, where the sink is told
}

// Effect is a row of a consumer's database: how often it did what an event asks.
type Effect struct {
	Tx    uint64 `json:"tx"`
	Part  int    `json:"i"`
	Times int    `json:"times"`
}

// Balance is a row of a consumer's database: what the amounts of a key add up to.
type Balance struct {
	Key string `json:"k"`
	Sum int64  `json:"sum"`
}

// Checkpoint is what a consumer's database held at one moment: the sum of all
// balances, and by the consumer's own count the amounts of the transactions that
// it had acted on as a whole and of those that had come in part.
type Checkpoint struct {
	At     int64  `json:"at"`
	Events uint64 `json:"events"` // acted on
	Sum    int64  `json:"sum"`
	Single int64  `json:"single"`
	Open   int64  `json:"open"`
}

// Sample is what was true at one moment.
type Sample struct {
	At        int64                `json:"at"`
	Age       int                  `json:"age,omitempty"`  // how often the bus was exchanged: what onewrite counts begins anew
	Copy      int                  `json:"copy,omitempty"` // which copy of onewrite was asked
	Up        bool                 `json:"up"`             // it answered
	Committed uint64               `json:"committed"`      // events of the database, counted after the answer
	Events    uint64               `json:"events"`         // taken by the source, as onewrite says
	State     string               `json:"state"`          // of the source
	Gap       string               `json:"gap,omitempty"`
	Warnings  int                  `json:"warnings,omitempty"`
	Sinks     map[string]SinkState `json:"sinks,omitempty"`
	RSS       int64                `json:"rss,omitempty"`      // bytes
	Outbox    int64                `json:"outbox,omitempty"`   // bytes
	Folder    int64                `json:"folder,omitempty"`   // bytes of the bus
	Retained  int64                `json:"retained,omitempty"` // bytes of the log from where the slot is
}

// SinkState is what onewrite says of a destination, and what the sink itself
// counted at the time.
type SinkState struct {
	State     string `json:"state"`
	Epoch     uint64 `json:"epoch"`
	Position  uint64 `json:"position"`
	Delivered uint64 `json:"delivered"`
	Pending   uint64 `json:"pending"`
	Parked    uint64 `json:"parked"`
	Filtered  uint64 `json:"filtered,omitempty"`
	Skipped   uint64 `json:"skipped,omitempty"`
	Seen      uint64 `json:"seen"` // different events that arrived, by the sink's own count, after the answer
}

// Fault is something that was done, with the proof that it took effect.
type Fault struct {
	At    int64  `json:"at"`
	Until int64  `json:"until"` // when it was undone
	Kind  string `json:"kind"`
	Times int    `json:"times,omitempty"` // how often within that time; 0 is once
	On    string `json:"on,omitempty"`
	Proof string `json:"proof"`           // what was seen of its effect; empty: it had none
	Again int    `json:"again,omitempty"` // events that the source may read again for it
	// Sinks are the only ones that may get events again for it; empty: On, or all.
	Sinks []string `json:"sinks,omitempty"`
	// Most bounds the events that may arrive again for it, all times together, at
	// the sink On if that is one; 0: a window each time, -1: none.
	Most int `json:"most,omitempty"`
	// Says is what onewrite has to show within ten seconds after Until: "gap", or
	// "trouble", which is that it does not answer, warns, or does not say ok.
	Says string `json:"says,omitempty"`
	// Takeover is how long it took, in nanoseconds, until an event of after the
	// fault had arrived; 0: it was not measured.
	Takeover int64 `json:"takeover,omitempty"`
	// Healed is when the rows had been read again after a fault that loses row changes:
	// those from At to there may be missing. 0: none may.
	Healed int64 `json:"healed,omitempty"`
}

// Run says what kind of storm it was, and what has to be in it so that a green
// answer means something.
type Run struct {
	Seed     uint64              `json:"seed"`
	Workload string              `json:"workload"`
	Sinks    map[string]Kind     `json:"sinks"`
	Window   int                 `json:"window"` // most events in flight to one sink at a time
	Calm     int64               `json:"calm"`   // when the last fault was over
	Quiet    int64               `json:"quiet"`  // when every sink had its sentinel
	Floors   Floors              `json:"floors"`
	Labels   map[string]int      `json:"labels"` // how often each thing that must happen did
	Budget   Budget              `json:"budget"`
	Captured int64               `json:"captured,omitempty"` // since when row changes are captured
	Parked   map[string][]string `json:"parked,omitempty"`   // ids that onewrite set aside, a sink
}

// Kind says what may be asked of a sink.
type Kind struct {
	Once     bool `json:"once"`             // its consumer remembers ids in the transaction of the effect
	Ledger   bool `json:"ledger"`           // and keeps balances in it
	Ordered  bool `json:"ordered"`          // one stream in the order of the bus
	Rows     bool `json:"rows,omitempty"`   // it gets row changes and nothing else; the other sinks get none
	Window   int  `json:"window,omitempty"` // most events in flight to it at a time; 0: as the run says
	Distinct bool `json:"distinct"`         // it refuses repeats itself: none may arrive, but what the source read again
}

// Floors are the least a run has to have; 0 asks for nothing.
type Floors struct {
	Committed int            `json:"committed"` // transactions
	Aborted   float64        `json:"aborted"`   // as a part of all
	Keys      int            `json:"keys"`      // keys of at least KeyEvents events
	KeyEvents int            `json:"keyEvents"`
	Faults    map[string]int `json:"faults,omitempty"` // by kind, with proof
	Labels    []string       `json:"labels,omitempty"` // that must be above 0
	Counts    map[string]int `json:"counts,omitempty"` // how often labels must be hit

	Checkpoints int `json:"checkpoints,omitempty"` // of each ledger
}

// Budget bounds what a run may use; 0 does not.
type Budget struct {
	RSS      int64 `json:"rss,omitempty"`
	Outbox   int64 `json:"outbox,omitempty"`
	Folder   int64 `json:"folder,omitempty"`
	Retained int64 `json:"retained,omitempty"`
	Lag      int64 `json:"lag,omitempty"` // nanoseconds from Calm to Quiet

	Takeover int64 `json:"takeover,omitempty"` // nanoseconds, of 99 in a hundred
}

// Log writes a file of JSON lines. It may be used by many goroutines at once.
type Log struct {
	mu  sync.Mutex
	f   *os.File
	w   *bufio.Writer
	err error
}

// Create makes a file in the folder of a run; for the files with a * name is the
// sink's.
func Create(dir, file, sink string) (*Log, error) {
	f, err := os.Create(path(dir, file, sink))
	if err != nil {
		return nil, err
	}
	return &Log{f: f, w: bufio.NewWriterSize(f, 1<<16)}, nil
}

func path(dir, file, sink string) string {
	return filepath.Join(dir, string(bytes.ReplaceAll([]byte(file), []byte("*"), []byte(sink))))
}

// Add writes one record. An error is kept for Close.
func (l *Log) Add(record any) {
	line, err := json.Marshal(record)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		_, err = l.w.Write(append(line, '\n'))
	}
	if l.err == nil {
		l.err = err
	}
}

// Close makes the file durable.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.err, l.w.Flush(), l.f.Sync(), l.f.Close())
}

// Save writes what kind of run it was; it is written last.
func (r *Run) Save(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, RunFile), append(text, '\n'), 0o644)
}

// Load reads it back.
func Load(dir string) (*Run, error) {
	text, err := os.ReadFile(filepath.Join(dir, RunFile))
	if err != nil {
		return nil, fmt.Errorf("history: %w; the run did not end, start it again", err)
	}
	r := &Run{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("history: %s: %w", RunFile, err)
	}
	return r, nil
}

// each reads a file record by record. One that is not there has none.
func each[T any](dir, file, sink string, do func(*T)) error {
	f, err := os.Open(path(dir, file, sink))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		if err != nil && err != io.EOF {
			return fmt.Errorf("history: %w", err)
		}
		var record T
		if err := json.Unmarshal(line, &record); err != nil {
			return fmt.Errorf("history: %s:%d: %w", path("", file, sink), n, err)
		}
		do(&record)
	}
}

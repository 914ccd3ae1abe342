package dashboard

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/pipeline"
)

// Status is what GET /api/status answers and onewrite status --json prints.
type Status struct {
	Version      string                 `json:"version"`
	PID          int                    `json:"pid"`
	Started      time.Time              `json:"started"`
	Config       string                 `json:"config,omitempty"`
	Sources      map[string]Source      `json:"sources"`
	Destinations map[string]Destination `json:"destinations"`
	Bus          Bus                    `json:"bus"`
	Warnings     []string               `json:"warnings,omitempty"`
}

// Source is the state of one source.
type Source struct {
	State      pipeline.State `json:"state"`
	Position   string         `json:"position"`
	LagSeconds float64        `json:"lag_seconds"`
	// Events counts the events that the bus ever took from the source.
	Events uint64 `json:"events"`
	// Gap is the last gap met and the range it covers; null if none. Those that one opening
	// of the source met are joined by "; and ".
	Gap *string `json:"gap"`
	// GapAt is when that was met first; absent if there is none.
	GapAt     *time.Time `json:"gap_at,omitempty"`
	LastError string     `json:"last_error"`
	// Importing counts the rows that wait in the tables of import:, up to 10,000 of
	// each; absent without imports, and while the number is not known.
	Importing *uint64 `json:"importing,omitempty"`
	// Snapshots are those under way, by table; absent when there are none.
	Snapshots map[string]Snapshot `json:"snapshots,omitempty"`
	// Unknown: the bus has not told yet how many events it took. As JSON that is null then.
	Unknown bool `json:"unknown,omitempty"`
}

// MarshalJSON writes null for a number that is not known.
func (s Source) MarshalJSON() ([]byte, error) {
	type plain Source
	if !s.Unknown {
		return encode(plain(s))
	}
	return encode(struct {
		plain
		Events *uint64 `json:"events"`
	}{plain: plain(s)})
}

// Snapshot is how far the reading of a table's rows is. After a restart of the source it
// counts from where the reading went on.
type Snapshot struct {
	// Rows were read, of About, which is an estimate.
	Rows  int64 `json:"rows"`
	About int64 `json:"about"`
	// LeftSeconds is about how long it takes from now; absent while that is not known.
	LeftSeconds *float64 `json:"left_seconds,omitempty"`
}

// Destination is the state of one destination. Events handed to it ==
// delivered + pending + parked + filtered + skipped.
type Destination struct {
	State      pipeline.State `json:"state"`
	Position   string         `json:"position"`
	Epoch      uint64         `json:"epoch"`
	Delivered  uint64         `json:"delivered"`
	Pending    uint64         `json:"pending"`
	Parked     uint64         `json:"parked"`
	Filtered   uint64         `json:"filtered"`
	Skipped    uint64         `json:"skipped"`
	LagSeconds float64        `json:"lag_seconds"`
	LastError  string         `json:"last_error"`
	// Unknown: the bus has not told the numbers yet, or they are those of another copy.
	// As JSON they are null then.
	Unknown bool `json:"unknown,omitempty"`
}

// MarshalJSON writes null for numbers that are not known.
func (d Destination) MarshalJSON() ([]byte, error) {
	type plain Destination
	if !d.Unknown {
		return encode(plain(d))
	}
	return encode(struct {
		plain
		Delivered  *uint64  `json:"delivered"`
		Pending    *uint64  `json:"pending"`
		Parked     *uint64  `json:"parked"`
		Filtered   *uint64  `json:"filtered"`
		Skipped    *uint64  `json:"skipped"`
		LagSeconds *float64 `json:"lag_seconds"`
	}{plain: plain(d)})
}

// encode leaves <, > and & as they are, as the answers do.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

// Bus is the state of the middle.
type Bus struct {
	ID       string `json:"id"`
	Embedded bool   `json:"embedded"`
	Bytes    int64  `json:"bytes"`
	Messages uint64 `json:"messages"`
	MaxBytes int64  `json:"max_bytes"`
	// LastError says since when the bus does not answer, and why; the numbers are those of
	// then.
	LastError string `json:"last_error,omitempty"`
	// Unknown: the bus has not told what it holds yet. As JSON that is null then.
	Unknown bool `json:"unknown,omitempty"`
}

// MarshalJSON writes null for numbers that are not known.
func (b Bus) MarshalJSON() ([]byte, error) {
	type plain Bus
	if !b.Unknown {
		return encode(plain(b))
	}
	return encode(struct {
		plain
		Bytes    *int64  `json:"bytes"`
		Messages *uint64 `json:"messages"`
	}{plain: plain(b)})
}

// Reload says what a reload of the configuration did.
type Reload struct {
	Added   []string `json:"added"`
	Removed []string `json:"removed"`
	Changed []string `json:"changed"`
	// Started names the destinations that had stopped and were started again.
	Started []string `json:"started"`
	// Forgotten names those that were out of the file before, and were forgotten now.
	Forgotten []string `json:"forgotten"`
	// Restart names the settings that changed but need a restart.
	Restart  []string `json:"restart_needed"`
	Warnings []string `json:"warnings"`
	// Dropped says what the places that were given up had, by destination; one is absent if
	// that is not known.
	Dropped map[string]Dropped `json:"dropped,omitempty"`
}

// Dropped counts the events that went with a place on the bus.
type Dropped struct {
	Pending uint64 `json:"pending"`
	Parked  uint64 `json:"parked"`
}

// Parked is a parked event as the API shows it.
type Parked struct {
	Ref      uint64    `json:"ref"`
	ID       string    `json:"id"`
	Source   string    `json:"source"`
	Topic    string    `json:"topic"`
	Type     string    `json:"type"`
	Key      string    `json:"key,omitempty"`
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts"`
	Holds    bool      `json:"holds_key"`
	At       time.Time `json:"parked_at"`
	// RefusedAt is when it was tried again and refused; absent if it was not.
	RefusedAt *time.Time `json:"refused_at,omitempty"`
	// Event is the CloudEvents JSON of the event; only when one is asked for.
	Event RawJSON `json:"event,omitempty"`
	// Payload is its data byte for byte, which JSON text is not when it is written again;
	// only when one is asked for.
	Payload []byte `json:"payload,omitempty"`
}

// RawJSON is JSON text that is passed on as it is.
type RawJSON []byte

// MarshalJSON returns the text itself.
func (r RawJSON) MarshalJSON() ([]byte, error) { return r, nil }

// UnmarshalJSON keeps a copy of the text.
func (r *RawJSON) UnmarshalJSON(b []byte) error {
	*r = append((*r)[:0], b...)
	return nil
}

// Control is the running instance as the API sees it; package relay is it.
// Errors are for people and end with the cure.
type Control interface {
	// Status returns a snapshot.
	Status(ctx context.Context) Status
	// NotReady names what keeps the instance from being ready; empty when it is.
	NotReady(ctx context.Context) []string
	// Reload reads the configuration again; forget names destinations that may
	// go although they have pending events.
	Reload(ctx context.Context, forget []string) (Reload, error)
	// Parked lists a destination's parked events with a ref greater than after.
	Parked(ctx context.Context, destination string, after uint64, limit int) ([]onewrite.Parked, error)
	// Retry delivers a parked event and what waits behind it; ref 0 is all. data, if not
	// nil, is the payload that it gets this time.
	Retry(ctx context.Context, destination string, ref uint64, data []byte) error
	// Skip forgets a parked event undelivered.
	Skip(ctx context.Context, destination string, ref uint64) error
	// Replay delivers again what the bus stored since from.
	Replay(ctx context.Context, destination string, from onewrite.From) error
	// Tail calls show for each event on the bus from now on, or since from, until
	// ctx ends or show fails.
	Tail(ctx context.Context, topics []string, from onewrite.From, show func(onewrite.Message) error) error
}

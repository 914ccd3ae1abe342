package search

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/onewrite/onewrite"
)

// state is what a destination remembers of its sources, in one document of the index
// onewrite-state. It is written before what depends on it, and compared and swapped:
// of two copies neither overwrites what the other has.
type state struct {
	Tracks map[string]*track `json:"tracks"`

	path    string
	seq     int64 // of the stored document
	term    int64
	exists  bool
	changed bool // since it was stored
	must    bool // be stored before anything is written
	saved   time.Time
}

// saveEvery is how often what is seen is stored, where nothing asks for it sooner.
const saveEvery = time.Second

func newState(c *Config) *state {
	// The same name with another index is another numbering of versions.
	return &state{Tracks: map[string]*track{}, path: "/" + stateIndex + "/_doc/" + url.PathEscape(c.Destination+"-"+digest(c.Index + "\n" + c.ID)[:12])}
}

// stored is the answer to a GET or PUT of a document.
type stored struct {
	Found  bool            `json:"found"`
	Seq    int64           `json:"_seq_no"`
	Term   int64           `json:"_primary_term"`
	Source json.RawMessage `json:"_source"`
}

// load takes over what is stored.
func (st *state) load(ctx context.Context, c *client) error {
	a, err := c.call(ctx, http.MethodGet, st.path, nil)
	if err != nil {
		return err
	}
	if a.status == http.StatusNotFound && len(a.body) > 0 && a.body[0] == '{' { // the index or the document; not a stranger's page
		st.exists = false
		return nil
	}
	if !a.ok() {
		return c.refusal(a, 0)
	}
	var got stored
	var kept state
	err = json.Unmarshal(a.body, &got)
	if err == nil {
		err = json.Unmarshal(got.Source, &kept)
	}
	if err != nil {
		return fmt.Errorf("search: what is stored at %s%s cannot be read: %w; delete it: curl -sS -X DELETE %[1]s%[2]s", c.origin(), st.path, err)
	}
	st.seq, st.term, st.exists = got.Seq, got.Term, true
	for name, t := range kept.Tracks {
		switch {
		case t == nil || len(t.Eras) == 0:
		case st.Tracks[name] == nil:
			st.Tracks[name] = t
		default:
			st.Tracks[name].merge(t)
		}
	}
	return nil
}

// errRaced: another copy has stored something meanwhile.
var errRaced = errors.New("search: another copy writes to " + stateIndex)

func (st *state) save(ctx context.Context, c *client, now time.Time) error {
	body, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("search: %w", err)
	}
	path := st.path + "?op_type=create"
	if st.exists {
		path = fmt.Sprintf("%s?if_seq_no=%d&if_primary_term=%d", st.path, st.seq, st.term)
	} else if err := st.makeIndex(ctx, c); err != nil {
		return err
	}
	a, err := c.call(ctx, http.MethodPut, path, body)
	if err != nil {
		return err
	}
	if a.status == http.StatusConflict {
		return errRaced
	}
	if !a.ok() {
		return c.refusal(a, 0)
	}
	var got stored
	if err := json.Unmarshal(a.body, &got); err != nil {
		return fmt.Errorf("search: an answer of %s cannot be read: %w", c.host(), err)
	}
	st.seq, st.term, st.exists, st.changed, st.must, st.saved = got.Seq, got.Term, true, false, false, now
	return nil
}

// makeIndex makes the index as it has to be: nothing in it is searched, and a replica
// comes with a second node. One that is there is as good.
func (st *state) makeIndex(ctx context.Context, c *client) error {
	a, err := c.call(ctx, http.MethodPut, "/"+stateIndex, []byte(`{"settings":{"number_of_shards":1,"auto_expand_replicas":"0-1"},"mappings":{"dynamic":false}}`))
	if err != nil {
		return err
	}
	if !a.ok() && !problemOf(a).has("resource_already_exists_exception") {
		return c.refusal(a, 0)
	}
	return nil
}

// number gives the ops their versions. What they depend on is stored when it returns.
func (s *Sink) number(ctx context.Context, ops []op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.c.now()
	for range 5 {
		for i := range ops {
			must, err := s.see(&ops[i], now)
			s.state.must = s.state.must || must
			if err != nil {
				return err
			}
		}
		if !s.state.must && (!s.state.changed || now.Sub(s.state.saved) < saveEvery) {
			return nil
		}
		err := s.state.save(ctx, s.http, now)
		if !errors.Is(err, errRaced) {
			return err
		}
		if err := s.state.load(ctx, s.http); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w; stop one of the two, or give it another name", errRaced)
}

// see notes an event and gives it its version; s.mu is held.
func (s *Sink) see(o *op, now time.Time) (store bool, err error) {
	numbering, n, ok := place(o.event)
	if !ok {
		return false, nil // no version: the last that is written stays
	}
	o.track = trackName(o.event, numbering)
	t := s.state.Tracks[o.track]
	if t == nil {
		t = &track{}
		s.state.Tracks[o.track] = t
	}
	before, eras := *t, len(t.Eras)
	fresh, store := t.see(numbering, n, o.event.Time, now)
	s.state.changed = s.state.changed || fresh || store || before.High != t.High || before.At != t.At
	if fresh {
		s.c.Logger.Warn("the source counts from below again while its time goes on, as after a restore: its documents get versions above all of before; rows that are in the index and no longer in the database stay, unless it is filled anew",
			"source", o.event.Source, "place", n, "was", before.High, "event", o.event.ID)
	}
	if o.version = t.version(n, o.event.Time); o.version <= 0 || len(t.Eras) > maxEras {
		t.Eras = t.Eras[:max(1, eras)]
		return false, fmt.Errorf("search: source %s has counted from below %d times; are there two of this name? Give each its own, or begin anew with another index: and curl -sS -X DELETE %s%s",
			o.event.Source, eras, s.http.origin(), s.state.path)
	}
	return store, nil
}

// older reports whether a document's version can be that of an event of the same
// track; if not, whoever wrote it is somebody else.
func (s *Sink) older(ctx context.Context, o *op, version int64) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.Tracks[o.track]
	if t == nil {
		return false, nil
	}
	if t.gave(version) {
		return true, nil
	}
	if err := s.state.load(ctx, s.http); err != nil { // another copy may have been ahead
		return false, err
	}
	return s.state.Tracks[o.track].gave(version), nil
}

// foreign is the error of a document whose version no event of the source gave it.
func (s *Sink) foreign(o *op, version int64) error {
	return answered{fmt.Errorf("search: document %q of index %s has version %d, which no event of source %s up to %s can have given it: somebody else writes it, or what onewrite knew of its versions is lost; give the source an index of its own, or delete the document: curl -sS -X DELETE '%s/%s/_doc/%s'",
		clip(o.id), o.index, version, o.event.Source, o.event.ID, s.http.origin(), o.index, url.PathEscape(o.id))}
}

var _ onewrite.Sink = (*Sink)(nil)

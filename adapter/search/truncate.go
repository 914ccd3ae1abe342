package search

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// page is how many documents a TRUNCATE deletes at once.
const page = 1000

// hits is a page of a search.
type hits struct {
	Scroll string `json:"_scroll_id"`
	Failed struct {
		Shards int `json:"failed"`
	} `json:"_shards"`
	Hits struct {
		Hits []struct {
			Index string `json:"_index"`
			ID    string `json:"_id"`
		} `json:"hits"`
	} `json:"hits"`
}

// truncate deletes all documents of an index that are older than the event. The
// server's delete by query does not know versions; so they are listed, and each is
// deleted with the version of the event, which those that are newer outlive.
func (s *Sink) truncate(ctx context.Context, o *op) error {
	a, err := s.http.call(ctx, http.MethodPost, "/"+o.index+"/_refresh", nil)
	if err != nil {
		return err
	}
	if a.status == http.StatusNotFound && problemOf(a).has("index_not_found_exception") {
		return nil // nothing is there
	}
	if !a.ok() {
		return s.http.refusal(a, 0)
	}
	got, err := s.page(ctx, "/"+o.index+"/_search?scroll=5m", fmt.Appendf(nil, `{"size":%d,"_source":false,"sort":["_doc"],"query":{"match_all":{}}}`, page))
	if err != nil {
		return err
	}
	scroll := got.Scroll
	defer func() { // the server forgets it by itself, later
		body, _ := json.Marshal(map[string]string{"scroll_id": scroll})
		_, _ = s.http.call(ctx, http.MethodDelete, "/_search/scroll", body)
	}()
	for len(got.Hits.Hits) > 0 {
		ops := make([]op, len(got.Hits.Hits))
		for i, h := range got.Hits.Hits {
			ops[i] = op{event: o.event, kind: del, index: h.Index, id: h.ID, track: o.track, version: o.version}
		}
		a, items, err := s.exchange(ctx, ops)
		if err != nil {
			return err
		}
		for i := range items {
			if items[i].Status == http.StatusConflict && o.version > 0 {
				continue // newer
			}
			if err := s.judge(ctx, a, &ops[i], &items[i]); err != nil {
				return err
			}
		}
		body, err := json.Marshal(map[string]string{"scroll": "5m", "scroll_id": got.Scroll})
		if err != nil {
			return fmt.Errorf("search: %w", err)
		}
		if got, err = s.page(ctx, "/_search/scroll", body); err != nil {
			return err
		}
		scroll = got.Scroll
	}
	return nil
}

// page asks for a page; one that lacks the answer of a shard is none.
func (s *Sink) page(ctx context.Context, path string, body []byte) (*hits, error) {
	a, err := s.http.call(ctx, http.MethodPost, path, body)
	if err != nil {
		return nil, err
	}
	got := &hits{}
	switch {
	case !a.ok():
		p := problemOf(a)
		return nil, paused(a, fmt.Errorf("search: %d of %s to a search for what TRUNCATE deletes: %s; look at it: curl -sS %s/_cat/shards", a.status, s.http.host(), p, s.http.origin()))
	case json.Unmarshal(a.body, got) != nil:
		return nil, fmt.Errorf("search: an answer of %s to a search cannot be read", s.http.host())
	case got.Failed.Shards > 0:
		return nil, fmt.Errorf("search: %d shards of %s did not answer a search for what TRUNCATE deletes; look at them: curl -sS '%s/_cat/shards?v'", got.Failed.Shards, s.http.host(), s.http.origin())
	}
	return got, nil
}

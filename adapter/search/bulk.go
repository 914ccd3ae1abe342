package search

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// item is the answer to one op.
type item struct {
	Status int      `json:"status"`
	Error  *problem `json:"error"`
}

// append appends the lines of an op.
func (o *op) append(b []byte) []byte {
	b = append(b, `{"`...)
	b = append(b, o.kind...)
	b = append(b, `":{"_index":`...)
	b = cloudevents.AppendString(b, o.index)
	b = append(b, `,"_id":`...)
	b = cloudevents.AppendString(b, o.id)
	if o.version > 0 {
		// Greater or equal: changes beyond the last number of a large transaction have
		// one version, and a repeat of what is there is no conflict to look into.
		b = append(b, `,"version":`...)
		b = strconv.AppendInt(b, o.version, 10)
		b = append(b, `,"version_type":"external_gte"`...)
	}
	b = append(b, "}}\n"...)
	if o.kind == put {
		b = append(append(b, o.doc...), '\n')
	}
	return b
}

// exchange sends ops and returns the answers, one for each.
func (s *Sink) exchange(ctx context.Context, ops []op) (*answer, []item, error) {
	size := 0
	for i := range ops {
		size += len(ops[i].doc) + len(ops[i].id) + len(ops[i].index) + 128
	}
	body := make([]byte, 0, size)
	for i := range ops {
		body = ops[i].append(body)
	}
	a, err := s.http.call(ctx, http.MethodPost, "/_bulk?filter_path=errors,items.*.status,items.*.error", body)
	if err != nil {
		return nil, nil, err
	}
	if !a.ok() {
		return nil, nil, s.http.refusal(a, len(ops))
	}
	var got struct {
		Items []map[string]item `json:"items"`
	}
	if err := json.Unmarshal(a.body, &got); err != nil || len(got.Items) != len(ops) {
		return nil, nil, fmt.Errorf("search: %s answers to %d documents with %q; set url to the address of Elasticsearch or OpenSearch", s.http.host(), len(ops), words(string(a.body[:min(len(a.body), maxWords)])))
	}
	items := make([]item, len(ops))
	for i, m := range got.Items {
		if len(m) != 1 {
			return nil, nil, fmt.Errorf("search: %s gives no answer about document %q of %s", s.http.host(), clip(ops[i].id), ops[i].index)
		}
		for _, it := range m {
			items[i] = it
		}
	}
	return a, items, nil
}

// bulk sends ops, no two of one document, and returns how many leading ones are
// durable. Those behind the first that failed may be durable too, and come again.
func (s *Sink) bulk(ctx context.Context, ops []op) (int, error) {
	a, items, err := s.exchange(ctx, ops)
	if err != nil {
		return 0, err
	}
	for i := range items {
		if err := s.judge(ctx, a, &ops[i], &items[i]); err != nil {
			return i, err
		}
	}
	return len(ops), nil
}

// judge returns nil if an op is durable.
func (s *Sink) judge(ctx context.Context, a *answer, o *op, it *item) error {
	p := it.Error
	switch {
	case it.Status/100 == 2 && p == nil:
		return nil
	case o.kind == del && it.Status == http.StatusNotFound && (p == nil || p.has("index_not_found_exception")):
		return nil // it is not there
	case p == nil:
		p = &problem{Type: http.StatusText(it.Status)}
	}
	if it.Status != http.StatusConflict || o.version == 0 {
		return s.http.failed(a, o, it.Status, p)
	}
	version, ok := conflict(p.Reason)
	if !ok {
		return answered{fmt.Errorf("search: document %q of index %s: a conflict that says no version: %s; look into the server's log", clip(o.id), o.index, p)}
	}
	older, err := s.older(ctx, o, version)
	if err != nil || older {
		return err
	}
	return s.foreign(o, version)
}

// conflict reads the document's version from the words of a conflict.
func conflict(reason string) (int64, bool) {
	_, text, ok := strings.Cut(reason, "current version [")
	text, _, closed := strings.Cut(text, "]")
	n, err := strconv.ParseInt(text, 10, 64)
	return n, ok && closed && err == nil
}

// fillIn completes rows with large values that their update did not touch and the log
// does not carry, from the documents that are there. It returns how many leading ops
// are ready, and the error of the one behind them.
func (s *Sink) fillIn(ctx context.Context, ops []op) (int, error) {
	type doc struct {
		Index string `json:"_index"`
		ID    string `json:"_id"`
	}
	var ask struct {
		Docs []doc `json:"docs"`
	}
	var which []int
	for i := range ops {
		if len(ops[i].missing) > 0 {
			which, ask.Docs = append(which, i), append(ask.Docs, doc{ops[i].index, ops[i].id})
		}
	}
	if len(which) == 0 {
		return len(ops), nil
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return 0, fmt.Errorf("search: %w", err)
	}
	a, err := s.http.call(ctx, http.MethodPost, "/_mget", body)
	if err != nil {
		return 0, err
	}
	if !a.ok() {
		return 0, s.http.refusal(a, 0)
	}
	var got struct {
		Docs []struct {
			Found   bool            `json:"found"`
			Version int64           `json:"_version"`
			Source  json.RawMessage `json:"_source"`
			Error   *problem        `json:"error"`
		} `json:"docs"`
	}
	if err := json.Unmarshal(a.body, &got); err != nil || len(got.Docs) != len(which) {
		return 0, fmt.Errorf("search: an answer of %s to _mget cannot be read", s.http.host())
	}
	for n, i := range which {
		o, d := &ops[i], &got.Docs[n]
		if d.Error != nil && !d.Error.has("index_not_found_exception") {
			return i, s.http.failed(a, o, http.StatusInternalServerError, d.Error)
		}
		if d.Found && o.version > 0 && d.Version > o.version {
			continue // it is newer: the write will say so
		}
		lacks := o.missing[0]
		if d.Found {
			if lacks, err = o.complete(d.Source); err != nil {
				return i, fmt.Errorf("search: %w", err)
			}
		} else if gone, err := s.gone(ctx, o); err != nil || gone {
			if err != nil {
				return i, err
			}
			continue
		}
		if lacks != "" {
			return i, fmt.Errorf("search: event %s does not carry column %s, which its update did not touch, and document %q of index %s has none: %w; ALTER TABLE %s REPLICA IDENTITY FULL, and fill the index: onewrite migrate --snapshot %[6]s",
				o.event.ID, lacks, clip(o.id), o.index, onewrite.ErrRejected, o.event.Topic)
		}
	}
	return len(ops), nil
}

// gone reports whether a document that is not there was deleted by a later event: then
// the server still knows the version of that, and refuses to delete with a smaller one.
func (s *Sink) gone(ctx context.Context, o *op) (bool, error) {
	if o.version < 2 {
		return false, nil
	}
	probe := op{event: o.event, kind: del, index: o.index, id: o.id, track: o.track, version: o.version - 1}
	a, items, err := s.exchange(ctx, []op{probe})
	if err != nil {
		return false, err
	}
	if items[0].Status == http.StatusConflict {
		return true, nil
	}
	return false, s.judge(ctx, a, &probe, &items[0])
}

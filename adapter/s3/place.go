package s3

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/onewrite/onewrite"
)

const jsonType = "application/json"

// record is the object that a commit ends with.
type record struct {
	Version int `json:"version"`
	// Owner is random, so that no two records are alike, nor their ETags.
	Owner string `json:"owner"`
	// History is the folder of the commits: another one if the record was lost.
	History string `json:"history"`
	// Epoch counts writers, Commit counts commits.
	Epoch  uint64 `json:"epoch"`
	Commit uint64 `json:"commit"`
	// Place is what the delivery keeps, in base64; absent before the first commit.
	Place *[]byte `json:"place,omitempty"`
}

// commit is the list of what a commit adds.
type commit struct {
	Version int         `json:"version"`
	Commit  uint64      `json:"commit"`
	Epoch   uint64      `json:"epoch"`
	Objects []committed `json:"objects"`
}

type committed struct {
	Key    string `json:"key"`
	Events int    `json:"events"`
	Log    string `json:"log"`
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
}

// place is what a writer knows of its record.
type place struct {
	turn chan struct{} // holds one token; who has it owns all below
	now  record
	etag string // of the record as this writer left it; empty: not its own
}

func (s *Sink) recordKey() string { return s.root + ".onewrite/" + s.destination + ".json" }

func (s *Sink) commitKey(history string, commit, epoch uint64) string {
	return fmt.Sprintf("%s.onewrite/%s/%s/%016d-%08d.json", s.root, s.destination, history, commit, epoch)
}

func (s *Sink) take(ctx context.Context) (func(), error) {
	select {
	case <-s.place.turn:
		return func() { s.place.turn <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("s3: %w", context.Cause(ctx))
	}
}

// Place takes the destination over: it raises the epoch in the record, and looks
// whether the store heeds conditions. See [onewrite.Placed].
func (s *Sink) Place(ctx context.Context) ([]byte, error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	back, err := s.take(ctx)
	if err != nil {
		return nil, err
	}
	defer back()
	s.place.etag = ""
	next := record{Version: 1, History: rand.Text()}
	condition := ifAbsent
	text, etag, err := s.get(ctx, s.recordKey())
	switch {
	case errors.Is(err, errNoKey):
	case err != nil:
		return nil, err
	default:
		next = record{}
		if err := json.Unmarshal(text, &next); err != nil || next.Version != 1 || next.History == "" {
			return nil, fmt.Errorf("s3: %s cannot be read: was it written by a newer onewrite, or by another program? Give the destination another name", s.recordKey())
		}
		condition = etag
	}
	next.Epoch++
	next.Owner = rand.Text()
	if text, err = json.Marshal(next); err != nil {
		return nil, fmt.Errorf("s3: %w", err)
	}
	etag, err = s.put(ctx, s.recordKey(), jsonType, text, condition)
	if errors.Is(err, errPrecondition) || errors.Is(err, errNoKey) {
		return nil, errors.New("s3: another copy takes the destination over at the same moment; if that goes on, see who else writes " + s.recordKey())
	}
	if err != nil {
		return nil, err
	}
	// The same bytes again: a store that takes no notice of the condition changes
	// nothing by it.
	switch _, err := s.put(ctx, s.recordKey(), jsonType, text, ifAbsent); {
	case err == nil:
		return nil, errors.New("s3: the store takes no notice of conditions (If-None-Match), so two copies could overwrite each other; use a store that has conditional writes, in its newest version")
	case !errors.Is(err, errPrecondition):
		return nil, err
	}
	s.place.now, s.place.etag = next, etag
	if next.Epoch > 1 {
		s.log.Debug("took the destination over", "epoch", next.Epoch, "commit", next.Commit)
	}
	if next.Place == nil {
		return nil, nil
	}
	return append([]byte{}, *next.Place...), nil
}

// WriteAt makes objects of the messages, and then a commit of them with the record; see
// [onewrite.Placed], and the package for the order. After an error of the store
// the sink can only be closed: the next one asks the record.
func (s *Sink) WriteAt(ctx context.Context, messages []onewrite.Message, placed []byte) (bad int, err error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	back, err := s.take(ctx)
	if err != nil {
		return 0, err
	}
	defer back()
	objects, bad, err := s.objects(messages)
	if err != nil {
		return bad, err
	}
	p := &s.place
	if p.etag == "" {
		return 0, errors.New("s3: the place of the destination is not known, or no longer; it has to be asked for first")
	}
	etag := p.etag
	p.etag = "" // until all is well
	next := p.now
	next.Commit++
	next.Place = &placed
	if placed == nil {
		next.Place = &[]byte{}
	}
	list := commit{Version: 1, Commit: next.Commit, Epoch: next.Epoch, Objects: []committed{}}
	for _, o := range objects {
		list.Objects = append(list.Objects, committed{o.key, o.events, o.log, o.first, o.last})
	}
	if etag, err = s.commit(ctx, list, objects, next, etag); err != nil {
		return 0, blame(err, len(messages))
	}
	p.now, p.etag = next, etag
	return 0, nil
}

// commit does the three steps.
func (s *Sink) commit(ctx context.Context, list commit, objects []object, next record, etag string) (string, error) {
	listText, err := json.Marshal(list)
	if err != nil {
		return "", fmt.Errorf("s3: %w", err)
	}
	recordText, err := json.Marshal(next)
	if err != nil {
		return "", fmt.Errorf("s3: %w", err)
	}
	key := s.commitKey(next.History, next.Commit, next.Epoch)
	if _, err := s.put(ctx, key, jsonType, listText, ifAbsent); errors.Is(err, errPrecondition) {
		return "", fmt.Errorf("s3: %s is there already: who wrote it? Give the destination another name", key)
	} else if err != nil {
		return "", err
	}
	if err := s.putAll(ctx, objects); err != nil {
		return "", err
	}
	etag, err = s.put(ctx, s.recordKey(), jsonType, recordText, etag)
	switch {
	case errors.Is(err, errPrecondition):
		return "", fmt.Errorf("s3: %s was changed by a newer copy: %w", s.recordKey(), onewrite.ErrFenced)
	case errors.Is(err, errNoKey):
		return "", errors.New("s3: " + s.recordKey() + " was removed; restore it, if the bucket keeps versions: aws s3api list-object-versions")
	}
	return etag, err
}

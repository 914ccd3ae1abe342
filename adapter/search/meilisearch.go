package search

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/diagnosis"
)

// MeilisearchID is the attribute that is the primary key of the documents of a
// Meilisearch: ids there are letters, digits, - and _ only, so no column of a row does.
const MeilisearchID = "onewrite_id"

const (
	meiliMaxID    = 511 // bytes, by the server
	meiliMaxIndex = 400 // bytes, by the server
	// pollMin and pollMax are the pauses between two looks at a task.
	pollMin, pollMax = 5 * time.Millisecond, 250 * time.Millisecond
)

// Meilisearch writes documents to one Meilisearch. Its methods may be called by several
// goroutines at once; writes take turns, so that tasks are in the order of the events.
//
// A document counts as durable when the task that writes it has succeeded. There are no
// versions: an event that comes again after a newer one is written over it, and stands
// there until the newer one comes again too.
type Meilisearch struct {
	plan *Sink // what an event does; it never connects
	http *client
	life life
	turn chan struct{} // holds one token

}

// NewMeilisearch looks for the first address that answers. Config's User and Password
// mean nothing to a Meilisearch; APIKey is the key as it is.
func NewMeilisearch(ctx context.Context, c Config) (*Meilisearch, error) {
	c.meili = true
	addresses, err := c.prepare()
	if err != nil {
		return nil, err
	}
	m := &Meilisearch{http: newClient(&c, addresses), turn: make(chan struct{}, 1)}
	m.plan = &Sink{c: c, http: m.http, index: parseTemplate(c.Index), id: parseTemplate(c.ID)}
	m.turn <- struct{}{}
	var errs []error
	for i := range addresses {
		m.http.at = i
		if err := m.healthy(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		m.life.begin()
		return m, nil
	}
	m.http.close()
	return nil, errors.Join(errs...)
}

// healthy asks for the health, which needs no key, and for the tasks, which need the key.
func (m *Meilisearch) healthy(ctx context.Context) error {
	for _, path := range []string{"/health", "/tasks?limit=1"} {
		a, err := m.http.call(ctx, http.MethodGet, path, nil)
		if err != nil {
			return err
		}
		if !a.ok() {
			return m.refusal(a, 0)
		}
		var got struct {
			Status  string          `json:"status"`
			Results json.RawMessage `json:"results"`
		}
		if json.Unmarshal(a.body, &got) != nil || got.Status == "" && got.Results == nil {
			return fmt.Errorf("search: %s answers to %s as no Meilisearch does; set url to the address of one", m.http.host(), path)
		}
	}
	return nil
}

// Close ends the writes under way and closes the connections. It may be called again.
func (m *Meilisearch) Close() error {
	m.life.end()
	m.http.close()
	return nil
}

// Write writes the documents of the events and waits for the tasks; see [onewrite.Sink].
func (m *Meilisearch) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	ctx, leave, err := m.life.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	if ctx.Err() == nil {
		select {
		case <-m.turn:
			defer func() { m.turn <- struct{}{} }()
		case <-ctx.Done():
		}
	}
	done := 0
	for done < len(events) {
		if err := ctx.Err(); err != nil {
			return done, fmt.Errorf("search: %w", err)
		}
		ops, bad := m.plan.window(events[done:])
		n, err := m.send(ctx, ops)
		if done += n; err != nil {
			return done, err
		}
		if bad != nil {
			return done, bad
		}
	}
	return done, nil
}

// work is one request, and the task that it became.
type work struct {
	method, path string
	body         bytes.Buffer
	ops          []int // which of the window
	task         int64
	err          error
}

// send makes requests of ops, no two of which are about one document, waits for
// their tasks and returns how many leading ops are durable. Those behind the first that
// failed may be durable too, and come again.
func (m *Meilisearch) send(ctx context.Context, ops []op) (int, error) {
	list, sent := requests(ops), 0
	for _, w := range list {
		if w.err = m.enqueue(ctx, w); w.err != nil {
			break // what is behind it was not sent
		}
		sent++
	}
	failed := make([]error, len(ops))
	for i, w := range list {
		if i > sent {
			w.err = errNotSent
		} else if i < sent {
			w.err = m.await(ctx, w, &ops[w.ops[0]])
		}
		for _, n := range w.ops {
			failed[n] = w.err
		}
	}
	for n, err := range failed {
		if errors.Is(err, errNotSent) {
			return n, list[sent].err // what kept it from being sent; it says more
		}
		if err != nil {
			return n, err
		}
	}
	return len(ops), nil
}

var errNotSent = errors.New("search: not sent")

// requests puts ops of one kind and one index into one request.
func requests(ops []op) (list []*work) {
	at := map[string]*work{}
	for i := range ops {
		o := &ops[i]
		method, path := http.MethodPost, "/indexes/"+meiliIndex(o.index)+"/documents"
		id := meiliID(o.id)
		item, _ := json.Marshal(id)
		switch o.kind {
		case empties:
			method, item = http.MethodDelete, nil
		case del:
			path += "/delete-batch"
		default:
			path += "?primaryKey=" + MeilisearchID
			if len(o.missing) > 0 {
				method = http.MethodPut // adds to the document that is there, by attribute
			}
			item = withID(o.doc, id)
		}
		w := at[method+path]
		if w == nil {
			w = &work{method: method, path: path}
			at[method+path] = w
			list = append(list, w)
		}
		w.ops = append(w.ops, i)
		if item != nil {
			w.body.WriteString(map[bool]string{true: "[", false: ","}[w.body.Len() == 0])
			w.body.Write(item)
		}
	}
	for _, w := range list {
		if w.body.Len() > 0 {
			w.body.WriteByte(']')
		}
	}
	return list
}

// withID puts the primary key behind a document's attributes, so that it counts if the
// document has one of that name.
func withID(doc []byte, id string) []byte {
	inner := bytes.TrimSpace(doc)
	inner = bytes.TrimSpace(inner[1 : len(inner)-1])
	out := append([]byte("{"), inner...)
	if len(inner) > 0 {
		out = append(out, ',')
	}
	return append(append(append(out, `"`+MeilisearchID+`":"`...), id...), `"}`...) // of plain characters
}

// enqueue sends a request. Without an error the server has put it into its queue.
func (m *Meilisearch) enqueue(ctx context.Context, w *work) error {
	a, err := m.http.call(ctx, w.method, w.path, w.body.Bytes())
	if err != nil {
		return err
	}
	if !a.ok() {
		return m.refusal(a, len(w.ops))
	}
	var got struct {
		Task *int64 `json:"taskUid"`
	}
	if json.Unmarshal(a.body, &got) != nil || got.Task == nil {
		return fmt.Errorf("search: %s answers to documents with no task: %q; set url to the address of a Meilisearch", m.http.host(), words(string(a.body[:min(len(a.body), maxWords)])))
	}
	w.task = *got.Task
	return nil
}

// meiliProblem is an error as the server tells it.
type meiliProblem struct {
	Message string `json:"message"`
	Code    string `json:"code"`
	Type    string `json:"type"`
}

func (p *meiliProblem) String() string { return p.Code + ": " + words(p.Message) }

// await waits until a task has ended. It waits as long as the server says that the task
// waits too: to send it again would only make the queue longer.
func (m *Meilisearch) await(ctx context.Context, w *work, first *op) error {
	for pause := pollMin; ; pause = min(2*pause, pollMax) {
		a, err := m.http.call(ctx, http.MethodGet, fmt.Sprintf("/tasks/%d", w.task), nil)
		if err != nil {
			return err
		}
		if !a.ok() {
			return m.refusal(a, 0)
		}
		var got struct {
			Status string        `json:"status"`
			Error  *meiliProblem `json:"error"`
		}
		if err := json.Unmarshal(a.body, &got); err != nil {
			return fmt.Errorf("search: the answer of %s about task %d cannot be read: %w", m.http.host(), w.task, err)
		}
		switch got.Status {
		case "succeeded":
			return nil
		case "failed", "canceled":
			return m.failed(w, first, got.Status, got.Error)
		case "enqueued", "processing":
		default:
			return fmt.Errorf("search: %s says %q of task %d, which is no state that onewrite knows; it may be newer", m.http.host(), got.Status, w.task)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("search: %w", ctx.Err())
		case <-timer.C:
		}
	}
}

// failed is the error of a task. A task of several documents fails as a whole, and does
// not say of which; then they are tried alone.
func (m *Meilisearch) failed(w *work, first *op, status string, p *meiliProblem) error {
	if p == nil {
		p = &meiliProblem{Code: status}
	}
	what := fmt.Sprintf("search: task %d of %s, document %q of index %s", w.task, m.http.host(), clip(meiliID(first.id)), meiliIndex(first.index))
	look := fmt.Sprintf("; look at it: curl -sS %s/tasks/%d", m.http.origin(), w.task)
	switch {
	case first.kind != put && p.Code == "index_not_found":
		return nil // it is not there
	case p.Code == "index_primary_key_already_exists" || p.Code == "index_primary_key_multiple_candidates_found":
		return answered{fmt.Errorf("%s: the index has another primary key: %s; write another index, or remove this one: curl -sS -X DELETE %s/indexes/%s", what, p, m.http.origin(), meiliIndex(first.index))}
	case p.Type == "system": // no room, no files: of all documents
		return fmt.Errorf("%s: %s; free space at the server%s", what, p, look)
	case p.Type == "invalid_request" && len(w.ops) == 1:
		return fmt.Errorf("%s (event %s): %w: %s%s", what, first.event.ID, onewrite.ErrRejected, p, look)
	}
	return answered{fmt.Errorf("%s: %s: %s%s", what, status, p, look)}
}

// refusal is an error about a whole request that carried so many documents.
func (m *Meilisearch) refusal(a *answer, documents int) error {
	p := &meiliProblem{}
	if json.Unmarshal(a.body, p) != nil || p.Code == "" {
		p = &meiliProblem{Code: fmt.Sprint(a.status), Message: string(a.body[:min(len(a.body), maxWords)])}
	}
	switch code := a.status; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return fmt.Errorf("search: %s does not let this key do it: %s; give api_key a key with the actions documents.add, documents.delete, documents.get, indexes.create and tasks.get", m.http.host(), p)
	case code == http.StatusRequestEntityTooLarge && documents == 1:
		return fmt.Errorf("search: the document is larger than %s takes: %w: %s; raise http-payload-size-limit, or the limit of the proxy in front", m.http.host(), onewrite.ErrRejected, p)
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable, code == http.StatusRequestTimeout:
		return paused(a, fmt.Errorf("search: %s is busy or not ready: %s; look at it: curl -sS %s/health", m.http.host(), p, m.http.origin()))
	case code/100 == 3, code == http.StatusNotFound, code == http.StatusMethodNotAllowed:
		return fmt.Errorf("search: %d of %s: %s; set url to the address of a Meilisearch", code, m.http.host(), p)
	case code == http.StatusBadGateway, code == http.StatusGatewayTimeout, code == http.StatusInsufficientStorage, p.Type == "system":
		return fmt.Errorf("search: %d of %s: %s; look at the server and its disk", code, m.http.host(), p)
	case code/100 == 4 && p.Type == "invalid_request" && documents == 1:
		return fmt.Errorf("search: %d of %s: %w: %s", code, m.http.host(), onewrite.ErrRejected, p)
	}
	return answered{fmt.Errorf("search: %d of %s: %s; look into the server's log", a.status, m.http.host(), p)}
}

var meiliName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// meiliIndex makes a name that the server takes of one that Elasticsearch does: a dot is
// a hyphen.
func meiliIndex(name string) string {
	name = strings.ReplaceAll(name, ".", "-")
	if len(name) > meiliMaxIndex {
		name = name[:meiliMaxIndex-33] + "-" + digest(name)[:32]
	}
	return name
}

// meiliID makes an id that the server takes: what has other characters is its hash.
func meiliID(id string) string {
	if len(id) <= meiliMaxID && meiliName.MatchString(id) {
		return id
	}
	return "sha256-" + digest(id)
}

// ExamineMeilisearch looks at a Meilisearch, and says what it finds; the caller adds the
// Subject. It changes nothing.
func ExamineMeilisearch(ctx context.Context, c Config) []diagnosis.Finding {
	list := diagnosis.List{Prefix: "search: "}
	m, err := NewMeilisearch(ctx, c)
	if err != nil {
		list.Failed("server", err)
		return list.Found
	}
	defer m.Close() //nolint:errcheck // it wrote nothing
	list.Add(diagnosis.OK, "server", "", "%s answers, and takes the key", m.http.host())
	if c.APIKey == "" {
		list.Add(diagnosis.Warning, "key", "start it with --master-key, make a key, and write api_key: ${env:MEILI_KEY}", "%s takes requests of everybody", m.http.host())
	}
	return list.Found
}

package search

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
)

// answered is an error of a server that was reached and failed on this event,
// without saying that it refuses it.
type answered struct{ error }

// Answered says that the other side was reached.
func (answered) Answered() bool { return true }

func (a answered) Unwrap() error { return a.error }

// busy is an error of a server that asks for time.
type busy struct {
	error
	pause time.Duration
}

// RetryAfter is the pause asked for.
func (b busy) RetryAfter() time.Duration { return b.pause }

func (b busy) Unwrap() error { return b.error }

var errClosed = errors.New("search: the destination is closed")

// maxPause is the longest pause that a server may ask for.
const maxPause = time.Hour

// paused heeds the seconds of Retry-After.
func paused(a *answer, err error) error {
	if n, bad := strconv.Atoi(strings.TrimSpace(a.header.Get("Retry-After"))); bad == nil && n > 0 {
		return busy{err, min(time.Duration(n)*time.Second, maxPause)}
	}
	return err
}

// refusal is an error about a whole request that carried so many events.
func (c *client) refusal(a *answer, events int) error {
	p := problemOf(a)
	switch code := a.status; {
	case p.has("cluster_block_exception"):
		return c.blocked("", p)
	case code == http.StatusUnauthorized:
		return fmt.Errorf("search: %s does not know the user, or the password or key is wrong: %s; try it: curl -sS -u USER %s/_security/_authenticate", c.host(), p, c.origin())
	case code == http.StatusForbidden:
		return fmt.Errorf("search: %s does not let the user do this: %s; give its role the privileges create_index, index, delete, read, maintenance on the indices and on %s", c.host(), p, stateIndex)
	case code == http.StatusRequestEntityTooLarge && events == 1:
		return fmt.Errorf("search: the document is larger than %s takes: %w; raise http.max_content_length, or the limit of the proxy in front", c.host(), onewrite.ErrRejected)
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable, p.has("circuit_breaking_exception"):
		return paused(a, fmt.Errorf("search: %s is busy or not ready: %s; look at it: curl -sS '%s/_cat/thread_pool/write?v'", c.host(), p, c.origin()))
	case code/100 == 3, code == http.StatusNotFound, code == http.StatusMethodNotAllowed:
		return fmt.Errorf("search: %d of %s to a bulk request: %s; set url to the address of Elasticsearch or OpenSearch", code, c.host(), p)
	case code == http.StatusBadGateway, code == http.StatusGatewayTimeout:
		return fmt.Errorf("search: %s does not reach the server behind it: %d %s; look at the proxy", c.host(), code, p)
	}
	// Of several events none may be at fault; of one, it may.
	return answered{fmt.Errorf("search: %d of %s: %s; look into the server's log", a.status, c.host(), p)}
}

// blocked is the error of a block of an index or of the cluster: no event can pass.
func (c *client) blocked(index string, p *problem) error {
	if index == "" {
		index = "_all"
	}
	if strings.Contains(p.Reason, "/12/") { // the number of this block
		return fmt.Errorf("search: %s is read-only, as a disk of %s is nearly full: %s; free space, then: curl -sS -X PUT '%s/%s/_settings' -H 'Content-Type: application/json' -d '{\"index.blocks.read_only_allow_delete\":null}'",
			index, c.host(), p, c.origin(), index)
	}
	return fmt.Errorf("search: %s of %s is blocked: %s; lift the block: curl -sS -X PUT '%s/%s/_settings' -H 'Content-Type: application/json' -d '{\"index.blocks.write\":null,\"index.blocks.read_only\":null}'",
		index, c.host(), p, c.origin(), index)
}

// failed is the error of one item of a bulk request.
func (c *client) failed(a *answer, o *op, status int, p *problem) error {
	what := fmt.Sprintf("search: document %q of index %s (event %s)", clip(o.id), o.index, o.event.ID)
	switch {
	case p.has("cluster_block_exception"):
		return c.blocked(o.index, p)
	case p.has("es_rejected_execution_exception"), p.has("rejected_execution_exception"), p.has("circuit_breaking_exception"),
		status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return paused(a, fmt.Errorf("%s: %s is busy or a shard is away: %s; look at it: curl -sS %s/_cat/shards/%s", what, c.host(), p, c.origin(), o.index))
	case status == http.StatusForbidden || status == http.StatusUnauthorized:
		return answered{fmt.Errorf("%s: the user may not write it: %s; give its role the privileges create_index, index, delete, read, maintenance on %s", what, p, o.index)}
	case p.has("index_not_found_exception"):
		return answered{fmt.Errorf("%s: there is no such index, and none is made: %s; make it: curl -sS -X PUT %s/%s", what, p, c.origin(), o.index)}
	case p.has("index_closed_exception"):
		return answered{fmt.Errorf("%s: the index is closed: %s; open it: curl -sS -X POST %s/%s/_open", what, p, c.origin(), o.index)}
	case p.has("strict_dynamic_mapping_exception"):
		return fmt.Errorf("%s: %w: %s; add the field: curl -sS -X PUT %s/%s/_mapping", what, onewrite.ErrRejected, p, c.origin(), o.index)
	case status == http.StatusBadRequest, status == http.StatusRequestEntityTooLarge, p.has("not_x_content_exception"):
		return fmt.Errorf("%s: %w: %s; compare the document with the mapping: curl -sS %s/%s/_mapping", what, onewrite.ErrRejected, p, c.origin(), o.index)
	}
	return answered{fmt.Errorf("%s: %d: %s; look into the server's log", what, status, p)}
}

// clip shortens an id for a message.
func clip(id string) string {
	if len(id) > 80 {
		return strings.ToValidUTF8(id[:80], "") + "…"
	}
	return id
}

package shop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// caller is the second half of the naive dual write, as one finds it in many
// services: the order is committed, now call the others, one after the other.
// What fails is tried once more in the background; what fails twice is given up.
//
// Each line looks reasonable. Together they lose an order when the process dies
// between commit and call, or while a retry waits in memory, or when a consumer
// is down for longer than the retry; they double one when only the reply was
// lost; and a retry arrives after the customer's next order.
type caller struct {
	urls    []string
	client  *http.Client
	retries sync.WaitGroup
}

const (
	naiveTimeout = time.Second
	naiveRetry   = 100 * time.Millisecond
)

func newCaller(urls []string) *caller {
	return &caller{urls: urls, client: &http.Client{
		Timeout:   naiveTimeout,
		Transport: &http.Transport{MaxIdleConnsPerHost: workers},
	}}
}

func (c *caller) tell(ctx context.Context, o order) {
	body, err := json.Marshal(o)
	if err != nil {
		return
	}
	for _, url := range c.urls {
		if c.post(ctx, url, body) == nil {
			continue
		}
		c.retries.Go(func() {
			select {
			case <-time.After(naiveRetry):
				_ = c.post(ctx, url, body) // an alert at 3 a.m., if anybody reads it
			case <-ctx.Done():
			}
		})
	}
}

func (c *caller) post(ctx context.Context, url string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("shop: %s", resp.Status)
	}
	return nil
}

// wait lets the retries under way end, which a real shutdown seldom does.
func (c *caller) wait() { c.retries.Wait() }

func (c *caller) close() { c.client.CloseIdleConnections() }

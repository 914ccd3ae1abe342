package servers

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestElasticsearch: the server keeps what it acknowledged through a kill, and knows
// its users apart.
func TestElasticsearch(t *testing.T) {
	s := Elasticsearch(t)
	ask := func(method, user, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL(user)+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	if code, text := ask(http.MethodPut, "", "/kept/_doc/1", `{"a":1}`); code != http.StatusCreated {
		t.Fatal(code, text)
	}
	if code, text := ask(http.MethodPut, ElasticWriter, "/may-a/_doc/1", `{"a":1}`); code != http.StatusCreated {
		t.Error(code, text)
	}
	if code, text := ask(http.MethodPut, ElasticWriter, "/kept/_doc/2", `{"a":1}`); code != http.StatusForbidden {
		t.Error(code, text)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if s.proc.running() {
		t.Error("it runs after Kill")
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if code, text := ask(http.MethodGet, "", "/kept/_doc/1", ""); code != http.StatusOK {
		t.Error(code, text)
	}
}

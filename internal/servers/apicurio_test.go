package servers

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestApicurio: the registry takes a schema, gives it back by its id, and has nothing
// left after a kill.
func TestApicurio(t *testing.T) {
	s := NewApicurio(t)
	ask := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/vnd.schemaregistry.v1+json")
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
	if code, text := ask(http.MethodPost, "/subjects/a/versions", `{"schema":"\"string\""}`); code != http.StatusOK || text != `{"id":1}` {
		t.Fatal(code, text)
	}
	if code, text := ask(http.MethodGet, "/schemas/ids/1", ""); code != http.StatusOK || !strings.Contains(text, "string") {
		t.Error(code, text)
	}
	s.Kill(t)
	if s.proc.running() {
		t.Error("it runs after Kill")
	}
	s.Restart(t)
	if code, text := ask(http.MethodGet, "/subjects", ""); code != http.StatusOK || text != "[]" {
		t.Error(code, text)
	}
}

package search_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/adapter/search"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// said returns what was found of a check, the worst first.
func said(found []diagnosis.Finding, check string) (worst diagnosis.Severity, text string) {
	for _, f := range found {
		if f.Check == check {
			worst, text = max(worst, f.Severity), text+f.Text+" | "+f.Cure+"\n"
		}
	}
	return worst, text
}

func TestExamine(t *testing.T) {
	srv := servers.Elasticsearch(t)
	c := search.Config{URL: srv.URL(servers.ElasticWriter), Index: "may-{topic}", Destination: "examined"}
	write(t, newSink(t, c), outbox("seen", "a", 1, `{"n":1}`))
	for _, w := range []struct {
		name, settings, check, text string
		severity                    diagnosis.Severity
	}{
		{"fine", `{"index.gc_deletes":"25h"}`, "deletes", "", diagnosis.OK},
		{"gc", `{"index.gc_deletes":null}`, "deletes", "gc_deletes", diagnosis.Warning},
		{"flood", `{"index.blocks.read_only_allow_delete":true}`, "blocks", "/may-seen/_settings", diagnosis.Problem},
		{"mended", `{"index.blocks.read_only_allow_delete":null}`, "blocks", "", diagnosis.OK},
		{"async", `{"index.translog.durability":"async"}`, "durability", "crash", diagnosis.Warning},
	} {
		must(t, srv, http.MethodPut, "/may-seen/_settings", w.settings)
		found := search.Examine(t.Context(), c, []string{"seen"})
		severity, text := said(found, w.check)
		if severity != w.severity || !strings.Contains(text, w.text) || w.text == "" && text != "" {
			t.Errorf("%s: %v, %s", w.name, severity, text)
		}
		for _, check := range []string{"connection", "login", "rights", "health"} {
			if severity, text := said(found, check); severity == diagnosis.Problem || text == "" {
				t.Errorf("%s: %s: %v, %s", w.name, check, severity, text)
			}
		}
	}
	must(t, srv, http.MethodPut, "/may-seen/_mapping", `{"dynamic":"strict"}`)
	if _, text := said(search.Examine(t.Context(), c, nil), "mappings"); !strings.Contains(text, "may-seen") {
		t.Errorf("strict: %s", text)
	}
	c.Index = "maynot-{topic}"
	if severity, text := said(search.Examine(t.Context(), c, []string{"seen"}), "rights"); severity != diagnosis.Problem || !strings.Contains(text, "maynot-seen") {
		t.Errorf("rights: %v, %s", severity, text)
	}
	c.URL = "http://admin:hush-hush@" + srv.Addr()
	if severity, text := said(search.Examine(t.Context(), c, nil), "login"); severity != diagnosis.Problem || strings.Contains(text, "hush") {
		t.Errorf("login: %v, %s", severity, text)
	}
	c.URL = "http://127.0.0.1:1"
	if severity, text := said(search.Examine(t.Context(), c, nil), "connection"); severity != diagnosis.Problem || !strings.Contains(text, "curl") {
		t.Errorf("nobody there: %v, %s", severity, text)
	}
	c.URL = "nonsense"
	if severity, _ := said(search.Examine(t.Context(), c, nil), "url"); severity != diagnosis.Problem {
		t.Error("no URL is fine")
	}
}

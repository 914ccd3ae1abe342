package relay_test

import (
	"strings"
	"testing"

	"github.com/onewrite/onewrite/adapter/email"
	"github.com/onewrite/onewrite/relay"
)

// What the check of a configuration knows of templates is what the adapter knows.
func TestMailTemplates(t *testing.T) {
	for _, function := range []string{"json", "int", "float", "address", "printf", "len", "index", "urlquery", "upper", "nope", "_out", "default"} {
		text := "{{" + function + " .Key}}"
		if function == "address" {
			text = "{{address .Key .Key}}"
		}
		_, adapter := email.New(email.Config{URL: "smtp://mail.example", Sender: "a@example.com", To: "b@example.com", Subject: "x", Text: text})
		cfg := relay.Config{
			Sources:      map[string]relay.Source{"app": {Type: "sqlite", Path: "app.db"}},
			Destinations: map[string]relay.Destination{"mails": {Type: "email", URL: relay.NewSecret("smtp://mail.example"), Sender: "a@example.com", To: "b@example.com", Subject: "x", Text: text}},
		}
		err := cfg.Validate()
		if function == "_out" { // of the adapter's own
			continue
		}
		if (adapter == nil) != (err == nil) || err != nil && !strings.Contains(err.Error(), "is no template") {
			t.Errorf("%s: the adapter says %v, the check %v", function, adapter, err)
		}
	}
}

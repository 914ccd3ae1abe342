package relay_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/relay"
)

// TestReceivers: an address that no webhook calls is refused before anything runs, once.
func TestReceivers(t *testing.T) {
	for url, want := range map[string]string{
		`"https://192.0.2.1/x"`: "is not public", `"http://169.254.169.254/x", allow_private: true`: "is never called",
		`"https://[fd00:ec2::254]/x", allow_private: true`: "is never called", `"https://127.0.0.1/x"`: "is a loopback or private address",
		`"https://8.8.8.8/x"`: "", `"http://192.0.2.1/x", allow_private: true`: "", `"https://hook.example/x"`: "",
	} {
		path := filepath.Join(t.TempDir(), "onewrite.yaml")
		text := "sources: {shop: {type: sqlite, path: shop.db}}\ndestinations: {hook: {type: webhook, url: " + url + "}}\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := relay.Load(path)
		if want == "" && err == nil {
			continue
		}
		if err == nil || want == "" || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), "destinations.hook.url") != 1 {
			t.Errorf("%s: %v", url, err)
		}
	}
}

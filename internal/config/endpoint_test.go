package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The commands that talk to an instance work with a file that it could not
// start with.
func TestEndpoint(t *testing.T) {
	t.Setenv("ONEWRITE_TEST_TOKEN", "made-up-for-this-test")
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "onewrite.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const broken = `
sources: {shop: {type: postgres, url: "${env:ONEWRITE_TEST_NOT_SET}"}}
destinations: {w: {type: webhok, nonsense: 1}}
`
	listen, token, err := Endpoint(file("listen: 127.0.0.1:9999\ntoken: ${env:ONEWRITE_TEST_TOKEN}" + broken))
	if err != nil || listen != "127.0.0.1:9999" || token.Reveal() != "made-up-for-this-test" {
		t.Error(listen, err)
	}
	if listen, _, err = Endpoint(file(broken)); err != nil || listen != "127.0.0.1:8484" {
		t.Error("the default:", listen, err)
	}
	for text, want := range map[string]string{
		"listen: nowhere" + broken:                         "listen",
		"token: ${env:ONEWRITE_TEST_NOT_SET}" + broken:     "ONEWRITE_TEST_NOT_SET",
		"listen: [" + broken:                               "onewrite.yaml:",
		"token: ${env:ONEWRITE_TEST_NOT_SET}\nlisten: 1\n": "listen",
	} {
		if _, _, err := Endpoint(file(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, _, err := Endpoint(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "onewrite init") {
		t.Error(err)
	}
}

// TestURLByType: an example that its own type would refuse is none.
func TestURLByType(t *testing.T) {
	url := root.at("destinations").find("url")
	for _, typ := range url.need {
		more := map[string]string{Email: ", sender: a@example.com, to: b@example.com, subject: x, text: x"}[typ]
		destination := func(url string) string {
			return "sources: {s: {type: sqlite, path: x}}\ndestinations: {d: {type: " + typ + more + url + "}}"
		}
		sample := url.of(typ).sample()
		if _, _, err := Parse([]byte(destination("")), "x", "."); err == nil || !strings.Contains(err.Error(), "destinations.d.url: is missing; write url: "+sample) {
			t.Errorf("%s: %v", typ, err)
		}
		if _, _, err := Parse([]byte(destination(", url: '"+sample+"'")), "x", "."); err != nil || strings.Contains(sample, "warehouse") != (typ == Webhook) {
			t.Errorf("%s: %s: %v", typ, sample, err)
		}
	}
}

// TestSuperuser: only a source has roles that migrate grants to.
func TestSuperuser(t *testing.T) {
	_, warnings, err := Parse([]byte(`sources: {s: {type: postgres, url: "postgres://postgres@localhost/a"}}
destinations: {d: {type: postgres, url: "postgres://postgres@localhost/b"}}`), "x", ".")
	if err != nil || len(warnings) != 2 || !strings.Contains(warnings[0].Cure, "roles: {relay") || strings.Contains(warnings[1].Cure, "roles:") || !strings.Contains(warnings[1].Cure, "CREATE ROLE") {
		t.Errorf("%v, %v", warnings, err)
	}
}

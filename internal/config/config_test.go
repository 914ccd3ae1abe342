package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files and the generated pages")

// canary is a secret that must never be seen.
const canary = "canary-7c1f-e0a94b5d2c86"

// stage sets the environment that the files under testdata expect, and the
// secret files, and returns their folder.
func stage(t testing.TB) string {
	t.Setenv("CANARY", canary)
	t.Setenv("FOUR", "4")
	t.Setenv("TYPE", "sqlite")
	t.Setenv("EMPTY", "")
	t.Setenv("BASE64", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYX")
	dir := t.TempDir()
	for name, text := range map[string]string{"secret.key": canary + "\n", "empty.key": "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want = bytes.ReplaceAll(want, []byte("\r\n"), []byte("\n")); !bytes.Equal(want, got) {
		t.Errorf("%s is not what it was; look at the difference and run: go test ./internal/config -update\ngot:\n%s", path, got)
	}
}

// corpus returns the files under testdata.
func corpus(t testing.TB) []string {
	var out []string
	for _, pattern := range []string{"testdata/*.yaml", "testdata/*.json"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, files...)
	}
	if len(out) < 20 {
		t.Fatalf("only %d files under testdata", len(out))
	}
	return out
}

func TestGolden(t *testing.T) {
	dir := stage(t)
	for _, file := range corpus(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			cfg, warnings, err := Parse(data, filepath.Base(file), dir)
			var b strings.Builder
			var bad Problems
			if err != nil && !errors.As(err, &bad) {
				t.Fatalf("the error is no Problems: %v", err)
			}
			for _, p := range bad {
				b.WriteString("error: " + p.String() + "\n")
			}
			for _, p := range warnings {
				b.WriteString("warning: " + p.String() + "\n")
			}
			if err == nil {
				text, err := json.MarshalIndent(cfg, "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				b.Write(append(text, '\n'))
			}
			if (err == nil) != (strings.HasPrefix(filepath.Base(file), "valid") || strings.HasPrefix(filepath.Base(file), "warning")) {
				t.Errorf("accepted = %v, against the file's name", err == nil)
			}
			got := b.String()
			for _, secret := range []string{canary, "hunter2"} {
				if strings.Contains(got, secret) {
					t.Errorf("shows a secret:\n%s", got)
				}
			}
			for _, p := range append(bad, warnings...) {
				if p.Line < 1 || p.Column < 1 || p.Message == "" || p.Cure == "" {
					t.Errorf("lacks line, column, message or cure: %+v", p)
				}
			}
			quoted, _ := json.Marshal(dir)
			got = strings.NewReplacer(strings.Trim(string(quoted), `"`), "DIR", dir, "DIR").Replace(got)
			got = strings.ReplaceAll(strings.ReplaceAll(got, `DIR\\`, "DIR/"), `DIR\`, "DIR/")
			golden(t, strings.TrimSuffix(file, filepath.Ext(file))+".want", []byte(got))
		})
	}
}

func TestGenerated(t *testing.T) {
	golden(t, filepath.FromSlash("../../docs/configuration.md"), Reference())
	golden(t, filepath.FromSlash("../../docs/onewrite.schema.json"), Schema())
}

func TestTable(t *testing.T) {
	var walk func(t *testing.T, tab *table, path string)
	walk = func(t *testing.T, tab *table, path string) {
		for _, f := range tab.fields {
			at := join(path, f.name)
			if !strings.HasSuffix(f.doc, ".") || strings.Contains(f.doc, "\t") {
				t.Errorf("%s: doc %q is no sentence", at, f.doc)
			}
			if strings.Contains(f.sample(), "...") && f.sub == nil && f.kind != kindString && f.kind != kindSecret {
				t.Errorf("%s: nothing to show in a cure", at)
			}
			switch f.kind {
			case kindInt, kindSize, kindDuration:
				if f.min < 0 || f.min == 0 && f.def != "" || f.max <= f.min { // 0 is what is not written
					t.Errorf("%s: range %d..%d", at, f.min, f.max)
				}
				if n := f.number(f.def); f.def != "" && (n < f.min || n > f.max || f.show(n) != f.def) {
					t.Errorf("%s: default %s (%d, %s) is out of range or reads differently", at, f.def, n, f.show(n))
				}
			}
			if f.unless != "" && tab.find(f.unless) == nil {
				t.Errorf("%s: unless names no sibling", at)
			}
			if f.sub != nil {
				walk(t, f.sub, at)
			}
		}
		if n := tab.typ.NumField(); n < len(tab.fields) || n > len(tab.fields)+1 {
			t.Errorf("%s: %d of %d fields are settings", path, len(tab.fields), n)
		}
	}
	walk(t, root, "")
}

func TestTemplate(t *testing.T) {
	dir := stage(t)
	cfg, warnings, err := Parse([]byte(Template()), "onewrite.yaml", dir)
	if err != nil || len(warnings) > 0 || len(cfg.Sources) != 1 || len(cfg.Destinations) != 1 {
		t.Fatalf("the template: %v, warnings %v", err, warnings)
	}
	// Its variants work too, once the comment signs are gone.
	t.Setenv("SHOP_DATABASE_URL", "postgres://localhost/shop")
	for _, name := range []string{"warehouse.key", "stream.creds"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(canary), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var lines []string
	for line := range strings.Lines(Template()) {
		if strings.HasPrefix(line, "    # tables:") || strings.HasPrefix(line, "  # ") {
			line = strings.Replace(line, "# ", "", 1)
		}
		lines = append(lines, line)
	}
	cfg, warnings, err = Parse([]byte(strings.Join(lines, "")), "onewrite.yaml", dir)
	if err != nil || len(warnings) > 0 || len(cfg.Sources) != 2 || len(cfg.Destinations) != 3 || len(cfg.Sources["app"].Tables) != 1 {
		t.Fatalf("the template without comment signs: %v, warnings %v", err, warnings)
	}
}

func TestLoad(t *testing.T) {
	dir := stage(t)
	path := filepath.Join(dir, "onewrite.yaml")
	if _, _, err := Load(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "onewrite init") {
		t.Errorf("missing file: %v", err)
	}
	if _, _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "-c FILE") {
		t.Errorf("folder: %v", err)
	}
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write(Template(), 0o644)
	cfg, warnings, err := Load(path)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, %v", err, warnings)
	}
	for what, got := range map[string]string{"app.db": cfg.Sources["app"].Path, "events.jsonl": cfg.Destinations["archive"].Path, "onewrite-data": cfg.Bus.Dir} {
		if got != filepath.Join(dir, what) {
			t.Errorf("%s became %s", what, got)
		}
	}
	if runtime.GOOS != "windows" {
		write(Template()+"token: secret-in-the-file\n", 0o644)
		if _, warnings, err = Load(path); err != nil || len(warnings) != 2 || !strings.Contains(warnings.Error(), "chmod 600") {
			t.Errorf("a secret in a world-readable file: %v, %v", warnings, err)
		}
		key := filepath.Join(dir, "secret.key")
		if err := os.Chmod(key, 0o644); err != nil {
			t.Fatal(err)
		}
		write(Template()+"token: ${file:secret.key}\n", 0o644)
		if _, warnings, err = Load(path); err != nil || len(warnings) != 1 || !strings.Contains(warnings.Error(), "chmod 600 "+key) {
			t.Errorf("a world-readable secret file: %v, %v", warnings, err)
		}
	}
	write(strings.Repeat("# long\n", maxFile/7+2), 0o600)
	if _, _, err := Load(path); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("large file: %v", err)
	}
}

func TestValidate(t *testing.T) {
	made := func() *Config {
		return &Config{
			Sources:      map[string]Source{"app": {Type: SQLite, Path: "app.db"}},
			Destinations: map[string]Destination{"hook": {Type: Webhook, URL: NewSecret("https://a.example/"), Secret: []Secret{NewSecret("k")}, Batch: &Batch{}}},
		}
	}
	cfg := made()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	parsed, _, err := Parse([]byte("sources: {app: {type: sqlite, path: app.db}}\ndestinations: {hook: {type: webhook, url: 'https://a.example/', secret: k, batch: true}}"), "x", ".")
	if err != nil {
		t.Fatal(err)
	}
	parsed.Dir = ""
	if !reflect.DeepEqual(cfg, parsed) {
		t.Errorf("made by hand:\n%+v\nfrom a file:\n%+v", cfg, parsed)
	}
	if d := cfg.Destinations["hook"]; d.Concurrency != 16 || d.Timeout != 15*time.Second || d.Batch.Count != 100 || d.Batch.Bytes != 1e6 ||
		d.Retry.First != 200*time.Millisecond || d.From != "beginning" || cfg.Bus.Keep != (Keep{1e9, 24 * time.Hour}) || cfg.Bus.Dir != "onewrite-data" {
		t.Errorf("defaults: %+v", cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("again: %v", err)
	}
	for want, spoil := range map[string]func(*Config){
		"sources: there is no source":      func(c *Config) { c.Sources = nil },
		"sources.app.path: is missing":     func(c *Config) { c.Sources["app"] = Source{Type: SQLite} },
		"sources.app.url: does not belong": func(c *Config) { c.Sources["app"] = Source{Type: SQLite, Path: "x", URL: NewSecret("x")} },
		"destinations.x.type: is missing":  func(c *Config) { c.Destinations["x"] = Destination{} },
		"listen: can be reached":           func(c *Config) { c.Listen = "0.0.0.0:1" },
		"destinations.n.url: is onewrite's own bus": func(c *Config) {
			c.Bus = Bus{Listen: "0.0.0.0:4222", User: "u", Password: NewSecret("p")}
			c.Destinations["n"] = Destination{Type: NATS, URL: NewSecret("nats://elsewhere,nats://localhost")}
		},
		"bus.dir: does not go with url":        func(c *Config) { c.Bus = Bus{Dir: "x", URL: NewSecret("nats://localhost")} },
		"max_event: -1B is out of range":       func(c *Config) { c.MaxEvent = -1 },
		"bus.keep.age: 1s is out of range":     func(c *Config) { c.Bus.Keep.Age = time.Second },
		"sources.a.b: is not a good name":      func(c *Config) { c.Sources["a.b"] = Source{Type: SQLite, Path: "x"} },
		"bus.replicas: goes only with url":     func(c *Config) { c.Bus.Replicas = 3 },
		"log.level: \"loud\" is not":           func(c *Config) { c.Log.Level = "loud" },
		"destinations.hook.tls: cert and key":  func(c *Config) { c.Destinations["hook"] = withTLS(c.Destinations["hook"], &TLS{Cert: "x"}) },
		"destinations.hook.tls: ca gone.pem c": func(c *Config) { c.Destinations["hook"] = withTLS(c.Destinations["hook"], &TLS{CA: "gone.pem"}) },
	} {
		c := made()
		spoil(c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	external := made()
	external.Bus.URL = NewSecret("nats://localhost")
	if err := external.Validate(); err != nil || external.Bus.Dir != "" {
		t.Errorf("external bus: %v, dir %q", err, external.Bus.Dir)
	}
	if err := external.Validate(); err != nil {
		t.Errorf("external bus again: %v", err)
	}
}

func withTLS(d Destination, t *TLS) Destination { d.TLS = t; return d }

func TestDiff(t *testing.T) {
	read := func(text string) *Config {
		t.Helper()
		cfg, _, err := Parse([]byte(text), "x", ".")
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	old := read(`sources: {a: {type: sqlite, path: a.db}, b: {type: sqlite, path: b.db}}
destinations: {same: {type: file, path: s}, gone: {type: file, path: g}, key: {type: webhook, url: "https://x.example", secret: one}}
token: one`)
	if got := Diff(old, old); !reflect.DeepEqual(got, Changes{}) {
		t.Errorf("same: %+v", got)
	}
	got := Diff(old, read(`sources: {a: {type: sqlite, path: other.db}, c: {type: sqlite, path: c.db}}
destinations: {same: {type: file, path: s}, new: {type: file, path: n}, key: {type: webhook, url: "https://x.example", secret: two}}
token: two
bus: {keep: 2GB}
max_event: 2MiB`))
	want := Changes{Added: []string{"new"}, Removed: []string{"gone"}, Changed: []string{"key"},
		RestartNeeded: []string{"bus.keep.size", "max_event", "sources.a.path", "sources.b", "sources.c", "token"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestSizesAndDurations(t *testing.T) {
	for text, want := range map[string]Size{"1": 1, "0": 0, "1B": 1, "1KB": 1000, "1KiB": 1024, "1.5 kb": 1500, "2m": 2e6, "3Mi": 3 << 20,
		"10GB": 10e9, "1TiB": 1 << 40, "1PiB": 1 << 50} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "B", "-1", "+1", "1e3", "1_0", "0x10", "Inf", "NaN", "1XB", "1GB2", "99999999PiB", "1.2.3", "1 G B"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
	for _, s := range []Size{0, 1, 1000, 1024, 1536, 1e9, 1 << 30, 10e9, -1024} {
		if text := s.String(); s >= 0 {
			if got, err := parseSize(text); err != nil || got != s {
				t.Errorf("%d prints %s, reads %d, %v", s, text, got, err)
			}
		}
	}
	for text, want := range map[string]time.Duration{"24h": 24 * time.Hour, "1h30m": 90 * time.Minute, "7d": 168 * time.Hour, "200ms": 200 * time.Millisecond} {
		got, err := parseDuration(text)
		if err != nil || got != want {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
}

func TestStart(t *testing.T) {
	if f, err := (Destination{From: "now"}).Start(); err != nil || !f.Now {
		t.Errorf("now: %v, %v", f, err)
	}
	if f, err := (Destination{From: "2026-01-31T09:00:00+01:00"}).Start(); err != nil || f.Now || f.Time.Unix() != 1769846400 {
		t.Errorf("time: %v, %v", f, err)
	}
	if f, err := (Destination{}).Start(); err != nil || f.Now || !f.Time.IsZero() {
		t.Errorf("beginning: %v, %v", f, err)
	}
	if _, err := (Destination{From: "2026-01-31"}).Start(); err == nil {
		t.Error("a date alone was taken")
	}
}

func TestBounds(t *testing.T) {
	dir := stage(t)
	for what, text := range map[string]string{
		"more problems follow": strings.Repeat("x: 1\n", 30_000),
		"nested too deeply":    "sources: &a {<<: *a}\n",
		"too many values":      "sources: {a: &a {a: 1, b: 1, c: 1, d: 1, e: 1, f: 1, g: 1, h: 1, i: 1, j: 1}, b: {<<: [" + strings.Repeat("*a,", 60_000) + "]}}",
		"this is not YAML":     strings.Repeat("[", 50_000),
	} {
		began := time.Now()
		_, warnings, err := Parse([]byte(text), "x", dir)
		var bad Problems
		if !errors.As(err, &bad) || len(bad) > maxShown+1 || len(warnings) > maxShown || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %d problems, %.300v", what, len(bad), err)
		}
		t.Logf("%s: %s", what, time.Since(began))
	}
	d := &decoder{file: "x", dir: dir}
	var many strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&many, "x%d: 1\n", i)
	}
	d.run([]byte(many.String()))
	if len(d.problems) > maxProblems+10 {
		t.Errorf("%d problems were gathered", len(d.problems))
	}
}

func TestInside(t *testing.T) {
	for _, host := range []string{"localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "10.0.0.1", "172.16.0.1", "192.168.1.1",
		"169.254.169.254", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::ffff:100.64.0.1", "100.64.0.1", "fd00:ec2::254", "fe80::1", "0.0.0.0", "::", "224.0.0.1"} {
		if !inside(host) {
			t.Errorf("%s passes for public", host)
		}
	}
	for _, host := range []string{"example.com", "8.8.8.8", "100.128.0.1", "2606:4700::1111", "172.32.0.1", "localhost.example"} {
		if inside(host) {
			t.Errorf("%s passes for private", host)
		}
	}
}

func TestLiteralSecretsInURLs(t *testing.T) {
	dir := stage(t)
	for text, want := range map[string]bool{
		"postgres://u:pw@localhost/x":                            true,
		"postgres://u@localhost/x":                               false,
		"postgres://u:${env:CANARY}@localhost/x":                 false,
		"postgres://${env:CANARY}:${file:secret.key}@localhost/": false,
		"postgres://localhost/x?user=u&password=pw":              true,
		"postgres://localhost/x?password=${env:CANARY}":          false,
		"host=localhost user=u password=pw":                      true,
		"host=localhost user=u password=${env:CANARY}":           false,
	} {
		_, warnings, err := Parse([]byte("sources: {s: {type: postgres, url: \""+text+"\"}}\ndestinations: {o: {type: file, path: '-'}}"), "x", dir)
		if err != nil || (len(warnings) == 1) != want {
			t.Errorf("%s: %v, %v", text, warnings, err)
		}
	}
	for text, want := range map[string]bool{
		"nats://localhost": false, "nats://token@localhost": true, "nats://u:pw@localhost": true, "tls://u:${env:CANARY}@a,tls://u:pw@b": true,
		"tls://${env:CANARY}@a": false, "tls://u:${env:CANARY}@a:4222,tls://u:${env:CANARY}@b:4222": false,
	} {
		_, warnings, err := Parse([]byte("sources: {s: {type: sqlite, path: x}}\ndestinations: {o: {type: nats, url: \""+text+"\"}}"), "x", dir)
		if err != nil || (len(warnings) == 1) != want {
			t.Errorf("%s: %v, %v", text, warnings, err)
		}
	}
}

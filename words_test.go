package onewrite_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// Words are part of the build: what the pages say is checked as the code is.

func readIfThere(t *testing.T, name string) (string, bool) {
	t.Helper()
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(text), true
}

func TestREADMEIsShort(t *testing.T) {
	text, ok := readIfThere(t, "README.md")
	if n := strings.Count(text, "\n"); ok && n > 150 {
		t.Errorf("README.md has %d lines, 150 are allowed: the rest belongs into docs/", n)
	}
}

// TestREADMECompiles builds every Go block of README.md and of the pages in docs
// and docs/destinations. A block is a whole file, or declarations, or statements of
// a function that has ctx, db and tx at hand; see CONTRIBUTING.md.
func TestREADMECompiles(t *testing.T) {
	var blocks []string
	pages := []string{"README.md"}
	for folder, least := range map[string]int{"docs": 10, "docs/destinations": 5} {
		docs, err := filepath.Glob(folder + "/*.md")
		if err != nil {
			t.Fatal(err)
		}
		if len(docs) < least {
			t.Errorf("only %d pages found in %s", len(docs), folder)
		}
		pages = append(pages, docs...)
	}
	for _, page := range pages {
		text, _ := readIfThere(t, page)
		found := goBlocks(text)
		if page == "README.md" && text != "" && len(found) == 0 {
			t.Error("README.md shows no Go: an application that publishes an event is what it is about")
		}
		blocks = append(blocks, found...)
	}
	good := []string{
		"package main\n\nfunc main() {}",
		"package main\n\nfunc F() {}",
		"import \"os\"\n\nfunc F() string { return os.Args[0] }",
		"tx, err := db.BeginTx(ctx, nil)\nif err != nil {\n\treturn err\n}\ndefer tx.Rollback()",
		"import \"github.com/onewrite/onewrite\"\n\nfmt.Println(onewrite.MaxBatch)",
	}
	for _, b := range append(good, blocks...) {
		if err := compile(t, b); err != nil {
			t.Errorf("this block does not compile:\n%s\n%v", b, err)
		}
	}
	for _, b := range []string{"onewrite.Nope()", "x := db.Nope()", "func F() { return 1 }", "package main\n\nfunc F() { g() }"} {
		if compile(t, b) == nil {
			t.Errorf("the check has gone blind: it accepts\n%s", b)
		}
	}
}

var goBlock = regexp.MustCompile("(?ms)^```go\n(.*?)^```")

func goBlocks(markdown string) (blocks []string) {
	for _, m := range goBlock.FindAllStringSubmatch(markdown, -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

var (
	importDecl = regexp.MustCompile(`(?m)^import (?:\([^)]*\)|.*)\n`)
	// known packages need no import in a block of statements.
	known = map[string]string{
		"context": "context", "errors": "errors", "fmt": "fmt", "json": "encoding/json", "http": "net/http",
		"log": "log", "slog": "log/slog", "os": "os", "sql": "database/sql", "time": "time", "pgx": "github.com/jackc/pgx/v5",
		"onewrite": module, "outbox": module + "/outbox", "pgxoutbox": module + "/outbox/pgxoutbox",
		"inbox": module + "/inbox", "relay": module + "/relay", "pipeline": module + "/pipeline",
	}
	selector = regexp.MustCompile(`\b([a-z]+)\.[A-Z]`)
)

// wholeFile makes a file of a block.
func wholeFile(block string) string {
	if strings.HasPrefix(block, "package ") {
		if !strings.Contains(block, "func main()") { // a program is shown in part
			block = strings.Replace(block, "package main\n", "package readme\n", 1)
		}
		return block
	}
	imports := strings.Join(importDecl.FindAllString(block, -1), "")
	body := importDecl.ReplaceAllString(block, "")
	if !parses("package readme\n" + imports + body) {
		body = "func _(ctx context.Context, db *sql.DB, tx *sql.Tx) error {\n" + body + "\nreturn nil\n}\n"
	}
	seen := make(map[string]bool)
	for _, m := range selector.FindAllStringSubmatch(body, -1) {
		if p, ok := known[m[1]]; ok && !seen[p] && !strings.Contains(imports, `"`+p+`"`) {
			seen[p] = true
			imports += fmt.Sprintf("import %s %q\n", m[1], p)
		}
	}
	return "package readme\n" + imports + body
}

func parses(text string) bool {
	f, err := parser.ParseFile(token.NewFileSet(), "block.go", text, parser.SkipObjectResolution)
	return err == nil && len(f.Decls) > 0
}

// compile builds a block as a package of this module that exists only in an
// overlay, so that it sees this very code.
func compile(t *testing.T, block string) error {
	t.Helper()
	dir := t.TempDir()
	text := filepath.Join(dir, "block.go")
	if err := os.WriteFile(text, []byte(wholeFile(block)), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(root, "internal", "readmeblock", "block.go"): text,
	}})
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(config, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "build", "-overlay", config, "-o", os.DevNull, "./internal/readmeblock").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// require matches a direct dependency in go.mod.
var require = regexp.MustCompile(`(?m)^\t(\S+) v\S+$`)

// TestAdaptersParkNothing: whether a refused event is tried again, parked, skipped or
// stops its destination is not for the adapter to say, nor how it comes back.
func TestAdaptersParkNothing(t *testing.T) {
	seen := 0
	err := filepath.WalkDir("adapter", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		seen++
		if text, _ := readIfThere(t, path); strings.Contains(text, "onewrite parked") {
			t.Errorf("%s: an error tells of onewrite parked", path)
		}
		return nil
	})
	if err != nil || seen < 100 {
		t.Errorf("%d files seen, %v", seen, err)
	}
}

// TestDependenciesHaveAReason holds docs/design/dependencies.md against go.mod.
func TestDependenciesHaveAReason(t *testing.T) {
	gomod, _ := readIfThere(t, "go.mod")
	page, ok := readIfThere(t, "docs/design/dependencies.md")
	if !ok {
		t.Fatal("docs/design/dependencies.md is missing")
	}
	if n := len(require.FindAllString(gomod, -1)); n < 5 {
		t.Fatalf("only %d direct dependencies found in go.mod", n)
	}
	report(t, "a dependency is code that we ship and answer for; each has its line", unreasoned(gomod, page))
	const mod = "require (\n\texample.org/a v1.0.0\n\texample.org/b v1.0.0 // indirect\n)\n"
	for _, bad := range []string{"", "| `example.org/a` | |\n", "| `example.org/a` | it does a thing well |\n| `example.org/gone` | it did another |\n"} {
		if len(unreasoned(mod, bad)) != 1 {
			t.Errorf("the check has gone blind: it accepts %q", bad)
		}
	}
}

var reasonLine = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| *(.*?) *\\|$")

func unreasoned(gomod, page string) (found []string) {
	reasons := make(map[string]string)
	for _, m := range reasonLine.FindAllStringSubmatch(page, -1) {
		reasons[m[1]] = m[2]
	}
	direct := make(map[string]bool)
	for _, m := range require.FindAllStringSubmatch(gomod, -1) {
		direct[m[1]] = true
		if len(reasons[m[1]]) < 15 {
			found = append(found, m[1]+" has no reason in docs/design/dependencies.md")
		}
	}
	for name := range reasons {
		if !direct[name] {
			found = append(found, name+" has a reason but is no direct dependency (any more)")
		}
	}
	return found
}

// strayWords are what must not be in a file of this project. They are written in
// halves here, so that this file passes.
var strayWords = regexp.MustCompile(strings.Join([]string{
	`(?:^|[\s"'=(:])/wo` + `rk/`, `/ro` + `ot/`, `/tmp/[a-z0-9_-]+` + `/`, `/ho` + `me/[a-z]`, // places on somebody's machine
	`registry\.npm` + `js`, `proxy\.golang` + `\.org`, `deb\.debian` + `\.org`, `pypi` + `\.org`, `repo1?\.maven` + `\.`, // registries
	`-----BEGIN [A-Z ]*PRIV` + `ATE KEY`, `AKIA[0-9A-Z]{16}`, `ghp_[0-9A-Za-z]{36}`, // credentials
}, "|"))

// TestNoStrayWords: a path, a host or a key of one machine is a leak and works
// nowhere else.
func TestNoStrayWords(t *testing.T) {
	var found []string
	read := 0
	walk(t, func(name string) {
		text, ok := readIfThere(t, name)
		if !ok || !utf8.ValidString(text) {
			return
		}
		read++
		for i, line := range strings.Split(text, "\n") {
			if w := strayWords.FindString(line); w != "" {
				found = append(found, fmt.Sprintf("%s:%d: %s", name, i+1, w))
			}
		}
	})
	report(t, "a path, a host or a key of one machine is a leak and works nowhere else", found)
	if read < 40 {
		t.Errorf("only %d files read; is the test looking in the right place?", read)
	}
	for _, bad := range []string{"cd /wo" + "rk/main", "see https://pypi" + ".org/x", "-----BEGIN RSA PRIV" + "ATE KEY-----", `x := "/tmp/x` + `/y"`} {
		if !strayWords.MatchString(bad) {
			t.Errorf("the check has gone blind: it accepts %q", bad)
		}
	}
}

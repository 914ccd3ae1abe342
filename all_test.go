package onewrite_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/onewrite/onewrite"

// rule is one law of the house. Each brings files that break it, so that a rule
// that has gone blind fails too.
type rule struct {
	name   string
	reason string
	check  func(s source) []string
	bad    []source
}

// source is one Go file that is neither a test nor generated.
type source struct {
	path string // from the root, with slashes
	text string
	file *ast.File
	fset *token.FileSet
}

func (s source) dir() string { return path.Dir(s.path) }

// at is where a node is, for messages.
func (s source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(n.Pos()).Line)
}

func parse(path, text string) (source, error) {
	s := source{path: path, text: text, fset: token.NewFileSet()}
	var err error
	s.file, err = parser.ParseFile(s.fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
	return s, err
}

// broken is a file for a rule to find fault with.
func broken(path, text string) source {
	s, err := parse(path, text)
	if err != nil {
		panic(err)
	}
	return s
}

var rules = []rule{
	{"floors", "imports go only down: each floor is understood, tested and replaced without those above it, and adapters never know each other", checkFloors, []source{
		broken("onewrite.go", `package onewrite; import _ "github.com/jackc/pgx/v5"`),
		broken("onewrite.go", `package onewrite; import _ "github.com/onewrite/onewrite/internal/cloudevents"`),
		broken("outbox/a.go", `package outbox; import _ "github.com/onewrite/onewrite/pipeline"`),
		broken("pipeline/a.go", `package pipeline; import _ "github.com/onewrite/onewrite/adapter/nats"`),
		broken("adapter/nats/a.go", `package nats; import _ "github.com/onewrite/onewrite/adapter/sqlite"`),
		broken("adapter/nats/a.go", `package nats; import _ "github.com/onewrite/onewrite/relay"`),
		broken("pipeline/a.go", `package pipeline; import _ "github.com/onewrite/onewrite/onewritetest"`),
		broken("onewritetest/a.go", `package onewritetest; import _ "github.com/onewrite/onewrite/adapter/sqlite"`),
		broken("dashboard/a.go", `package dashboard; import _ "github.com/onewrite/onewrite/relay"`),
		broken("relay/a.go", `package relay; import _ "github.com/onewrite/onewrite/cmd/onewrite"`),
		broken("internal/config/a.go", `package config; import _ "github.com/onewrite/onewrite/outbox"`),
		broken("internal/config/a.go", `package config; import _ "github.com/onewrite/onewrite/internal/servers"`),
		broken("torture/storm/a.go", `package storm; import _ "github.com/onewrite/onewrite/bench"`),
		broken("stray/a.go", `package stray`),
		broken("relay/a.go", `package relay; import _ "github.com/onewrite/onewrite/stray"`),
	}},
	{"one room for wiring", "only relay sees both sources and sinks, so that what runs is decided in one place", checkWiring, []source{
		broken("dashboard/a.go", `package dashboard; import _ "github.com/onewrite/onewrite/adapter/nats"`),
		broken("cmd/onewrite/a.go", `package main; import _ "github.com/onewrite/onewrite/adapter/nats"`),
	}},
	{"names", "a package is named after what it does; a drawer named util fills up with everything", checkNames, []source{
		broken("outbox/util/a.go", "package util"),
		broken("internal/common/a.go", "package commons"),
		broken("relay/a.go", "package types"),
		broken("pipeline/mocks/a.go", "package pipelinemocks"),
	}},
	{"exports are documented", "an export is a promise, and an undocumented one promises nothing that can be kept", checkExports, []source{
		broken("outbox/a.go", "package outbox\nfunc F() {}"),
		broken("outbox/a.go", "package outbox\n// t is hidden.\ntype t int\ntype T int"),
		broken("outbox/a.go", "package outbox\n// T is documented.\ntype T int\nfunc (*T) M() {}"),
		broken("outbox/a.go", "package outbox\n// T is documented.\ntype T interface {\n\tM()\n}"),
		broken("outbox/a.go", "package outbox\n// A group.\ntype (\n\tt int\n\tT int\n)"),
		broken("outbox/a.go", "package outbox\nvar V, w = 1, 2"),
		broken("outbox/a.go", "package outbox\nconst (\n\ta = iota\n\tB\n)"),
		broken("outbox/a.go", "package outbox\n//go:noinline\nfunc F() {}"),
	}},
	{"limits", "a file of 500 lines and a function of 70 are what fits in a head; beyond that there are two things in one", checkLimits, []source{
		broken("outbox/a.go", "package outbox\n"+strings.Repeat("// \n", 500)),
		broken("outbox/a.go", "package outbox\nfunc f() {\n"+strings.Repeat("_ = 1\n", 69)+"}"),
		broken("outbox/a.go", "package outbox\nvar f = func() {\n"+strings.Repeat("_ = 1\n", 69)+"}"),
	}},
	{"libraries own no process", "a library that exits, panics, or takes signals or the global logger takes them from the application that embeds it", checkCalls, []source{
		broken("relay/a.go", `package relay; import "os"; func f() { os.Exit(1) }`),
		broken("relay/a.go", `package relay; import "log"; func f() { log.Fatal(1) }`),
		broken("outbox/a.go", `package outbox; import l "log"; func f() { l.Println(1) }`),
		broken("outbox/a.go", `package outbox; import "log/slog"; func f() { slog.Info("x") }`),
		broken("pipeline/a.go", `package pipeline; import "os/signal"; func f() { signal.Notify(nil) }`),
		broken("pipeline/a.go", `package pipeline; func f() { panic("x") }`),
	}},
}

func TestHouse(t *testing.T) {
	files := load(t)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for i, s := range r.bad {
				if len(r.check(s)) == 0 {
					t.Errorf("the rule has gone blind: it accepts bad file %d\n%s", i, s.text)
				}
			}
			var found []string
			for _, s := range files {
				found = append(found, r.check(s)...)
			}
			report(t, r.reason, found)
		})
	}
}

func report(t *testing.T, reason string, found []string) {
	t.Helper()
	if len(found) > 0 {
		t.Errorf("%d found:\n\t%s\nwhy it matters: %s", len(found), strings.Join(found, "\n\t"), reason)
	}
}

// load reads every Go file of the module for every platform. It insists on a
// number of them: nothing may pass because nothing was looked at.
func load(t *testing.T) []source {
	t.Helper()
	var files []source
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return
		}
		text, err := os.ReadFile(filepath.FromSlash(name))
		if err != nil {
			t.Fatal(err)
		}
		s, err := parse(name, string(text))
		if err != nil {
			t.Fatal(err)
		}
		if !ast.IsGenerated(s.file) {
			files = append(files, s)
		}
	})
	dirs := make(map[string]bool)
	for _, s := range files {
		dirs[s.dir()] = true
	}
	if len(files) < 30 || len(dirs) < 8 {
		t.Fatalf("only %d files in %d packages found; is the test looking in the right place?", len(files), len(dirs))
	}
	return files
}

// walk visits the files of this module: no hidden folders, no build output, no
// testdata, no packages of other languages, no nested modules.
func walk(t *testing.T, visit func(name string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() {
			visit(filepath.ToSlash(name))
			return nil
		}
		base := d.Name()
		if name != "." && (strings.HasPrefix(base, ".") && base != ".ci" || base == "bin" || base == "testdata" || base == "node_modules") {
			return filepath.SkipDir
		}
		if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil && name != "." {
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// floors are the floors of the house from the ground up, by the first folder of
// a package. internal is not among them: any floor may use it.
var floors = []struct {
	name    string
	folders []string
}{
	{"the nouns", []string{"."}},
	{"libraries", []string{"outbox", "inbox", "pipeline", "reconcile", "guardian", "ledger", "audit"}},
	{"test kit", []string{"onewritetest"}},
	{"adapters", []string{"adapter"}},
	{"dashboard", []string{"dashboard"}},
	{"relay", []string{"relay"}},
	{"examples", []string{"examples"}},
	{"programs", []string{"cmd", "bench", "torture"}},
}

// floor returns the floor of a folder, or -1.
func floor(dir string) int {
	first, _, _ := strings.Cut(dir, "/")
	for i, f := range floors {
		if slices.Contains(f.folders, first) {
			return i
		}
	}
	return -1
}

// imports are the module's own folders that a file imports, and the others.
func imports(s source) (own, foreign []string) {
	for _, spec := range s.file.Imports {
		name, _ := strconv.Unquote(spec.Path.Value)
		switch rest, found := strings.CutPrefix(name, module+"/"); {
		case name == module:
			own = append(own, ".")
		case found:
			own = append(own, rest)
		default:
			foreign = append(foreign, name)
		}
	}
	return own, foreign
}

func checkFloors(s source) (found []string) {
	from := s.dir()
	own, foreign := imports(s)
	isInternal := func(dir string) bool { return strings.HasPrefix(dir, "internal/") }
	if floor(from) < 0 && !isInternal(from) {
		found = append(found, from+" is on no floor; give it one in all_test.go, or another place")
	}
	for _, to := range own {
		switch {
		case from == ".":
			found = append(found, s.path+" imports "+to+": the nouns import nothing of ours")
		case isInternal(from) && to != ".":
			found = append(found, s.path+" imports "+to+": internal packages build on the nouns alone")
		case isInternal(from), isInternal(to):
		case floor(to) < 0:
			found = append(found, s.path+" imports "+to+", which is on no floor")
		case floor(to) > floor(from):
			found = append(found, fmt.Sprintf("%s (%s) imports %s (%s): up", s.path, floors[floor(from)].name, to, floors[floor(to)].name))
		case strings.HasPrefix(from+"/", "torture/") && strings.HasPrefix(to, "torture/"): // the parts of one program
		case floor(to) == floor(from) && !strings.HasPrefix(from, to+"/"):
			found = append(found, s.path+" imports "+to+": sideways")
		}
	}
	for _, to := range foreign {
		if from == "." && !standard(to) {
			found = append(found, s.path+" imports "+to+": the nouns need the standard library only")
		}
	}
	return found
}

// standard reports whether an import path is the standard library's: only those
// have no dot in their first element.
func standard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

func checkWiring(s source) (found []string) {
	own, _ := imports(s)
	for _, to := range own {
		first, _, _ := strings.Cut(s.dir(), "/")
		if strings.HasPrefix(to, "adapter/") && !slices.Contains([]string{"adapter", "relay", "bench", "torture"}, first) {
			found = append(found, s.path+" imports "+to)
		}
	}
	return found
}

func checkNames(s source) (found []string) {
	for _, name := range []string{s.file.Name.Name, path.Base(s.dir())} {
		for _, drawer := range []string{"util", "utils", "common", "commons", "type", "types", "helper", "helpers", "mock", "mocks", "misc", "shared", "lib"} {
			if name == drawer {
				found = append(found, s.path+": a package named "+name)
			}
		}
	}
	return found
}

func checkExports(s source) (found []string) {
	if s.file.Name.Name == "main" {
		return nil
	}
	eachExport(s, func(name string, n ast.Node, documented bool) {
		if !documented {
			found = append(found, s.at(n)+": "+name+" has no comment")
		}
	})
	return found
}

// eachExport visits the exported constants, variables, types, functions,
// methods and interface methods of a file.
func eachExport(s source, visit func(name string, n ast.Node, documented bool)) {
	for _, decl := range s.file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && exportedReceiver(d) {
				visit(d.Name.Name, d, d.Doc.Text() != "")
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				eachSpec(d, spec, visit)
			}
		}
	}
}

func eachSpec(d *ast.GenDecl, spec ast.Spec, visit func(name string, n ast.Node, documented bool)) {
	switch spec := spec.(type) {
	case *ast.ValueSpec: // one comment over a group speaks for it
		for _, name := range spec.Names {
			if name.IsExported() {
				visit(name.Name, name, d.Doc.Text()+spec.Doc.Text()+spec.Comment.Text() != "")
			}
		}
	case *ast.TypeSpec:
		if !spec.Name.IsExported() {
			return
		}
		speaks := !d.Lparen.IsValid() || spec.Assign.IsValid() // over a group, for its aliases only
		visit(spec.Name.Name, spec, spec.Doc.Text() != "" || speaks && d.Doc.Text() != "")
		if iface, ok := spec.Type.(*ast.InterfaceType); ok {
			for _, m := range iface.Methods.List {
				for _, name := range m.Names {
					visit(spec.Name.Name+"."+name.Name, m, m.Doc.Text()+m.Comment.Text() != "")
				}
			}
		}
	}
}

// exportedReceiver is true for functions, and for methods of exported types.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

func checkLimits(s source) (found []string) {
	if n := strings.Count(s.text, "\n"); n > 500 {
		found = append(found, fmt.Sprintf("%s has %d lines, 500 are allowed", s.path, n))
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n.(type) {
		case *ast.FuncDecl, *ast.FuncLit:
			if lines := s.fset.Position(n.End()).Line - s.fset.Position(n.Pos()).Line + 1; lines > 70 {
				found = append(found, fmt.Sprintf("%s: a function of %d lines, 70 are allowed", s.at(n), lines))
			}
		}
		return true
	})
	return found
}

// checkCalls leaves programs alone: the process is theirs.
func checkCalls(s source) (found []string) {
	if first, _, _ := strings.Cut(s.dir(), "/"); first == "cmd" || first == "bench" || first == "torture" || first == "examples" && s.file.Name.Name == "main" {
		return nil
	}
	packages := make(map[string]string) // by the name it has in the file
	for _, spec := range s.file.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		packages[name] = p
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "panic" {
			found = append(found, s.at(n)+": panic; return an error")
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && ownsProcess(packages[x.Name], sel.Sel.Name) {
			found = append(found, s.at(n)+": "+x.Name+"."+sel.Sel.Name)
		}
		return true
	})
	return found
}

func ownsProcess(pkg, function string) bool {
	switch pkg {
	case "os":
		return function == "Exit"
	case "os/signal":
		return true
	case "log":
		return function != "New"
	case "log/slog":
		return slices.Contains([]string{"Default", "SetDefault", "Debug", "Info", "Warn", "Error", "Log", "DebugContext", "InfoContext", "WarnContext", "ErrorContext"}, function)
	}
	return false
}

// TestPackagesAreDocumented: a reader opens a package at its comment. It counts
// the exports too, since the rule above is about them.
func TestPackagesAreDocumented(t *testing.T) {
	documented, exports := make(map[string]bool), 0
	for _, s := range load(t) {
		documented[s.dir()] = documented[s.dir()] || s.file.Doc.Text() != ""
		eachExport(s, func(string, ast.Node, bool) { exports++ })
	}
	var found []string
	for dir, ok := range documented {
		if !ok {
			found = append(found, dir+" has no package comment")
		}
	}
	slices.Sort(found)
	report(t, "the comment over a package says what it is for and what it is not", found)
	if exports < 50 {
		t.Errorf("only %d exports found; is the test looking in the right place?", exports)
	}
	if broken("a.go", "// Copyright\n\npackage a").file.Doc.Text() != "" {
		t.Error("the rule has gone blind: any comment passes as the package's")
	}
}

// links says what else a library may link: a module path, or a prefix ending in
// a slash.
var links = map[string][]string{
	"outbox":            nil,
	"inbox":             nil,
	"outbox/pgxoutbox":  {"github.com/jackc/", "golang.org/x/"},
	"outbox/protocodec": {"google.golang.org/protobuf/"},
	"inbox/pgxinbox":    {"github.com/jackc/", "golang.org/x/"},
	"inbox/natsinbox":   {"github.com/nats-io/", "github.com/klauspost/compress/", "golang.org/x/"},
	"pipeline":          {"golang.org/x/"},
	// What users' tests link is the library under test, and what it needs.
	"onewritetest":         {module + "/outbox"},
	"onewritetest/pgxtest": {module + "/outbox", "github.com/jackc/", "golang.org/x/"},
}

// TestApplicationsLinkLittle: an application that publishes or handles events
// gets no broker client, no server and no driver from us.
func TestApplicationsLinkLittle(t *testing.T) {
	checked := 0
	for dir, allowed := range links {
		if _, err := os.Stat(filepath.FromSlash(dir)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		deps := dependencies(t, "./"+dir)
		if len(deps) < 10 {
			t.Errorf("only %d dependencies of %s found; is the test looking in the right place?", len(deps), dir)
		}
		report(t, dir+" is linked into applications; a client or driver of ours there is a conflict with theirs", strangers(dir, deps, allowed))
		checked++
	}
	if checked < 2 {
		t.Errorf("only %d libraries found", checked)
	}
	for _, bad := range []string{"github.com/nats-io/nats.go", "github.com/jackc/pgx/v5", module + "/adapter/nats", module + "/relay"} {
		if len(strangers("outbox", []string{"fmt", bad}, nil)) != 1 {
			t.Errorf("the rule has gone blind: it accepts %s", bad)
		}
	}
}

// strangers returns the dependencies that a library may not have. The floors
// below and internal are free; what those link is in the list itself.
func strangers(dir string, deps, allowed []string) (found []string) {
	for _, dep := range deps {
		own, isOwn := strings.CutPrefix(dep, module+"/")
		switch {
		case standard(dep), dep == module:
		case isOwn && (strings.HasPrefix(own, "internal/") || own == dir || strings.HasPrefix(dir, own+"/")):
		case slices.ContainsFunc(allowed, func(a string) bool { return strings.HasPrefix(dep, a) }):
		default:
			found = append(found, dir+" links "+dep)
		}
	}
	return found
}

// dependencies are the import paths of all that a package links.
func dependencies(t *testing.T, pattern string) (paths []string) {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath", pattern)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ ImportPath string }
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return paths
		} else if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p.ImportPath)
	}
}

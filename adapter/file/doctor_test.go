package file

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// examined examines a path; every finding must be whole.
func examined(t *testing.T, path string) []diagnosis.Finding {
	t.Helper()
	found := Examine(Config{Path: path})
	for _, f := range found {
		if f.Check == "" || f.Text == "" || strings.Contains(f.Text+f.Cure, "\n") || f.Severity > diagnosis.OK && f.Cure == "" {
			t.Errorf("not a whole finding of one line: %+v", f)
		}
	}
	return found
}

func wants(t *testing.T, found []diagnosis.Finding, s diagnosis.Severity, check, holds string) string {
	t.Helper()
	var b strings.Builder
	for _, f := range found {
		if f.Severity == s && f.Check == check && strings.Contains(f.Cure+"\x00"+f.Text, holds) {
			return f.Cure
		}
		fmt.Fprintf(&b, "%-8s %-10s %s | %s\n", f.Severity, f.Check, f.Text, f.Cure)
	}
	t.Errorf("no %v of %q with %q in\n%s", s, check, holds, b.String())
	return ""
}

func TestExamine(t *testing.T) {
	dir := t.TempDir()
	in := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const line = `{"specversion":"1.0","id":"1","source":"/a"}` + "\n"

	if found := examined(t, "-"); len(found) != 1 {
		t.Errorf("standard output: %v", found)
	}
	wants(t, examined(t, in("events.jsonl")), diagnosis.OK, "file", "is made when the first event comes")
	wants(t, examined(t, in("events.jsonl")), diagnosis.OK, "folder", "can be written")
	wants(t, examined(t, in("a", "b", "events.jsonl")), diagnosis.OK, "folder", in("a", "b")+" is made")
	wants(t, examined(t, dir), diagnosis.Problem, "file", "set path to a file, or to -")
	write(in("plain"), "x")
	wants(t, examined(t, in("plain", "events.jsonl")), diagnosis.Problem, "folder", "whose folders are folders")

	for text, want := range map[string]diagnosis.Severity{"": diagnosis.OK, line: diagnosis.OK, line + line[:20]: diagnosis.OK, "a note\n": diagnosis.OK, line + "a note": diagnosis.Problem, "a note": diagnosis.Problem} {
		write(in("it's"), text)
		cure := wants(t, examined(t, in("it's")), want, "file", "it's")
		if want == diagnosis.OK {
			continue
		}
		if out, err := exec.Command("sh", "-c", cure).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", cure, err, out)
		}
		wants(t, examined(t, in("it's")), diagnosis.OK, "file", "")
	}

	// Beside a sink that writes it, which leaves its lock file behind.
	s, err := Open(Config{Path: in("new.jsonl")})
	if err != nil {
		t.Fatal(err)
	}
	wants(t, examined(t, in("new.jsonl")), diagnosis.OK, "writer", fmt.Sprintf("process %d writes", os.Getpid()))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, f := range examined(t, in("new.jsonl")) {
		if f.Check == "writer" {
			t.Errorf("nobody writes: %+v", f)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 { // plain, it's, new.jsonl and its lock
		t.Errorf("something was made: %v, %v", entries, err)
	}
}

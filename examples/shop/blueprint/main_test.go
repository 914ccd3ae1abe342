package main

import (
	"bytes"
	"context"
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // the consumers' stores

	"github.com/onewrite/onewrite/internal/servers"
)

// The test binary plays the processes of the story.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "demo-child" {
		main()
	}
	os.Setenv("GORACE", "atexit_sleep_ms=10") // there are many processes
	os.Exit(m.Run())
}

// TestBlueprint is `make shop`, shorter: on the real servers, with all faults. Then what
// the consumers have is spoilt, and the program has to say so by its exit code.
func TestBlueprint(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts three servers and stops two of them: most of a minute")
	}
	onewrite, dir := build(t), filepath.Join(t.TempDir(), "run")
	code, out := play(t, "--onewrite", onewrite, "--dir", dir, "--orders", "600", "--pace", "4ms")
	if strings.Contains(out, "not installed") && !servers.Required() {
		t.Skip(out)
	}
	if code != 0 {
		log, _ := os.ReadFile(filepath.Join(dir, "onewrite.log"))
		t.Fatalf("exit code %d\n%s\n%s", code, out, log)
	}
	t.Log(out)
	for _, c := range []struct{ store, plant, sign string }{
		{"inventory", `DELETE FROM picked WHERE id = 7`, "inventory: 1 missing, 0 doubled"},
		{"fraud", `INSERT INTO looked (n, customer, seq) SELECT n, customer, seq FROM looked WHERE id = 5`, "fraud: 0 missing, 1 doubled"},
		{"search", `UPDATE changes SET id = 100000 WHERE id = (SELECT min(id) FROM changes WHERE step = 1)`, "search: 0 missing, 0 doubled, 1 out of order"},
	} {
		copied := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if code, out := play(t, "--count", copied); code != 0 {
			t.Fatalf("exit code %d before anything was planted\n%s", code, out)
		}
		spoil(t, filepath.Join(copied, c.store+".db"), c.plant)
		if code, out := play(t, "--count", copied); code != 1 || !strings.Contains(out, c.sign) {
			t.Errorf("%s: exit code %d\n%s", c.plant, code, out)
		}
	}
}

// TestRefuses: what cannot be run says why, and starts nothing.
func TestRefuses(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{1, "not empty", []string{"--dir", full}},
		{1, "no run that has ended", []string{"--count", full}},
		{1, "make build", []string{"--onewrite", filepath.Join(full, "none")}},
		{2, "flag", []string{"--nonsense"}},
	} {
		if code, out := play(t, c.args...); code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%q: exit code %d\n%s", c.args, code, out)
		}
	}
}

func play(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	var b bytes.Buffer
	code = run(context.Background(), args, &b, &b)
	return code, b.String()
}

// build builds onewrite as users have it.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "onewrite")
	if runtime.GOOS == "windows" {
		path += ".exe"
	}
	if out, err := exec.Command("go", "build", "-o", path, "../../../cmd/onewrite").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func spoil(t *testing.T, store, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", store)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	res, err := db.Exec(statement)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := res.RowsAffected(); n != 1 {
		t.Fatalf("%s: %d rows", statement, n)
	}
}

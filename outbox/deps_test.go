package outbox_test

import (
	"os/exec"
	"strings"
	"testing"
)

// An application that publishes must not link brokers, drivers or our engine.
func TestOnlyTheStandardLibraryIsLinked(t *testing.T) {
	const self = "github.com/onewrite/onewrite/outbox"
	for pkg, allowed := range map[string][]string{
		self:                nil,
		self + "/pgxoutbox": {"github.com/jackc/", "golang.org/x/"}, // x: what pgx itself needs
	} {
		out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", pkg).Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		deps := strings.Fields(string(out))
		if len(deps) == 0 {
			t.Fatal("go list found nothing, not even the package itself")
		}
		for _, dep := range deps {
			ok := dep == self || dep == pkg
			for _, a := range allowed {
				ok = ok || strings.HasPrefix(dep, a)
			}
			if !ok {
				t.Errorf("%s links %s: an application that publishes would carry it too; remove the import", pkg, dep)
			}
		}
	}
}

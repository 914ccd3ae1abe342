package relay_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/relay"
)

// What waits in the table of an import shows in the status, with the row that it
// waits for.
func TestStatusCountsWhatIsToBeImported(t *testing.T) {
	url, exec := newPostgres(t)
	exec(`CREATE TABLE old (id bigserial PRIMARY KEY, topic text); INSERT INTO old (topic) VALUES ('a'), ('no good'), ('b'), ('c')`)
	dir := t.TempDir()
	file := filepath.Join(dir, "onewrite.yaml")
	text := "sources: {shop: {type: postgres, url: '" + url + "', import: {legacy: {table: old, columns: {topic: topic}, order: [id]}}}}\n" +
		"destinations: {archive: {type: file, path: events.jsonl}}\nbus: {dir: data}\nlisten: off\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, _, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := relay.Migrate(t.Context(), t.Output(), cfg, relay.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, done := relay.New(cfg, relay.Options{ConfigPath: file}), make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	importing := func() int {
		if n := r.Status(ctx).Sources["shop"].Importing; n != nil {
			return int(*n)
		}
		return -1
	}
	until(t, "three rows wait", func() bool { return importing() == 3 })
	until(t, "the warning names the row", func() bool {
		return strings.Contains(strings.Join(r.Status(ctx).Warnings, "\n"), "SELECT * FROM old WHERE id = '2'")
	})
	exec(`UPDATE old SET topic = 'good' WHERE id = 2`)
	until(t, "nothing waits", func() bool { return importing() == 0 && len(r.Status(ctx).Warnings) == 0 })
	exec(`ALTER TABLE old RENAME TO older`) // what waits in a table that is not there, nobody knows
	until(t, "nothing is said of the rows", func() bool { return importing() == -1 })
	exec(`ALTER TABLE older RENAME TO old`)
	until(t, "nothing waits again", func() bool { return importing() == 0 })
	until(t, "all are delivered", func() bool { return r.Status(ctx).Destinations["archive"].Delivered == 4 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

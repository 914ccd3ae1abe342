package main

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/dashboard"
)

// TestParkedPayload: --payload is the event's payload byte for byte, and a retry that a
// filter refuses again says so.
func TestParkedPayload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shop.db")
	p := newProgram(t, fmt.Sprintf("sources: {shop: {type: sqlite, path: %q}}\ndestinations:\n  archive: {type: file, path: events.jsonl, filter: data.total > 1}\n", path))
	p.must("migrate")
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	const payload = `{"order":"<poison & \u00e9>",   "n":1.0,` + "\n" + ` "big":12345678901234567890}`
	if _, err := db.Exec(`INSERT INTO onewrite_outbox (topic, key, payload) VALUES ('order.placed', 'k', ?)`, payload); err != nil {
		t.Fatal(err)
	}
	p.start()
	var ref string
	wait(t, func() error {
		out, err := p.command("parked", "list", "archive", "--json").Output()
		if err != nil {
			return err
		}
		var all map[string][]dashboard.Parked
		if err := json.Unmarshal(out, &all); err != nil || len(all["archive"]) != 1 {
			return fmt.Errorf("parked: %s, %v", out, err)
		}
		ref = strconv.FormatUint(all["archive"][0].Ref, 10)
		return nil
	})
	if out, err := p.command("parked", "list").Output(); err != nil || !strings.HasSuffix(string(out), ": onewrite parked retry archive --all; to give one up: onewrite parked skip archive "+ref+"\n") {
		t.Errorf("the list is\n%s%v", out, err)
	}
	if out, err := p.command("parked", "show", "archive", ref, "--payload").Output(); err != nil || string(out) != payload {
		t.Errorf("the payload is\n%s\nand --payload shows\n%s\n%v", payload, out, err)
	}
	if out, err := p.command("parked", "show", "archive", ref).Output(); err != nil || strings.Contains(string(out), `"payload"`) || !strings.Contains(string(out), "poison") {
		t.Errorf("shown: %s, %v", out, err)
	}
	p.must("parked", "retry", "archive", ref)
	wait(t, func() error {
		text, err := os.ReadFile(p.log.Name())
		if err == nil && !strings.Contains(string(text), "it stays parked") {
			err = fmt.Errorf("it is not said that the event stays parked")
		}
		return err
	})
	p.must("parked", "skip", "archive", ref)
	if out, err := p.command("parked", "retry", "archive", "--all").Output(); err != nil || string(out) != "archive: nothing is parked\n" {
		t.Errorf("retry of nothing says %q, %v", out, err)
	}
	p.stop()
}

package postgres

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/masking"
	"github.com/onewrite/onewrite/internal/servers"
)

func rulesOf(t *testing.T, lines ...string) masking.Rules {
	t.Helper()
	rules, err := masking.Parse(lines)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// stops reads until an error comes, opening the source if it is closed, and returns it
// with what came before.
func (r *rig) stops() (events []onewrite.Event, err error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if r.src == nil {
		if err = r.tryOpen(ctx); err != nil {
			r.src = nil
			return nil, err
		}
	}
	src := r.src
	defer func() { _ = src.Close() }()
	r.src = nil
	for {
		b, err := src.Read(ctx)
		if err != nil {
			return events, err
		}
		if len(b.Events) > 0 {
			events, r.pos = append(events, b.Events...), b.Pos
			src.(interface{ Stored(onewrite.Pos) }).Stored(b.Pos)
		}
	}
}

// A process that was started with other rules takes up no table: what its rules would
// show waits, and comes masked after a restart.
func TestOtherRulesThanAtTheStart(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE plain (id int PRIMARY KEY); CREATE TABLE members (id int PRIMARY KEY, email text); INSERT INTO members VALUES (1, 'hidden-1')`, "plain")
		r.cfg.Known = &Known{}
		r.open()
		r.snapshots()
		sql(t, r.conn, `INSERT INTO plain VALUES (1)`)
		r.events(1)
		// A second process stands by.
		second := r.cfg
		second.Known = &Known{}
		if _, err := OpenSource(t.Context(), second, r.pos); !errors.Is(err, onewrite.ErrStandby) {
			t.Fatal(err)
		}
		mask := rulesOf(t, "public.members.email  hash")
		o := MigrateOptions{Capture: Capture{Source: "shop", Tables: []string{"plain", "members"}, Masks: mask, Snapshot: true}}
		if _, err := Migrate(t.Context(), r.url, o); err != nil {
			t.Fatal(err)
		}
		sql(t, r.conn, `INSERT INTO plain VALUES (2)`, `INSERT INTO members VALUES (2, 'hidden-2')`, `UPDATE members SET email = 'hidden-3' WHERE id = 1`, `INSERT INTO plain VALUES (3)`)
		const says = "columns: of public.members are other ones than this process was started with; restart onewrite"
		for _, cfg := range []Config{r.cfg, r.cfg, second} { // while it runs, when it opens again, and the one that stood by
			r.cfg = cfg
			events, err := r.stops()
			if !strings.HasSuffix(errText(err), says) {
				t.Errorf("it stops with %v", err)
			}
			for _, e := range events {
				if e.Topic != "public.plain" {
					t.Errorf("it tells %s of %s", e.Data, e.Topic)
				}
			}
		}
		r.cfg.Known, r.cfg.Masks, r.cfg.MaskKey, r.cfg.Tables = &Known{}, mask, "k", o.Capture.Tables
		r.open()
		seen := map[string]int{}
		for seen["members insert"] == 0 || seen["members update"] == 0 || seen["members snapshot"] == 0 {
			for _, e := range r.read().Events {
				seen[strings.TrimPrefix(e.Topic, "public.")+" "+e.Type]++
				if strings.Contains(string(e.Data), "hidden") {
					t.Errorf("%s", e.Data)
				}
			}
		}
		// Other rules for a table that it reads already.
		o.Capture.Masks = rulesOf(t, "public.members.email drop")
		got, err := Migrate(t.Context(), r.url, o)
		if err != nil || !strings.Contains(strings.Join(got, "; "), "public.members; restart") {
			t.Errorf("migrate says %q, %v", got, err)
		}
		if _, err := r.stops(); !strings.HasSuffix(errText(err), says) {
			t.Errorf("it stops with %v", err)
		}
		r.cfg.Known = &Known{} // at its start a process goes by its own configuration
		r.open()
		sql(t, r.conn, `INSERT INTO members VALUES (9, 'hidden-9')`)
		for key := ""; key != `{"id":9}`; {
			for _, e := range r.read().Events {
				key = e.Key
			}
		}
	})
}

// The script for an administrator stores the same rules, and an installation from before
// gets the column for them.
func TestRulesAreStored(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE members (id int PRIMARY KEY, email text, note text)`, "members")
		sql(t, r.conn, `ALTER TABLE onewrite.captured DROP COLUMN columns`)
		o := MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables, Masks: rulesOf(t, "*.note truncate 3", "public.members.email hash"), Snapshot: true}}
		script, err := SchemaWithCapture(t.Context(), r.url, o)
		if err != nil {
			t.Fatal(err)
		}
		mustPsql(t, r.url, script)
		if got := one[string](t, r.conn, `SELECT columns FROM onewrite.captured`); got != "*.note truncate 3\npublic.members.email hash" {
			t.Errorf("the script stores %q", got)
		}
		sql(t, r.conn, `ALTER TABLE onewrite.captured DROP COLUMN columns`)
		for i, want := range []int{1, 0} {
			if got, err := Migrate(t.Context(), r.url, o); err != nil || len(got) != want {
				t.Errorf("migrate %d says %q, %v", i, got, err)
			}
		}
	})
}

// A rule that names what is not there is found by migrate and by the doctor, and said by
// a reader.
func TestRulesThatHideNothing(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE members (id int PRIMARY KEY, email text, twice int GENERATED ALWAYS AS (id * 2) STORED); CREATE TABLE other (id int)`, "members")
		for rule, want := range map[string]string{
			"public.members.emial hash":     "the column emial of public.members",
			"public.members only id, emial": "the column emial of public.members",
			"public.memers.email hash":      "put public.memers into tables:",
			"public.other only id":          "put public.other into tables:",
			"public.members.id drop":        "put id into the list of only",
			"public.members only email":     "put id into the list of only",
			"*.id drop":                     "put id into the list of only",
		} {
			o := MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables, Masks: rulesOf(t, rule)}}
			if _, err := Migrate(t.Context(), r.url, o); !strings.Contains(errText(err), want) {
				t.Errorf("%s: migrate says %v", rule, err)
			}
			if _, err := SchemaWithCapture(t.Context(), r.url, o); !strings.Contains(errText(err), want) {
				t.Errorf("%s: migrate --print says %v", rule, err)
			}
			if f := findingOf(Examine(t.Context(), r.url, o), "columns"); f.Severity != diagnosis.Problem || !strings.Contains(f.Text+"; "+f.Cure, want) {
				t.Errorf("%s: the doctor says %s; %s", rule, f.Text, f.Cure)
			}
		}
		o := MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables, Masks: rulesOf(t, "*.ssn drop", "public.members.twice drop")}}
		if got, err := Migrate(t.Context(), r.url, o); err != nil || !strings.Contains(strings.Join(got, "; "), `warning: columns: "*.ssn drop" matches no column`) {
			t.Errorf("migrate says %q, %v", got, err)
		}
		if f := findingOf(Examine(t.Context(), r.url, o), "columns"); f.Severity != diagnosis.Warning {
			t.Errorf("the doctor says %s", f.Text)
		}
		said := make(chan string, 100)
		r.cfg.Trouble = func(what, problem string) { said <- what + ": " + problem }
		r.cfg.Masks = rulesOf(t, "*.ssn drop", "public.memers.email hash", "public.members.twice drop")
		r.open()
		for text := ""; ; {
			if text = <-said; strings.HasPrefix(text, "columns: ") {
				if !strings.Contains(text, "*.ssn drop") || !strings.Contains(text, "public.memers.email hash") {
					t.Errorf("it is said %s", text)
				}
				break
			}
		}
		r.snapshots()
		sql(t, r.conn, `INSERT INTO members VALUES (1, 'a')`) // a generated column is there, though it is not sent
		r.events(1)
	})
}

// A column that is renamed while it is masked is not shown under its new name: reading
// stops there, with all that came before on the bus.
func TestRenamedColumnStaysHidden(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE members (id int PRIMARY KEY, email text)`, "members")
		r.cfg.Masks, r.cfg.MaskKey = rulesOf(t, "public.members.email hash"), "k"
		r.migrate()
		r.open()
		r.snapshots()
		_ = r.src.Close()
		r.src = nil
		sql(t, r.conn, `INSERT INTO members VALUES (1, 'hidden-1')`, `ALTER TABLE members RENAME email TO mail`, `INSERT INTO members VALUES (2, 'hidden-2')`)
		var events []onewrite.Event
		for range 2 {
			more, err := r.stops()
			if events = append(events, more...); !strings.Contains(errText(err), "the column email of public.members, and there is none; write the name") {
				t.Errorf("it stops with %v", err)
			}
		}
		if len(events) != 1 || strings.Contains(string(events[0].Data), "hidden") {
			t.Errorf("%d events came before", len(events))
		}
		r.cfg.Masks = rulesOf(t, "public.members.mail hash")
		r.migrate()
		r.open()
		if e := r.events(1)[0]; e.Key != `{"id":2}` || strings.Contains(string(e.Data), "hidden") {
			t.Errorf("%s %s", e.Key, e.Data)
		}
	})
}

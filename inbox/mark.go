package inbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// layout is how a dialect names and writes the tables.
type layout struct {
	seen, watermark string
	dollar          bool // $1, $2 instead of ?
	perStatement    int  // messages that one statement can mark
	skipLocked      string
	schema          string
}

var layouts = map[Dialect]layout{
	Postgres: {"onewrite_inbox.seen", "onewrite_inbox.watermark", true, 8000, " FOR UPDATE SKIP LOCKED", postgresSchema},
	SQLite:   {"onewrite_inbox_seen", "onewrite_inbox_watermark", false, 4000, "", sqliteSchema},
}

// values writes n rows of so many parameters.
func (l layout) values(b *strings.Builder, n, width int) {
	for i := range n * width {
		switch {
		case i == 0:
			b.WriteByte('(')
		case i%width == 0:
			b.WriteString("), (")
		default:
			b.WriteString(", ")
		}
		if l.dollar {
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(i + 1))
		} else {
			b.WriteByte('?')
		}
	}
	b.WriteByte(')')
}

// identity tells events apart.
type identity struct{ source, id string }

// markIDs marks those of the messages that which names, by their ids.
func (in *Inbox) markIDs(ctx context.Context, query Query, messages []Message, which []int, outcomes []Outcome) error {
	for chunk := range slices.Chunk(which, in.layout.perStatement) {
		// In one order, so that two batches that share events do not wait for
		// each other.
		ordered := slices.Clone(chunk)
		slices.SortFunc(ordered, func(a, b int) int {
			ma, mb := &messages[a], &messages[b]
			return cmp.Or(strings.Compare(ma.Source, mb.Source), strings.Compare(ma.ID, mb.ID), a-b)
		})
		var b strings.Builder
		b.WriteString("INSERT INTO " + in.layout.seen + " (consumer, source, id) VALUES ")
		in.layout.values(&b, len(ordered), 3)
		b.WriteString(" ON CONFLICT (consumer, source, id) DO NOTHING RETURNING source, id")
		args := make([]any, 0, 3*len(ordered))
		for _, i := range ordered {
			args = append(args, in.consumer, messages[i].Source, messages[i].ID)
		}
		fresh := make(map[identity]bool, len(ordered))
		err := query(ctx, b.String(), args, func(scan func(...any) error) error {
			var k identity
			err := scan(&k.source, &k.id)
			fresh[k] = true
			return err
		})
		if err != nil {
			return in.failed(err)
		}
		for _, i := range chunk {
			k := identity{messages[i].Source, messages[i].ID}
			outcomes[i] = Duplicate
			if fresh[k] {
				outcomes[i] = Applied
				delete(fresh, k) // the same event twice in a batch
			}
		}
	}
	return nil
}

// lane is a unit of order, and the messages of one call that are in it.
type lane struct {
	source, name string
	messages     []int
	last         string // the greatest place
}

// lanes sorts the messages into their lanes, in one order of the lanes, so that two
// batches that share lanes do not wait for each other.
func lanes(messages []Message, which []int) []*lane {
	type name struct{ source, lane string }
	by := map[name]*lane{}
	var all []*lane
	for _, i := range which {
		k, place, _ := messages[i].place()
		l := by[name{messages[i].Source, k}]
		if l == nil {
			l = &lane{source: messages[i].Source, name: k}
			by[name{l.source, l.name}] = l
			all = append(all, l)
		}
		l.messages = append(l.messages, i)
		l.last = max(l.last, place)
	}
	slices.SortFunc(all, func(a, b *lane) int {
		return cmp.Or(strings.Compare(a.source, b.source), strings.Compare(a.name, b.name))
	})
	return all
}

// markPlaces moves the watermarks of the lanes of those messages that which names.
// The statement keeps in each row what the watermark was before, and returns it: so
// one round trip both moves it and tells what is new, whoever else moves it at the
// same time.
func (in *Inbox) markPlaces(ctx context.Context, query Query, messages []Message, which []int, outcomes []Outcome) error {
	for chunk := range slices.Chunk(lanes(messages, which), in.layout.perStatement) {
		var b strings.Builder
		b.WriteString("INSERT INTO " + in.layout.watermark + " AS w (consumer, source, lane, place) VALUES ")
		in.layout.values(&b, len(chunk), 4)
		b.WriteString(" ON CONFLICT (consumer, source, lane) DO UPDATE SET before = w.place," +
			" place = CASE WHEN w.place < excluded.place THEN excluded.place ELSE w.place END RETURNING source, lane, before")
		args := make([]any, 0, 4*len(chunk))
		for _, l := range chunk {
			args = append(args, in.consumer, l.source, l.name, l.last)
		}
		type name struct{ source, lane string }
		before := make(map[name]string, len(chunk))
		err := query(ctx, b.String(), args, func(scan func(...any) error) error {
			var k name
			var was string
			err := scan(&k.source, &k.lane, &was)
			before[k] = was
			return err
		})
		if err != nil {
			return in.failed(err)
		}
		var gap error
		for _, l := range chunk {
			if err := l.judge(messages, before[name{l.source, l.name}], outcomes); err != nil && gap == nil {
				gap = err
			}
		}
		if gap != nil {
			return gap
		}
	}
	return nil
}

// judge tells what is new in a lane whose last event so far was at place was.
func (l *lane) judge(messages []Message, was string, outcomes []Outcome) error {
	for _, i := range l.messages {
		m := &messages[i]
		_, place, _ := m.place()
		switch {
		case place <= was:
			outcomes[i] = Duplicate
		case m.After != "" && was != "" && was < m.After:
			outcomes[i] = Gap
			return &GapError{Source: l.source, Lane: l.name, ID: m.ID, Last: was, After: m.After}
		default:
			outcomes[i] = Applied
			was = place
		}
	}
	return nil
}

// failed adds the cure to an error of the database.
func (in *Inbox) failed(err error) error {
	return fmt.Errorf("inbox: mark in %s: %w (missing tables are made by `onewrite migrate --inbox`)", in.layout.seen, err)
}

// trim is the statement that forgets all ids of a consumer but the last keep. Those
// that another process is about to forget are left to it.
func (l layout) trim(consumer string, keep int) (query string, args []any) {
	p := func(n int) string {
		if l.dollar {
			return "$" + strconv.Itoa(n)
		}
		return "?" + strconv.Itoa(n)
	}
	// The oldest id to forget is found by counting from the newest: numbers are
	// also used up by repeats, so arithmetic with them would forget too much.
	query = fmt.Sprintf(`DELETE FROM %[1]s WHERE consumer = %[2]s AND n IN (SELECT n FROM %[1]s WHERE consumer = %[2]s
		AND n <= (SELECT n FROM %[1]s WHERE consumer = %[2]s ORDER BY n DESC LIMIT 1 OFFSET %[3]s)%[4]s)`, l.seen, p(1), p(2), l.skipLocked)
	return query, []any{consumer, keep}
}

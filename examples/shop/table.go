package shop

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// screen shows the story. On a terminal the line of progress changes in place;
// elsewhere each quarter gets a line.
type screen struct {
	out      io.Writer
	terminal bool
	quarter  int  // the last one shown
	open     bool // a line of progress stands on the terminal
}

// newScreen writes to out; silent writes nothing.
func newScreen(out io.Writer, silent bool) *screen {
	if silent {
		return &screen{out: io.Discard}
	}
	s := &screen{out: out}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		s.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return s
}

func (s *screen) opening(p plan, r Report) {
	fmt.Fprintf(s.out, `An order service on %s, and five systems that have to learn of every order.
%s buyers come, 500 a second; %d of them want the last console. %.1f %% of the calls
fail, %.0f %% at the peak, and processes are killed. Seed %d.

`, r.Database, thousands(len(p.purchases)), fans, calmFaults/10.0, peakFaults/10.0, r.Seed)
}

// title is how an act is called.
func title(naive bool) string {
	if naive {
		return "Act one, dual writes"
	}
	return "Act two, onewrite"
}

func (s *screen) progress(naive bool, served, total int, kills map[string]int) {
	killed := 0
	for _, n := range kills {
		killed += n
	}
	processes := "processes"
	if killed == 1 {
		processes = "process"
	}
	text := fmt.Sprintf("%s: %s of %s buyers served, %d %s killed", title(naive), thousands(served), thousands(total), killed, processes)
	if s.terminal {
		s.line(text)
		return
	}
	if q := 4 * served / max(1, total); q > s.quarter {
		s.quarter = q
		fmt.Fprintln(s.out, text)
	}
}

func (s *screen) quiet(consumer string, closed, customers int) {
	if s.terminal {
		s.line(fmt.Sprintf("%s: %s has the last event of %s of %s customers", title(false), consumer, thousands(closed), thousands(customers)))
	}
}

// line puts a text in the place of the one before.
func (s *screen) line(text string) {
	fmt.Fprintf(s.out, "\r%-78s", text)
	s.open = true
}

func (s *screen) done(naive bool, a Act) {
	if s.open {
		fmt.Fprintf(s.out, "\r%-78s\r", "")
	}
	s.open, s.quarter = false, 0
	fmt.Fprintf(s.out, "%s: %s orders committed, %s rolled back, %s calls spoilt, %s killed, %.1f s\n", title(naive),
		thousands(a.Committed), thousands(a.RolledBack), thousands(a.Faults), killsText(a.Kills), a.Seconds)
}

func killsText(kills map[string]int) string {
	var parts []string
	for _, who := range []string{"service", "consumer", "onewrite"} {
		if n := kills[who]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %dx", who, n))
		}
	}
	return strings.Join(parts, ", ")
}

// closing writes the table and what it means.
func (s *screen) closing(r Report) error {
	fmt.Fprintln(s.out)
	if err := writeTable(s.out, r); err != nil {
		return err
	}
	one, two := r.Naive.sum(), r.Onewrite.sum()
	if len(r.Problems) > 0 {
		fmt.Fprintf(s.out, "\nThis did not go as it should (%.0f s):\n", r.Seconds)
		for _, p := range r.Problems {
			fmt.Fprintln(s.out, " -", p)
		}
		return nil
	}
	_, err := fmt.Fprintf(s.out, `
Two writes: %s orders never reached a system, %s reached one twice, %s came in the
wrong order. One write, same buyers, same faults: nothing missing, nothing twice,
nothing out of order; %s repeats came and were recognised. The last console was
sold once. %s effects were counted from the consumers' own stores in %.0f s.

Read on in examples/shop: naive.go has the calls of act one; service.go publishes
in their place; receive.go remembers what it has done. Phantom: for an order that
was never committed. Wrong totals: sums in the store that the orders do not give.
`, thousands(one.Missing), thousands(one.Doubled), thousands(one.OutOfOrder),
		thousands(r.Onewrite.Repeats), thousands(one.Effects+two.Effects), r.Seconds)
	return err
}

func writeTable(w io.Writer, r Report) error {
	const row = "%-13s%10s%10s%10s%10s%15s%10s%15s\n"
	var b strings.Builder
	for _, act := range []struct {
		name string
		Act
	}{{"dual writes", r.Naive}, {"onewrite", r.Onewrite}} {
		fmt.Fprintf(&b, row, act.name, "committed", "effects", "missing", "doubled", "out of order", "phantom", "wrong totals")
		for _, c := range act.Tallies {
			fmt.Fprintf(&b, row, "  "+c.Consumer, thousands(act.Committed), thousands(c.Effects), thousands(c.Missing),
				thousands(c.Doubled), thousands(c.OutOfOrder), thousands(c.Phantom), thousands(c.WrongTotals))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// kept says how to look at what is left running.
func (s *screen) kept(dir, listen string, databases ...database) {
	fmt.Fprintf(s.out, "\nAct two is still running: http://%s/\nIts stores and its configuration stay in %s\n", listen, dir)
	for _, d := range databases {
		if u, err := url.Parse(d.URL); err == nil && d.URL != "" {
			fmt.Fprintf(s.out, "Remove its database later: DROP DATABASE %s WITH (FORCE)\n", strings.TrimPrefix(u.Path, "/"))
		}
	}
	fmt.Fprintln(s.out, "Ctrl-C ends it.")
}

// thousands writes a number with commas.
func thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

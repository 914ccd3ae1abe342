package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// logProgram is the program beside a log that it reads, as users run it.
type logProgram struct {
	*logBacklog
	cmd  *exec.Cmd
	addr string
	to   string // the destination that rows have to reach; empty: the bus
}

// newLogProgram starts the program on an empty table, with what else its
// configuration says.
func newLogProgram(b *testing.B, rest string) *logProgram {
	b.Helper()
	return newLogProgramOn(b, fmt.Sprintf("{dir: %q, max_size: 20GB}", filepath.Join(b.TempDir(), "bus")), rest)
}

// newLogProgramOn is newLogProgram with a bus.
func newLogProgramOn(b *testing.B, bus, rest string) *logProgram {
	b.Helper()
	l := newLogTable(b)
	cmd, addr := runningOn(b, bus, fmt.Sprintf("{type: postgres, url: %q, tables: [public.orders]}", l.url), rest)
	p := &logProgram{logBacklog: l, cmd: cmd, addr: addr}
	p.walsender()
	return p
}

// walsender waits until the log is read and returns the server's process for it.
func (p *logProgram) walsender() (pid int) {
	p.b.Helper()
	await(p.b, time.Minute, "the log is read", func() bool {
		return p.db.QueryRow(`SELECT active_pid FROM pg_replication_slots WHERE active AND slot_name = (SELECT slot FROM onewrite.log)`).Scan(&pid) == nil
	})
	return pid
}

// arrived waits until every row of the table is on the bus, or at its destination.
func (p *logProgram) arrived(limit time.Duration) {
	p.b.Helper()
	await(p.b, limit, "every row is on the bus", seldom(func() bool {
		s, ok := status(p.addr)
		if p.to != "" {
			return ok && s.Destinations[p.to].Delivered >= uint64(p.rows)
		}
		return ok && s.Sources["shop"].Events >= uint64(p.rows)
	}))
}

// drain starts the program, which rests, on n rows that it has not read, and ends
// it when they are on the bus. The time is that of the whole process.
func (p *logProgram) drain(got samples, n int) {
	p.b.Helper()
	start := time.Now()
	p.cmd = again(p.b, p.cmd)
	walsender := p.walsender()
	p.arrived(5 * time.Minute)
	rows := float64(n)
	got.add("rows/s", rows/time.Since(start).Seconds())
	got.add("cpu-s/M", cpuSeconds(p.b, p.cmd.Process.Pid)*1e6/rows)
	got.add("walsender-cpu-s/M", cpuSeconds(p.b, walsender)*1e6/rows)
	got.add("peak-MB", procStatus(p.b, p.cmd.Process.Pid, "VmHWM")/1000)
	p.caughtUp()
	end(p.cmd, os.Interrupt)
}

// caughtUp lets the program run until the server would decode nothing of the backlog again:
// it has let go of all that lies before its last checkpoint. A slot that is new holds nothing
// of before either.
func (p *logProgram) caughtUp() {
	p.b.Helper()
	await(p.b, time.Minute, "the slot is past the last checkpoint", func() bool {
		var past bool
		err := p.db.QueryRow(`SELECT restart_lsn >= redo_lsn FROM pg_replication_slots, pg_control_checkpoint() WHERE slot_name = (SELECT slot FROM onewrite.log)`).Scan(&past)
		return err == nil && past
	})
}

// BenchmarkLogByProgram carries a million rows from the log into the bus by the
// program, and reports the CPU time that it and the server's walsender take, and
// its largest memory in any of the runs.
func BenchmarkLogByProgram(b *testing.B) {
	for _, perTx := range []int{1, 1000} {
		b.Run(strconv.Itoa(perTx), func(b *testing.B) {
			p := newLogProgram(b, "")
			end(p.cmd, os.Interrupt)
			n, got := short(logRows), samples{}
			for range runs {
				p.load(n, perTx)
				p.drain(got, n)
			}
			got["peak-MB"] = []float64{slices.Max(got["peak-MB"])}
			got.report(b)
		})
	}
}

package servers

import "testing"

// own ends the test when others use the server too.
func (p *PG) own(tb testing.TB) {
	tb.Helper()
	if !p.alone {
		tb.Fatal("servers: other tests share this server; take servers.NewPostgres")
	}
}

// Stop stops the server in order (fast shutdown) and waits for its end.
func (p *PG) Stop(tb testing.TB) {
	tb.Helper()
	p.own(tb)
	if err := p.proc.stop(false); err != nil {
		tb.Fatal(err)
	}
}

// Crash stops the server at once, without a checkpoint; the next start recovers
// from the WAL.
func (p *PG) Crash(tb testing.TB) {
	tb.Helper()
	p.own(tb)
	if err := p.proc.stop(true); err != nil {
		tb.Fatal(err)
	}
}

// Start starts a stopped server on the same port and data and waits until it
// answers. Options add to those of [NewPostgres].
func (p *PG) Start(tb testing.TB, options ...Option) {
	tb.Helper()
	p.own(tb)
	if p.proc.running() {
		return
	}
	for _, o := range options {
		o(p)
	}
	if err := p.start(); err != nil {
		tb.Fatal(err)
	}
}

// Restart is Stop, or Crash if crash is true, and Start.
func (p *PG) Restart(tb testing.TB, crash bool) {
	tb.Helper()
	p.own(tb)
	if err := p.Bounce(crash); err != nil {
		tb.Fatal(err)
	}
}

// Pause freezes every process of the server: connections stay open and nothing
// answers. Resume, Stop, Crash or the end of the test thaw it.
func (p *PG) Pause(tb testing.TB) {
	tb.Helper()
	p.own(tb)
	if err := p.proc.freeze(); err != nil {
		tb.Fatal(err)
	}
}

// Resume lets a paused server go on.
func (p *PG) Resume(tb testing.TB) {
	tb.Helper()
	p.own(tb)
	p.proc.thaw()
}

package servers

// Launch starts a server for a program that is no test; Shutdown ends it. The
// error says how to get a server that is not there.
func Launch(version int, options ...Option) (*PG, error) {
	p, err := startPostgres(version, options...)
	if err == nil {
		p.alone = true
	}
	return p, err
}

// Shutdown ends a server of [Launch] and removes what it held.
func (p *PG) Shutdown() error { return p.proc.close() }

// Bounce stops the server of [Launch], at once if crash is set, so that it has to
// recover from its log, and starts it again.
func (p *PG) Bounce(crash bool) error {
	if err := p.proc.stop(crash); err != nil {
		return err
	}
	return p.start()
}

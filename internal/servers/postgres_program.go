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

// Data returns the folder that holds all of a server of [Launch].
func (p *PG) Data() string { return p.proc.path("data") }

// Down stops the server of [Launch], at once if crash is set; Up starts it again on
// what is in its folder, with more options.
func (p *PG) Down(crash bool) error { return p.proc.stop(crash) }

// Up starts a server that is down.
func (p *PG) Up(options ...Option) error {
	for _, o := range options {
		o(p)
	}
	return p.start()
}

// Replace starts a server of [Launch] that is down at the address of another one that is
// down too, with the login of that one.
func (p *PG) Replace(other *PG) error {
	p.port, p.base = other.port, other.base
	return p.start()
}

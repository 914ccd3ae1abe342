package storm

import "sync"

// gate keeps writers between two transactions while the database is exchanged.
type gate struct {
	mu     sync.Mutex
	moved  sync.Cond
	shut   bool
	inside int
}

func (g *gate) change(do func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moved.L = &g.mu
	do()
	g.moved.Broadcast()
}

// enter waits until the gate is open.
func (g *gate) enter() {
	g.change(func() {
		for g.shut {
			g.moved.Wait()
		}
		g.inside++
	})
}

func (g *gate) leave() { g.change(func() { g.inside-- }) }

// pass is for a writer that has no transaction open.
func (g *gate) pass() {
	g.leave()
	g.enter()
}

// hold shuts the gate and waits until every writer stands before it.
func (g *gate) hold() {
	g.change(func() {
		g.shut = true
		g.moved.Broadcast()
		for g.inside > 0 {
			g.moved.Wait()
		}
	})
}

func (g *gate) release() { g.change(func() { g.shut = false }) }

// held reports whether somebody waits for the writers.
func (g *gate) held() (shut bool) {
	g.change(func() { shut = g.shut })
	return shut
}

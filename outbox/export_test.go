package outbox

// Waiting returns how many callers stand in the group's queue.
func Waiting(g *Group) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.queue)
}

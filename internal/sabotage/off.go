//go:build !owbug

package sabotage

// Bug names the planted bug of this run; in a real build there is none.
const Bug = ""

// At is a fail point; in a real build nothing happens there.
func At(string) error { return nil }

//go:build !unix

package servers

import (
	"errors"
	"os/exec"
)

// errNoProcess: servers are watched by a POSIX shell, and there is none here.
var errNoProcess = errors.New("servers: this system cannot start test servers; name running ones in the environment, ONEWRITE_TEST_POSTGRES_15=postgres://…")

type process struct {
	dir string
	env []string
}

func newProcess(_, _, _ string) (*process, error) { return nil, errNoProcess }
func (p *process) path(name string) string        { return name }
func (p *process) write(_, _ string) error        { return errNoProcess }
func (p *process) command(bin string, args ...string) *exec.Cmd {
	return exec.Command(bin, args...)
}
func (p *process) run(_ string, _ ...string) error   { return errNoProcess }
func (p *process) start(_ string, _ ...string) error { return errNoProcess }
func (p *process) running() bool                     { return false }
func (p *process) stop(_ bool) error                 { return errNoProcess }
func (p *process) terminate() error                  { return errNoProcess }
func (p *process) kill() error                       { return errNoProcess }
func (p *process) pid() int                          { return 0 }
func (p *process) give(_ string) error               { return errNoProcess }
func (p *process) freeze() error                     { return errNoProcess }
func (p *process) thaw()                             {}
func (p *process) close() error                      { return errNoProcess }
func (p *process) logTail() string                   { return "" }

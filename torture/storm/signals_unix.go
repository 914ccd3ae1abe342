//go:build unix

package storm

import "syscall"

// What freezes a process, and what thaws it.
const (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
)

//go:build !unix

package storm

import "syscall"

// There is no freezing here; a storm that asks for it fails at its proof.
const (
	sigStop = syscall.Signal(0x13)
	sigCont = syscall.Signal(0x12)
)

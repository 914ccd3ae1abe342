// Command onewrite moves committed events from databases to every other system.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(Main()) }

// Main runs the program and returns its exit code: 0 done, 1 failed, 2 usage or
// configuration, 3 found what it was asked to look for, 130 interrupted.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var code exitCode
	if errors.As(err, &code) {
		if code.err != nil {
			fmt.Fprintln(os.Stderr, "onewrite:", code.err)
		}
		return code.code
	}
	if ctx.Err() != nil {
		return 130
	}
	fmt.Fprintln(os.Stderr, "onewrite:", err)
	return 1
}

// exitCode is an error that decides the exit code.
type exitCode struct {
	code int
	err  error
}

func (e exitCode) Error() string {
	if e.err == nil {
		return fmt.Sprint("exit ", e.code)
	}
	return e.err.Error()
}

func (e exitCode) Unwrap() error { return e.err }

// usage marks an error of usage or configuration.
func usage(err error) error { return exitCode{2, err} }

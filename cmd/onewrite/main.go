// Command onewrite moves committed events from databases to every other system.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
)

func main() { os.Exit(Main()) }

// Main runs the program and returns its exit code: 0 done, 1 failed, 2 usage or
// configuration, 3 found what it was asked to look for, 130 interrupted.
func Main() int {
	ctx, interrupted := untilSignal()
	err := newRoot().ExecuteContext(ctx)
	if interrupted() || errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return 130 // by an interrupt also when what was under way ended well
	}
	if err == nil {
		return 0
	}
	if strings.HasPrefix(err.Error(), "unknown command") && !strings.Contains(err.Error(), "--help") {
		err = usage(fmt.Errorf("%w; see onewrite --help", err))
	}
	var code exitCode
	if errors.As(err, &code) {
		if code.err != nil {
			fmt.Fprintln(os.Stderr, "onewrite:", code.err)
		}
		return code.code
	}
	fmt.Fprintln(os.Stderr, "onewrite:", err)
	return 1
}

// untilSignal returns a context that ends at SIGTERM, which asks for a clean
// stop, or at an interrupt, and whether it was an interrupt. A second signal
// ends the process at once.
func untilSignal() (ctx context.Context, interrupted func() bool) {
	ctx, cancel := context.WithCancel(context.Background())
	var hit atomic.Bool
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		hit.Store(<-signals == os.Interrupt)
		signal.Stop(signals)
		cancel()
	}()
	return ctx, hit.Load
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

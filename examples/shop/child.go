package shop

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// ready is the line with which a child says that it listens.
const ready = "ready"

// Child is the body of the processes that [Demo] starts: the hidden command
// `onewrite demo-child service|consumer|keeper ...`. args are the words after
// demo-child; only the first counts, the others are for people who list
// processes.
//
// The first line of stdin is the child's settings as JSON. After that stdin
// stays open for as long as the demo lives: when it ends, by whatever cause, the
// child ends too, and Child returns nil. Every other error is one to print; the
// caller then exits with 1. A goroutine that waits for the end of stdin remains,
// so Child is the last thing that its process does.
func Child(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	return child(ctx, args, stdin, map[string]func(context.Context, []byte) error{
		"service": func(ctx context.Context, line []byte) error {
			return with(line, func(s serviceSettings) error { return serve(ctx, s) })
		},
		"consumer": func(ctx context.Context, line []byte) error {
			return with(line, func(s consumerSettings) error { return consume(ctx, s, stdout) })
		},
		"keeper": func(ctx context.Context, line []byte) error {
			return with(line, func(s keeperSettings) error { return keep(ctx, s, stdout) })
		},
	})
}

// child plays the role that args name, with the settings on stdin.
func child(ctx context.Context, args []string, stdin io.Reader, roles map[string]func(context.Context, []byte) error) error {
	if len(args) == 0 {
		return errors.New("shop: this command is started by `onewrite demo`, with service, consumer or keeper; run that instead")
	}
	in := bufio.NewReader(stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return errors.New("shop: no settings on stdin; this command is started by `onewrite demo`, run that instead")
	}
	parent, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() {
		_, _ = io.Copy(io.Discard, in)
		end(errParentGone)
	}()
	play := roles[args[0]]
	if play == nil {
		return fmt.Errorf("shop: no child is named %q", args[0])
	}
	err = play(parent, line)
	if errors.Is(context.Cause(parent), errParentGone) {
		return nil
	}
	return err
}

var errParentGone = errors.New("the demo has ended")

func with[S any](line []byte, run func(S) error) error {
	var s S
	if err := json.Unmarshal(line, &s); err != nil {
		return fmt.Errorf("shop: the settings cannot be read: %w", err)
	}
	return run(s)
}

// keeperSettings is what a keeper is told.
type keeperSettings struct {
	Args []string // of the program to run
	Dir  string
	Env  []string // added to the keeper's own
	Log  string   // the file that gets what the program prints
}

// keep runs a program that knows nothing of this story, onewrite itself, and
// ends it when the demo is gone: a child that is killed cannot take its own
// children along, and one that is not looking at stdin would stay for ever. It
// prints the program's process id, so that the demo can kill the program itself.
func keep(ctx context.Context, s keeperSettings, stdout io.Writer) error {
	if len(s.Args) == 0 {
		return errors.New("shop: the keeper has nothing to run")
	}
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("shop: %w", err)
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, s.Args[0], s.Args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, log, log
	cmd.Env = append(os.Environ(), s.Env...)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("shop: %w", err)
	}
	fmt.Fprintln(stdout, cmd.Process.Pid)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("shop: %s: %w", s.Args[1], err)
	}
	return nil
}

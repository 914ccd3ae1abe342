package main

import (
	"bytes"
	"database/sql"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// asProgram makes the test binary be the program, so that tests can start and
// kill the real thing.
const asProgram = "ONEWRITE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(Main())
	}
	testscript.Main(m, map[string]func(){"onewrite": func() { os.Exit(Main()) }})
}

// TestScripts runs the transcripts in testdata/script: commands, what they print
// and their exit codes.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			defer l.Close()
			env.Setenv("LISTEN", l.Addr().String())
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"sql":       scriptSQL,
			"until":     scriptUntil,
			"untilline": scriptUntilLine,
			"untilsql":  scriptUntilSQL,
			"interrupt": scriptInterrupt,
		},
	})
}

// scriptSQL runs a statement on a SQLite file: sql FILE STATEMENT.
func scriptSQL(ts *testscript.TestScript, neg bool, args []string) {
	db, err := sql.Open("sqlite", ts.MkAbs(args[0]))
	ts.Check(err)
	defer db.Close()
	if _, err = db.Exec(args[1]); (err != nil) != neg {
		ts.Fatalf("%v", err)
	}
}

// scriptUntilSQL waits until a query on a SQLite file answers with a number:
// untilsql FILE QUERY NUMBER.
func scriptUntilSQL(ts *testscript.TestScript, _ bool, args []string) {
	db, err := sql.Open("sqlite", ts.MkAbs(args[0])+"?_pragma=busy_timeout(5000)")
	ts.Check(err)
	defer db.Close()
	patiently(ts, func() error {
		var got string
		err := db.QueryRow(args[1]).Scan(&got)
		if err == nil && got != args[2] {
			err = fmt.Errorf("%s: %s, want %s", args[1], got, args[2])
		}
		return err
	})
}

// patiently calls ok until it returns nil, for half a minute.
func patiently(ts *testscript.TestScript, ok func() error) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// scriptUntil repeats a command until it succeeds.
func scriptUntil(ts *testscript.TestScript, _ bool, args []string) {
	patiently(ts, func() error { return ts.Exec(args[0], args[1:]...) })
}

// scriptUntilLine waits until a file has so many lines.
func scriptUntilLine(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	patiently(ts, func() error {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && bytes.Count(text, []byte("\n")) < want {
			err = fmt.Errorf("%s has fewer than %d lines", args[0], want)
		}
		return err
	})
}

// scriptInterrupt ends the background command as Ctrl-C does; its exit code must
// say so.
func scriptInterrupt(ts *testscript.TestScript, _ bool, _ []string) {
	for _, cmd := range ts.BackgroundCmds() {
		if filepath.Base(cmd.Path) == "onewrite" {
			ts.Check(cmd.Process.Signal(os.Interrupt))
		}
	}
}

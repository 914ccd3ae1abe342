package shop

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// until waits for a condition, for a minute at most.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in vain: " + what)
		}
	}
}

var address = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// listeners waits for the second act and returns the addresses of its six
// servers once all of them listen.
func listeners(t *testing.T, dir string) (list []string) {
	t.Helper()
	until(t, "the second act begins", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "onewrite", configFile))
		list = address.FindAllString(string(text), -1)
		return err == nil && len(list) == len(consumers)+1
	})
	for _, a := range list {
		until(t, a+" listens", func() bool { return listens(a) })
	}
	return list
}

func listens(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func allSilent(t *testing.T, list []string) {
	t.Helper()
	for _, a := range list {
		until(t, a+" is free again", func() bool { return !listens(a) })
	}
}

// TestInterrupted: when ctx ends, the demo ends, and all its processes with it.
func TestInterrupted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	self := testBinary(t)
	go func() {
		_, err := Demo(ctx, Options{Dir: dir, Orders: 1000, Self: self})
		result <- err
	}()
	list := listeners(t, dir)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("the demo ended with %v", err)
	}
	for _, a := range list {
		if listens(a) {
			t.Errorf("%s is still served after Demo has returned", a)
		}
	}
}

// TestKilled: a demo that is killed cannot tidy up, and still no process stays.
func TestKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	demo := exec.Command(testBinary(t), "demo", dir)
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	defer demo.Wait()
	defer demo.Process.Kill()
	list := listeners(t, dir)
	if err := demo.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	allSilent(t, list)
	until(t, "nobody writes any more", func() bool { return os.RemoveAll(dir) == nil })
}

// TestBrokenOnewrite: if onewrite cannot run, the demo says what it said.
func TestBrokenOnewrite(t *testing.T) {
	t.Setenv(plantVariable, "refuse to start")
	_, err := Demo(context.Background(), Options{Dir: t.TempDir(), Orders: 100, Self: testBinary(t)})
	if err == nil || !strings.Contains(err.Error(), "refused, as planted") {
		t.Errorf("the demo ended with %v", err)
	}
}

// TestKeep: the second act is left running until ctx ends.
func TestKeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	out, in := io.Pipe()
	result := make(chan error, 1)
	self := testBinary(t)
	go func() {
		_, err := Demo(ctx, Options{Dir: dir, Orders: 100, Self: self, Keep: true, Out: in})
		in.CloseWithError(io.EOF)
		result <- err
	}()
	var text strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(text.String(), "Ctrl-C ends it") {
		n, err := out.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v %v\n%s", err, <-result, text.String())
		}
	}
	for _, a := range listeners(t, dir) {
		if !strings.Contains(text.String(), a) {
			continue
		}
		t.Log("the dashboard is at", a)
	}
	cancel()
	if err := <-result; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "onewrite", "shop.db")); err != nil {
		t.Error(err)
	}
}

func TestChildRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		args  []string
		stdin string
	}{
		"no role":      {nil, ""},
		"no settings":  {[]string{"service"}, ""},
		"bad settings": {[]string{"service"}, "x\n"},
		"other role":   {[]string{"juggler"}, "{}\n"},
	} {
		// The pipe stays open, as it does while the demo lives.
		r, w := io.Pipe()
		go func() {
			io.WriteString(w, c.stdin)
			if c.stdin == "" {
				w.Close()
			}
		}()
		if err := Child(context.Background(), c.args, r, io.Discard); err == nil {
			t.Errorf("%s: accepted", name)
		}
		w.Close()
	}
}

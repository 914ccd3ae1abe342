package file_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/adapter/file"
)

const (
	childPath  = "ONEWRITE_FILE_TEST_PATH"
	childFirst = "ONEWRITE_FILE_TEST_FIRST"
	childForm  = "ONEWRITE_FILE_TEST_FORM"
)

// TestMain lets the test binary be the writer that is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		first, _ := strconv.Atoi(os.Getenv(childFirst))
		if err := writeForever(path, first); err != nil {
			fmt.Println("error:", err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writeForever writes batches of events and prints the last confirmed number.
func writeForever(path string, first int) error {
	s, err := file.Open(file.Config{Path: path, Rotate: 200_000, Format: os.Getenv(childForm)})
	if err != nil {
		return err
	}
	for {
		last := first + rand.IntN(200)
		if n, err := s.Write(context.Background(), numbered(first, last)); err != nil || n != last-first+1 {
			return fmt.Errorf("write: %d, %w", n, err)
		}
		fmt.Println(last)
		first = last + 1
	}
}

// A writer is killed again and again, and each time goes on some events before
// what it had confirmed, as a delivery does whose position is older. Everything
// is in the files once and in order, and the lock holds nobody up.
func TestKilledWriter(t *testing.T) {
	for _, format := range []string{"jsonl", "parquet"} {
		t.Run(format, func(t *testing.T) { killedWriter(t, format) })
	}
}

func killedWriter(t *testing.T, format string) {
	kills := 40
	if testing.Short() {
		kills = 8
	}
	path := filepath.Join(t.TempDir(), "f")
	confirmed := 0
	for range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childForm+"="+format, childPath+"="+path, childFirst+"="+strconv.Itoa(max(1, confirmed-rand.IntN(300))))
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for left := rand.IntN(30); lines.Scan(); left-- {
			n, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
			if err != nil {
				t.Fatal(lines.Text())
			}
			confirmed = max(confirmed, n)
			if left == 0 {
				must(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait() // it was killed
	}
	s := open(t, file.Config{Path: path, Rotate: 200_000, Format: format})
	write(t, s, numbered(max(1, confirmed-300), confirmed+1000))
	if format == "jsonl" {
		wantNumbered(t, 1, confirmed+1000, append(rotated(t, path), path)...)
		return
	}
	waitTabulated(t, path)
	events, tables := tabulated(t, path)
	if tables == 0 {
		t.Error("there is no Parquet file: nothing was tried")
	}
	checkNumbered(t, 1, confirmed+1000, events)
}

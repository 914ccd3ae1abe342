package file_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/file"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/onewritetest"
)

// open opens the sink of c, closed with the test.
func open(t *testing.T, c file.Config) *file.Sink {
	t.Helper()
	s, err := file.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// read returns the events in files, which have to be whole lines.
func read(t *testing.T, paths ...string) []onewrite.Event {
	t.Helper()
	var events []onewrite.Event
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 0 && text[len(text)-1] != '\n' {
			t.Errorf("%s ends within a line", path)
		}
		for line := range bytes.Lines(text) {
			e, err := cloudevents.ParseJSON(bytes.TrimSuffix(line, []byte("\n")))
			if err != nil {
				t.Errorf("%s: %v: %.200q", path, err, line)
				continue
			}
			events = append(events, e)
		}
	}
	return events
}

// rotated returns the files that rotation left, oldest first.
func rotated(t *testing.T, path string) []string {
	t.Helper()
	names, err := filepath.Glob(path + ".*-*")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestConformance(t *testing.T) {
	for name, rotate := range map[string]int64{"plain": 0, "rotating": 20_000, "parquet": 20_000} {
		t.Run(name, func(t *testing.T) {
			format, received := "jsonl", func(t *testing.T, path string) []onewrite.Event { return read(t, append(rotated(t, path), path)...) }
			if name == "parquet" {
				format, received = name, func(t *testing.T, path string) []onewrite.Event { events, _ := tabulated(t, path); return events }
			}
			path := filepath.Join(t.TempDir(), "new", "folder", "events.jsonl")
			onewritetest.TestSink(t, onewritetest.SinkHarness{
				New: func(t *testing.T) onewrite.Sink {
					s, err := file.Open(file.Config{Path: path, Rotate: rotate, Format: format})
					if err != nil {
						t.Fatal(err)
					}
					return s
				},
				Received:    func(t *testing.T) []onewrite.Event { return received(t, path) },
				JSONByValue: true,
				Break: func(t *testing.T) func() {
					// The file gives way to a folder, so nothing can be opened.
					must(t, os.Rename(path, path+".aside"))
					must(t, os.Mkdir(path, 0o700))
					return func() {
						must(t, os.Remove(path))
						must(t, os.Rename(path+".aside", path))
					}
				},
			})
			if n := len(rotated(t, path)); (n > 0) != (rotate > 0) {
				t.Errorf("%d rotated files with Rotate = %d", n, rotate)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

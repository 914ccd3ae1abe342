package file_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/file"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// idsOf reads the ids of all files in the order of their names, the current one last. It
// returns nothing where a file was just being compressed: half made, or gone when it was
// to be read.
func idsOf(t *testing.T, path string) (ids []string, compressed, plain int) {
	t.Helper()
	names, err := filepath.Glob(path + ".2*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, name := range append(names, path) {
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, 0, 0
		}
		if err != nil {
			t.Fatal(err)
		}
		var r io.Reader = bytes.NewReader(data)
		switch filepath.Ext(name) {
		case ".gz":
			r, err = gzip.NewReader(r)
		case ".zst":
			var z *zstd.Decoder
			z, err = zstd.NewReader(r)
			r = z
		case ".part":
			return nil, 0, 0
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(text) > len(data) {
			compressed++
		} else if name != path {
			plain++
		}
		for line := range strings.Lines(string(text)) {
			e, err := cloudevents.ParseJSON([]byte(line))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			ids = append(ids, e.ID)
		}
	}
	return ids, compressed, plain
}

// Rotated files are compressed but for the newest 16 MiB, and hold what was written; what a
// crash has left half made is made again.
func TestRotatedIsCompressed(t *testing.T) {
	for _, compression := range []string{"gzip", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "events.jsonl")
			open := func() *file.Sink {
				t.Helper()
				s, err := file.Open(file.Config{Path: path, Rotate: 1_000_000, Compression: compression})
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			n := 0
			write := func(s *file.Sink, count int) {
				t.Helper()
				for range count {
					e := onewrite.Event{ID: fmt.Sprintf("e%05d", n), Source: "shop", Topic: "a", Type: "a", Time: time.Now(), ContentType: "application/json", Data: []byte(`{"pad":"` + strings.Repeat("x", 100_000) + `"}`)}
					if _, err := s.Write(context.Background(), []onewrite.Event{e}); err != nil {
						t.Fatal(err)
					}
					n++
				}
			}
			s := open()
			write(s, 210)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			half := path + ".20240101T000000Z-0001.gz.part"
			if err := os.WriteFile(half, []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
			s = open() // compresses what the other had no time for
			write(s, 30)
			deadline := time.Now().Add(time.Minute)
			for {
				ids, compressed, plain := idsOf(t, path)
				if compressed >= 5 && plain >= 15 && len(ids) == n {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%d compressed, %d plain, %d of %d events", compressed, plain, len(ids), n)
				}
				if ids != nil {
					write(s, 10) // the next rotation looks again
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			ids, _, _ := idsOf(t, path)
			if len(ids) != n {
				t.Fatalf("%d of %d events, or a file was left half made", len(ids), n)
			}
			for i, id := range ids {
				if id != fmt.Sprintf("e%05d", i) {
					t.Fatalf("event %d is %s", i, id)
				}
			}
		})
	}
	if _, err := file.Open(file.Config{Path: filepath.Join(t.TempDir(), "a"), Compression: "lz4"}); err == nil {
		t.Error("lz4 was taken")
	}
}

// Repeats are noticed over several small files, after the file was opened again.
func TestWindowOverSmallFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	var events []onewrite.Event
	for i := range 30 {
		events = append(events, onewrite.Event{ID: fmt.Sprintf("e%05d", i), Source: "shop", Topic: "a", Type: "a", Time: time.Now(), ContentType: "application/json", Data: []byte(`{"pad":"` + strings.Repeat("x", 500) + `"}`)})
	}
	for range 2 {
		s, err := file.Open(file.Config{Path: path, Rotate: 4096})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if _, err := s.Write(t.Context(), []onewrite.Event{e}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if ids, _, _ := idsOf(t, path); len(ids) != 30 {
		t.Errorf("%d lines of 30 events", len(ids))
	}
}

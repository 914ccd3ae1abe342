package file_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/file"
	"github.com/onewrite/onewrite/internal/parquet"
	"github.com/onewrite/onewrite/internal/servers"
)

// tabulated returns the events of all files of a path in their order, and how many of the
// files are Parquet. Files that are replaced meanwhile are read again.
func tabulated(t *testing.T, path string) (events []onewrite.Event, tables int) {
	t.Helper()
	for range 1000 {
		names, err := filepath.Glob(path + ".2*")
		must(t, err)
		slices.Sort(names)
		events, tables = nil, 0
		for _, name := range names {
			text, err := os.ReadFile(name)
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				t.Fatal(err)
			case strings.HasSuffix(name, ".part"), slices.Contains(names, name+".parquet"): // what takes its place is there
				continue
			case strings.HasSuffix(name, ".parquet"):
				var more []onewrite.Event
				more, err = parquet.Events(bytes.NewReader(text), int64(len(text)))
				if err != nil {
					t.Fatalf("%s: %v", name, err) // it has its name only when it is whole
				}
				events = append(events, more...)
				tables++
			default:
				events = append(events, read(t, name)...)
				_, err = os.Stat(name) // it may have gone between the two looks
			}
			if err != nil {
				events = nil
				break
			}
		}
		if events != nil || len(names) == 0 {
			return append(events, read(t, path)...), tables
		}
	}
	t.Fatal("the files never stand still")
	return nil, 0
}

// waitTabulated waits until all that was rotated is Parquet.
func waitTabulated(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		names, err := filepath.Glob(path + ".2*")
		must(t, err)
		names = slices.DeleteFunc(names, func(name string) bool { return strings.HasSuffix(name, ".parquet") })
		if len(names) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still there: %q", names)
		}
	}
}

// What was written is in the Parquet files and the newest lines, once and in order, for
// another family of readers; repeats are noticed in Parquet too, after the file was opened
// again; what a crash has left half made, or twice, is made again.
func TestParquet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	c := file.Config{Path: path, Rotate: 20_000, Format: "parquet", Compression: "gzip"}
	s, err := file.Open(c)
	must(t, err)
	for i := 1; i <= 2000; i += 40 {
		write(t, s, numbered(i, i+39))
	}
	waitTabulated(t, path)
	must(t, s.Close())
	tables, err := filepath.Glob(path + ".2*.parquet")
	must(t, err)
	if len(tables) < 10 {
		t.Fatalf("%d Parquet files", len(tables))
	}
	// A crash between the two last steps leaves both; one before them, a half.
	double, err := os.ReadFile(tables[3])
	must(t, err)
	events, err := parquet.Events(bytes.NewReader(double), int64(len(double)))
	must(t, err)
	other, err := file.Open(file.Config{Path: path + ".other"})
	must(t, err)
	write(t, other, events)
	must(t, other.Close())
	must(t, os.Rename(path+".other", strings.TrimSuffix(tables[3], ".parquet")))
	must(t, os.WriteFile(tables[3], []byte("damaged"), 0o600)) // so that it is seen that it is made again
	must(t, os.WriteFile(path+".20240101T000000Z-0001.parquet.part", []byte("half"), 0o600))
	s, err = file.Open(c)
	must(t, err)
	waitTabulated(t, path)
	write(t, s, numbered(1, 2100)) // all but the last are repeats
	waitTabulated(t, path)
	must(t, s.Close())
	got, _ := tabulated(t, path)
	checkNumbered(t, 1, 2100, got)
	const program = `
import duckdb, json, sys
ids = [r[0] for r in duckdb.execute("""SELECT id FROM read_parquet(?) WHERE topic = 't' AND data->>'n' IS NOT NULL AND source = '/db'""", [sys.argv[1] + ".2*.parquet"]).fetchall()]
ids += [json.loads(line)["id"] for line in open(sys.argv[1])]
print(json.dumps(ids))`
	out, err := servers.DuckDB(t).Command("-c", program, path).CombinedOutput()
	var ids []string
	if err == nil {
		err = json.Unmarshal(out, &ids)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if slices.Sort(ids); len(ids) != 2100 || len(slices.Compact(ids)) != 2100 {
		t.Errorf("DuckDB has %d events, want 2100", len(ids))
	}
	for _, name := range append(tables, path) {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
}

// heard keeps what is logged.
type heard struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.Write(p)
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.String()
}

// A file with a line of somebody else stays as it is, aloud, and holds no other up.
func TestParquetKeepsForeignLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	foreign := path + ".20240101T000000Z-0001"
	must(t, os.WriteFile(foreign, []byte("hello\n"), 0o600))
	log := &heard{}
	s := open(t, file.Config{Path: path, Rotate: 5000, Format: "parquet", Logger: slog.New(slog.NewTextHandler(log, nil))})
	for i := 1; i <= 100; i += 10 {
		write(t, s, numbered(i, i+9))
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		names, err := filepath.Glob(path + ".2*")
		must(t, err)
		tables := 0
		for _, name := range names {
			if strings.HasSuffix(name, ".parquet") {
				tables++
			}
		}
		if len(names) == tables+1 && tables > 1 && strings.Contains(log.String(), "number 1") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q, and %s", names, log)
		}
	}
	if text, err := os.ReadFile(foreign); err != nil || string(text) != "hello\n" {
		t.Errorf("the foreign file: %q, %v", text, err)
	}
}

func TestParquetSaysTheCure(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for has, c := range map[string]file.Config{
		"set rotate":  {Path: path, Format: "parquet"},
		"a file":      {Path: "-", Format: "parquet", Rotate: 5000},
		"jsonl, parq": {Path: path, Format: "avro", Rotate: 5000},
		"lz4; set":    {Path: path, Format: "parquet", Rotate: 5000, Compression: "brotli"},
	} {
		if s, err := file.Open(c); err == nil || !strings.Contains(err.Error(), has) {
			t.Errorf("want %q, got %v", has, err)
			if err == nil {
				must(t, s.Close())
			}
		}
	}
}

// A large event, and a stop in the middle of the work.
func TestParquetStops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	c := file.Config{Path: path, Rotate: 3 << 20, Format: "parquet"}
	n := 0
	for range 5 {
		s, err := file.Open(c)
		must(t, err)
		for range 4 {
			e := numbered(n, n)[0]
			e.Data = fmt.Appendf(nil, `{"pad":%q}`, strings.Repeat(fmt.Sprint(n), 1<<20))
			if _, err := s.Write(context.Background(), []onewrite.Event{e}); err != nil {
				t.Fatal(err)
			}
			n++
		}
		must(t, s.Close())
	}
	s := open(t, c)
	waitTabulated(t, path)
	must(t, s.Close())
	got, tables := tabulated(t, path)
	if checkNumbered(t, 0, n-1, got); tables == 0 {
		t.Error("there is no Parquet file")
	}
}

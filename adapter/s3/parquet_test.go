package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// DuckDB reads the objects of Parquet that boto3 gets, each event once in spite of a lost
// answer; the names do not depend on the compression, nor on the library that makes the files.
func TestParquetObjects(t *testing.T) {
	x := newStore(t)
	c := x.config()
	c.Format = "parquet"
	s := open(t, c)
	mustPlace(t, s, "")
	mustWrite(t, s, "one", messages(1, 50))
	x.set(func(w http.ResponseWriter, req *http.Request, pass func()) bool {
		if isRecord(req) {
			pass()
			hangUp(w)
		}
		return isRecord(req)
	})
	if _, err := s.WriteAt(context.Background(), messages(51, 100), []byte("two")); err == nil {
		t.Fatal("the answer arrived")
	}
	x.set(nil)
	c.Compression = "snappy"
	second := open(t, c)
	mustPlace(t, second, "two")
	mustWrite(t, second, "three", append(messages(51, 100), messages(101, 120)...)[50:])
	x.once(t, 120)
	before := len(x.keys(t))
	mustWrite(t, second, "four", messages(1, 50)) // of another compression, and the same object
	if n := len(x.keys(t)) - before; n != 1 {
		t.Errorf("%d objects more than the list of a commit", n-1)
	}
	folder := t.TempDir()
	for i, key := range x.keys(t) {
		if strings.HasSuffix(key, ".parquet") {
			if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("%d.parquet", i)), x.get(t, key), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	const program = "import duckdb, sys; print(duckdb.execute('SELECT count(id), count(DISTINCT id) FROM read_parquet(?)', sys.argv[1:]).fetchone())"
	if out, err := servers.DuckDB(t).Command("-c", program, filepath.Join(folder, "*.parquet")).CombinedOutput(); err != nil || string(bytes.TrimSpace(out)) != "(120, 120)" {
		t.Errorf("DuckDB has %s events, want 120: %v", out, err)
	}
}

// An event that does not come back from its line can be no row: it is refused, alone.
func TestNoRow(t *testing.T) {
	x := newStore(t)
	c := x.config()
	c.Format = "parquet"
	for n, rejected := range map[int]bool{1: true, 2: false} {
		s := open(t, c)
		if _, err := s.Place(t.Context()); err != nil {
			t.Fatal(err)
		}
		list := messages(1, n)
		list[0].Time = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) // CloudEvents ends with 9999
		if bad, err := s.WriteAt(t.Context(), list, []byte("p")); bad != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) != rejected || !strings.Contains(err.Error(), "filter") {
			t.Errorf("WriteAt of %d = %d, %v", n, bad, err)
		}
	}
	x.once(t, 0)
}

package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// TestKillRows kills the program, and crashes the server, while rows change and a
// snapshot is under way. What a consumer has who applies every event once is the
// table, and a repeat has the bytes of the first.
func TestKillRows(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(strconv.Itoa(version), func(t *testing.T) {
			t.Parallel()
			pg := servers.NewPostgres(t, version)
			url := pg.NewDatabase(t)
			db, err := sql.Open("pgx", url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			exec1(t, db, `CREATE TABLE stock (id int PRIMARY KEY, n int NOT NULL, note text)`)
			exec1(t, db, `INSERT INTO stock SELECT i, 0, repeat('n', i % 300) FROM generate_series(1, 4000) i`)
			p := newProgram(t, fmt.Sprintf("\nsources: {shop: {type: postgres, url: %q, tables: [public.stock]}}\ndestinations:\n  archive: {type: file, path: events.jsonl}\n", url))
			p.must("migrate")
			p.start()
			file := filepath.Join(p.dir, "events.jsonl")
			load := startRows(t, db)
			for i := range 12 {
				grown := sizeOf(file) + 30_000
				wait(t, func() error {
					if n := sizeOf(file); n < grown {
						return fmt.Errorf("the archive has %d bytes, want %d", n, grown)
					}
					return nil
				})
				if i%4 == 3 {
					pg.Restart(t, true)
				}
				p.kill()
				p.start()
			}
			load.stop()
			looked := sizeOf(file)
			exec1(t, db, `INSERT INTO stock VALUES (-1, 0, 'the end')`)
			wait(t, func() error {
				var found bool
				if found, looked, err = contains(file, looked, "the end"); !found {
					return fmt.Errorf("the last row has not come: %v", err)
				}
				return nil
			})
			wait(t, func() error {
				var pending int
				if err := db.QueryRow(`SELECT count(*) FROM onewrite.captured WHERE finished < wanted`).Scan(&pending); err != nil || pending > 0 {
					return fmt.Errorf("the snapshot is not on the bus: %v", err)
				}
				return nil
			})
			p.waitIdle(0)
			p.stop()
			events, repeats := checkRows(t, db, file)
			t.Logf("%d events, %d repeats, %d transactions", events, repeats, load.committed.Load())
			if load.committed.Load() < 500 {
				t.Errorf("%d transactions: nothing is proven", load.committed.Load())
			}
		})
	}
}

// contains reports whether a file has a text behind about from, and up to where it was
// read: a file of a hundred megabytes that is read as a whole again and again keeps the
// program from writing it.
func contains(path string, from int64, text string) (found bool, read int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, from, err
	}
	defer f.Close()
	const line = 64 << 10 // the program may have cut off one that was torn
	at, err := f.Seek(max(0, from-line), io.SeekStart)
	if err != nil {
		return false, from, err
	}
	data, err := io.ReadAll(f)
	return bytes.Contains(data, []byte(text)), at + int64(len(data)), err
}

func sizeOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// rowLoad changes rows; the server may be away for a moment.
type rowLoad struct {
	quit      chan struct{}
	wg        sync.WaitGroup
	committed atomic.Int64
}

func startRows(t *testing.T, db *sql.DB) *rowLoad {
	l := &rowLoad{quit: make(chan struct{})}
	for w := range 3 {
		rnd := rand.New(rand.NewPCG(uint64(w), 3))
		l.wg.Go(func() {
			for {
				select {
				case <-l.quit:
					return
				default:
				}
				id := rnd.IntN(4000) + 1
				q := []string{
					fmt.Sprintf(`UPDATE stock SET n = n + 1 WHERE id = %d`, id),
					fmt.Sprintf(`DELETE FROM stock WHERE id = %d`, id),
					fmt.Sprintf(`INSERT INTO stock VALUES (%d, 1, 'again') ON CONFLICT (id) DO UPDATE SET n = stock.n + 5`, id),
					fmt.Sprintf(`UPDATE stock SET id = -id - 1 WHERE id = %d AND NOT EXISTS (SELECT FROM stock WHERE id = -%[1]d - 1)`, id),
					fmt.Sprintf(`UPDATE stock SET n = n + 1 WHERE id BETWEEN %d AND %d`, id, id+20),
				}[rnd.IntN(5)]
				if _, err := db.Exec(q); err == nil {
					l.committed.Add(1)
				}
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

func (l *rowLoad) stop() {
	select {
	case <-l.quit:
	default:
		close(l.quit)
	}
	l.wg.Wait()
}

// checkRows applies the events of a file and compares the outcome with the table.
func checkRows(t *testing.T, db *sql.DB, file string) (events, repeats int) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	seen, got := map[string]string{}, map[string]string{}
	for line := range strings.Lines(string(text)) {
		var e struct {
			ID, Type, Partitionkey string
			Data                   struct{ After json.RawMessage }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if first, again := seen[e.ID]; again {
			repeats++
			if first != line {
				t.Fatalf("a repeat differs:\n%s%s", first, line)
			}
			continue
		}
		seen[e.ID] = line
		events++
		if e.Type == "delete" {
			delete(got, e.Partitionkey)
		} else {
			got[e.Partitionkey] = string(e.Data.After)
		}
	}
	rows, err := db.Query(`SELECT id, n, note FROM stock`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	count := 0
	for rows.Next() {
		var id, n int
		var note string
		if err := rows.Scan(&id, &n, &note); err != nil {
			t.Fatal(err)
		}
		count++
		if have, want := got[fmt.Sprintf(`{"id":%d}`, id)], fmt.Sprintf(`{"id":%d,"n":%d,"note":%q}`, id, n, note); have != want {
			t.Errorf("row %d is %s, want %s", id, have, want)
		}
	}
	if rows.Err() != nil || count != len(got) || count < 1000 {
		t.Errorf("the table has %d rows, the replay %d: %v", count, len(got), rows.Err())
	}
	return events, repeats
}

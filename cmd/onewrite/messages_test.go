package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/outbox"
)

// TestKillMessages kills the program while events are written into the log, by Go and
// by SQL, with no table captured. Each that was committed is delivered, those of a key
// in their order, and none that was rolled back.
func TestKillMessages(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(strconv.Itoa(version), func(t *testing.T) {
			t.Parallel()
			url := servers.NewPostgres(t, version).NewDatabase(t)
			db, err := sql.Open("pgx", url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			p := newProgram(t, fmt.Sprintf("\nsources: {shop: {type: postgres, url: %q, messages: true}}\ndestinations:\n  archive: {type: file, path: events.jsonl}\n", url))
			p.must("migrate")
			p.start()
			p.waitIdle(0)
			wait(t, func() error { // messages are kept from here on: a slot is active while it is made, too
				var n int
				if err := db.QueryRow(`SELECT count(*) FROM onewrite.log l JOIN pg_replication_slots s ON s.slot_name = l.slot`).Scan(&n); err != nil || n != 1 {
					return fmt.Errorf("%d slots are made: %v", n, err)
				}
				return nil
			})
			load := startMessages(t, db)
			file := filepath.Join(p.dir, "events.jsonl")
			for range 5 {
				grown := sizeOf(file) + 20_000
				wait(t, func() error {
					if n := sizeOf(file); n < grown {
						return fmt.Errorf("the archive has %d bytes, want %d", n, grown)
					}
					return nil
				})
				p.kill()
				p.start()
			}
			load.stop()
			exec1(t, db, `SELECT onewrite.emit('the.end', NULL, NULL)`)
			wait(t, func() error {
				if text, err := os.ReadFile(file); err != nil || !bytes.Contains(text, []byte("the.end")) {
					return fmt.Errorf("the last event has not come: %v", err)
				}
				return nil
			})
			p.waitIdle(0)
			p.stop()
			repeats := checkMessages(t, file, load.committed[:])
			t.Logf("%d and %d transactions, %d repeats", load.committed[0].Load(), load.committed[1].Load(), repeats)
			if load.committed[0].Load() < 100 || load.committed[1].Load() < 100 {
				t.Error("nothing is proven")
			}
		})
	}
}

// messageLoad writes two events a transaction, with the number of the transaction; key 0
// by Go, key 1 by SQL.
type messageLoad struct {
	quit      chan struct{}
	once      sync.Once
	wg        sync.WaitGroup
	committed [2]atomic.Int64
}

func startMessages(t *testing.T, db *sql.DB) *messageLoad {
	l := &messageLoad{quit: make(chan struct{})}
	log := outbox.New(outbox.Postgres, outbox.InLog())
	publish := []func(tx *sql.Tx, text string) error{
		func(tx *sql.Tx, text string) error {
			e := outbox.Event{Topic: "load", Key: "0", Payload: []byte(text)}
			return log.Publish(t.Context(), tx, e, e)
		},
		func(tx *sql.Tx, text string) error {
			_, err := tx.Exec(`SELECT onewrite.emit('load', '1', $1::text) FROM generate_series(1, 2)`, text)
			return err
		},
	}
	for k := range publish {
		l.wg.Go(func() {
			for n := int64(1); ; n++ {
				select {
				case <-l.quit:
					return
				default:
				}
				for _, text := range []string{"rolled back", fmt.Sprint(n)} {
					tx, err := db.Begin()
					if err == nil {
						err = publish[k](tx, text)
					}
					if err == nil && text == "rolled back" {
						err = tx.Rollback()
					} else if err == nil {
						err = tx.Commit()
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
				l.committed[k].Store(n)
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

func (l *messageLoad) stop() {
	l.once.Do(func() { close(l.quit) })
	l.wg.Wait()
}

func checkMessages(t *testing.T, file string, committed []atomic.Int64) (repeats int) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	seen, events := map[string]string{}, make([]int64, len(committed))
	for line := range strings.Lines(string(text)) {
		var e struct {
			ID, Topic, Partitionkey string
			Data                    int64
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
		if e.Topic != "load" {
			continue
		}
		k, _ := strconv.Atoi(e.Partitionkey)
		events[k]++
		if want := (events[k] + 1) / 2; e.Data != want {
			t.Fatalf("event %d of key %d is %d, want %d", events[k], k, e.Data, want)
		}
	}
	for k := range committed {
		if n := committed[k].Load(); events[k] != 2*n {
			t.Errorf("key %d: %d events came, %d were committed", k, events[k], 2*n)
		}
	}
	return repeats
}

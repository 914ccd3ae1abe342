package shop

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"
)

// The test binary plays every process of the story, and also a relay of a
// hundred lines in the place of onewrite. That relay is honest, or has the bug
// that the environment names: the demo has to notice each of them.

const plantVariable = "SHOP_TEST_PLANT"

func TestMain(m *testing.M) {
	role := ""
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch role {
	case "demo-child":
		err = Child(ctx, os.Args[2:], os.Stdin, os.Stdout)
	case "migrate":
		err = standInMigrate()
	case "run":
		err = standInRun(ctx, os.Getenv(plantVariable))
	case "demo": // for tests that kill the demo itself
		self, _ := os.Executable()
		_, err = Demo(ctx, Options{Dir: os.Args[2], Orders: 1000, Self: self, Out: os.Stdout})
	default:
		// Under the race detector each of the many processes would wait a second
		// before it ends.
		os.Setenv("GORACE", "atexit_sleep_ms=10")
		code := m.Run()
		if programDir != "" {
			os.RemoveAll(programDir)
		}
		os.Exit(code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const standInTable = `CREATE TABLE onewrite_outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, "key" TEXT,
	payload TEXT, payload_bytes BLOB, id TEXT, type TEXT, content_type TEXT, headers TEXT)`

func standInMigrate() error {
	db, err := openSQLite(absolute("shop.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.Exec(standInTable)
	return err
}

func absolute(name string) string {
	path, _ := filepath.Abs(name)
	return path
}

type standInConfig struct {
	Listen       string
	Destinations map[string]struct{ URL, Secret string }
}

func standInRun(ctx context.Context, plant string) error {
	if plant == "refuse to start" {
		return errors.New("refused, as planted")
	}
	text, err := os.ReadFile(configFile)
	if err != nil {
		return err
	}
	var cfg standInConfig
	if err := yaml.Unmarshal(text, &cfg); err != nil {
		return err
	}
	db, err := openSQLite(absolute("shop.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	go http.Serve(l, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	g, ctx := errgroup.WithContext(ctx)
	for name, d := range cfg.Destinations {
		g.Go(func() error { return standInDeliver(ctx, db, name, d.URL, plant) })
	}
	return g.Wait()
}

type standInRow struct {
	seq      int
	id, body string
}

// standInDeliver sends one event after the other and remembers its place in a
// file.
func standInDeliver(ctx context.Context, db *sql.DB, name, url, plant string) error {
	text, err := os.ReadFile(keyFile(name))
	if err != nil {
		return err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(string(text), "whsec_"))
	if err != nil {
		return err
	}
	place := name + ".place"
	old, _ := os.ReadFile(place)
	cursor, _ := strconv.Atoi(string(old))
	for ctx.Err() == nil {
		rows, err := standInRead(ctx, db, cursor)
		if err != nil {
			return err
		}
		if plant == "ack before delivery" && len(rows) > 0 {
			if err := standInMove(place, rows[len(rows)-1].seq); err != nil {
				return err
			}
		}
		if plant == "no order" {
			for i, j := 0, len(rows)-1; i < j; i, j = i+1, j-1 {
				rows[i], rows[j] = rows[j], rows[i]
			}
		}
		for _, r := range rows {
			if err := standInSend(ctx, url, key, r, plant); err != nil {
				return err
			}
			cursor = max(cursor, r.seq)
			if plant != "ack before delivery" && plant != "no order" {
				if err := standInMove(place, cursor); err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func standInMove(place string, cursor int) error {
	if err := os.WriteFile(place+".new", []byte(strconv.Itoa(cursor)), 0o600); err != nil {
		return err
	}
	return os.Rename(place+".new", place)
}

func standInRead(ctx context.Context, db *sql.DB, cursor int) (list []standInRow, err error) {
	rows, err := db.QueryContext(ctx, `SELECT seq, id, payload FROM onewrite_outbox WHERE seq > $1 ORDER BY seq LIMIT 50`, cursor)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r standInRow
		if err := rows.Scan(&r.seq, &r.id, &r.body); err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, rows.Err()
}

// standInSend tries until it succeeds.
func standInSend(ctx context.Context, url string, key []byte, r standInRow, plant string) error {
	for {
		if plant == "new id for each try" {
			b := make([]byte, 16)
			rand.Read(b)
			r.id = hex.EncodeToString(b)
		}
		if plant == "repaired body" {
			r.body = strings.Replace(r.body, `"seq":1,`, `"seq":2,`, 1)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(r.body)))
		if err != nil {
			return err
		}
		stamp := strconv.FormatInt(time.Now().Unix(), 10)
		mac := hmac.New(sha256.New, key)
		io.WriteString(mac, r.id+"."+stamp+"."+r.body)
		req.Header.Set("webhook-id", r.id)
		req.Header.Set("webhook-timestamp", stamp)
		req.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode/100 == 2 {
				return nil
			}
		}
		if plant == "no retry" {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

package sqlsink_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlsink"
)

func take(t testing.TB, s *sqlsink.Sink) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b, err := s.Place(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestFencing: a sink that was replaced changes nothing more, neither rows nor tables.
func TestFencing(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		old, other := x.sink(t), x.sink(t, func(c *sqlsink.Config) { c.Destination = "another" })
		if _, err := old.WriteAt(t.Context(), nil, []byte("x")); !errors.Is(err, onewrite.ErrFenced) {
			t.Errorf("without Place: %v", err)
		}
		if b, err := old.Place(t.Context()); b != nil || err != nil {
			t.Fatalf("Place = %q, %v", b, err)
		}
		take(t, other)
		e := func(id int, v string) []onewrite.Message {
			return at(ev("c", "t", row{"id": id}, nil, row{"id": id, "v": v}))
		}
		if _, err := old.WriteAt(t.Context(), e(1, "old"), []byte("\x00one\xff")); err != nil {
			t.Fatal(err)
		}
		young := x.sink(t)
		if _, err := old.WriteAt(t.Context(), e(2, "old"), []byte("two")); err != nil {
			t.Errorf("before Place of the new one: %v", err)
		}
		if got := take(t, young); got != "two" {
			t.Errorf("Place = %q", got)
		}
		for _, ms := range [][]onewrite.Message{e(1, "late"), at(ev("c", "nowhere", row{"id": 1}, nil, row{"id": 1})), at(ev("c", "t", row{"id": 3}, nil, row{"id": 3, "more": 1})), nil} {
			if bad, err := old.WriteAt(t.Context(), ms, []byte("late")); !errors.Is(err, onewrite.ErrFenced) || bad != 0 {
				t.Errorf("after Place of the new one: %d, %v", bad, err)
			}
		}
		if _, err := x.db.QueryContext(t.Context(), "SELECT * FROM nowhere"); err == nil {
			t.Error("a fenced sink made a table")
		}
		x.want(t, "SELECT * FROM t ORDER BY id", "1|old", "2|old")
		if _, err := young.WriteAt(t.Context(), e(2, "new"), []byte("three")); err != nil {
			t.Error(err)
		}
		if _, err := other.WriteAt(t.Context(), e(4, "another"), []byte("its own")); err != nil {
			t.Errorf("another destination: %v", err)
		}
		if got := take(t, x.sink(t)); got != "three" {
			t.Errorf("Place = %q", got)
		}
		x.want(t, "SELECT v FROM t ORDER BY id", "old", "new", "another")
	})
}

// TestAllOrNothing: what is before a refused event is not there either.
func TestAllOrNothing(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		x.exec(t, "CREATE TABLE t (id bigint PRIMARY KEY, v varchar(20) CHECK (v <> 'bad'))")
		s := x.sink(t)
		take(t, s)
		var ms []onewrite.Message
		for i := range 300 {
			v := "good"
			if i == 123 {
				v = "bad"
			}
			ms = append(ms, at(ev("c", "t", row{"id": i}, nil, row{"id": i, "v": v}))...)
		}
		bad, err := s.WriteAt(t.Context(), ms, []byte("new"))
		if bad != 123 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "cure: ") {
			t.Fatalf("WriteAt = %d, %v", bad, err)
		}
		x.want(t, "SELECT count(*) FROM t", "0")
		x.want(t, "SELECT record FROM onewrite_places", "∅")
		if _, err := s.WriteAt(t.Context(), append(ms[:123:123], ms[124:]...), []byte("new")); err != nil {
			t.Fatal(err)
		}
		x.want(t, "SELECT count(*) FROM t", "299")
	})
}

// cutter forwards a connection and ends it where a client says COMMIT: before the
// server hears it, or before the client hears the answer.
type cutter struct {
	addr string
	mu   sync.Mutex
	when string
}

func newCutter(t *testing.T, to string) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := &cutter{addr: l.Addr().String()}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			go c.forward(in, out)
		}
	}()
	return c
}

func (c *cutter) set(when string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.when = when
}

func (c *cutter) forward(in, out net.Conn) {
	defer in.Close()
	defer out.Close()
	answer := make(chan struct{}, 1)
	var mute sync.Mutex
	muted := false
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := out.Read(b)
			mute.Lock()
			if muted {
				answer <- struct{}{}
			} else {
				_, _ = in.Write(b[:n])
			}
			gone := muted
			mute.Unlock()
			if err != nil || gone {
				in.Close()
				return
			}
		}
	}()
	r := bufio.NewReaderSize(in, 1<<20)
	b := make([]byte, 1<<20)
	for {
		n, err := r.Read(b)
		if err != nil {
			return
		}
		c.mu.Lock()
		when := c.when
		c.mu.Unlock()
		if when != "" && bytes.Contains(b[:n], []byte("COMMIT")) {
			if when == "before" {
				return
			}
			mute.Lock()
			muted = true
			mute.Unlock()
			_, _ = out.Write(b[:n])
			<-answer
			return
		}
		if _, err := out.Write(b[:n]); err != nil {
			return
		}
	}
}

// TestUnknownOutcome: a connection that ends around the COMMIT leaves all or nothing,
// and Place says which.
func TestUnknownOutcome(t *testing.T) {
	for _, kind := range []string{sqlsink.Postgres, sqlsink.MySQL} {
		for when, want := range map[string]string{"before": "one", "after": "two"} {
			t.Run(kind+" "+when, func(t *testing.T) {
				x := newTarget(t, kind, false)
				u, _ := url.Parse(x.cfg.URL)
				cut := newCutter(t, u.Host)
				u.Host = cut.addr
				s := x.sink(t, func(c *sqlsink.Config) { c.URL = u.String() })
				take(t, s)
				if _, err := s.WriteAt(t.Context(), at(ev("c", "t", row{"id": 1}, nil, row{"id": 1})), []byte("one")); err != nil {
					t.Fatal(err)
				}
				cut.set(when)
				_, err := s.WriteAt(t.Context(), at(ev("c", "t", row{"id": 2}, nil, row{"id": 2})), []byte("two"))
				if err == nil || errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrFenced) {
					t.Fatalf("WriteAt = %v", err)
				}
				cut.set("")
				if _, err := s.WriteAt(t.Context(), at(ev("c", "t", row{"id": 3}, nil, row{"id": 3})), []byte("three")); err == nil {
					t.Error("the sink goes on though it does not know where it is")
				}
				if got := take(t, x.sink(t)); got != want {
					t.Errorf("Place = %q, want %q", got, want)
				}
				x.want(t, "SELECT count(*) FROM t", map[string]string{"one": "1", "two": "2"}[want])
			})
		}
	}
}

// TestServerKilled kills the server in the middle of a WriteAt, again and again: the
// rows are always those that the record speaks of.
func TestServerKilled(t *testing.T) {
	for _, kind := range []string{sqlsink.Postgres, sqlsink.MySQL} {
		t.Run(kind, func(t *testing.T) {
			x := newTarget(t, kind, true)
			s := x.sink(t)
			take(t, s)
			place, made, lost := 0, 0, 0
			for round := range 6 {
				begun := make(chan struct{}, 1000)
				ended := make(chan error, 1)
				go func() {
					for {
						var ms []onewrite.Message
						for i := range 200 {
							ms = append(ms, at(ev("c", "t", row{"id": place*200 + i}, nil, row{"id": place*200 + i, "v": strings.Repeat("x", 100)}))...)
						}
						begun <- struct{}{}
						if _, err := s.WriteAt(context.Background(), ms, []byte(strconv.Itoa(place+1))); err != nil {
							ended <- err
							return
						}
						place++
					}
				}()
				for range 3 + round {
					<-begun
				}
				if kind == sqlsink.Postgres {
					x.pg.Crash(t)
				} else {
					x.my.Kill(t)
				}
				if err := <-ended; errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrFenced) {
					t.Fatal(err)
				}
				if kind == sqlsink.Postgres {
					x.pg.Start(t)
				} else {
					x.my.Start(t)
				}
				s.Close()
				s = x.sink(t)
				got, _ := strconv.Atoi(take(t, s))
				if got != place && got != place+1 {
					t.Fatalf("the record is %d, and %d writes were confirmed", got, place)
				}
				if got > place {
					made++
				} else {
					lost++
				}
				place = got
				x.want(t, "SELECT count(*) FROM t", strconv.Itoa(place*200))
			}
			t.Logf("%d writes were durable without an answer, %d were not", made, lost)
		})
	}
}

// TestWriterKilled kills a process that writes to an SQLite file.
func TestWriterKilled(t *testing.T) {
	if path := os.Getenv("SQLSINK_TEST_WRITER"); path != "" {
		writeForEver(t, path)
		return
	}
	x := newTarget(t, sqlsink.SQLite, false)
	last := 0
	for range 5 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestWriterKilled$")
		cmd.Env = append(os.Environ(), "SQLSINK_TEST_WRITER="+x.cfg.Path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewScanner(out)
		confirmed := last
		for i := 0; i < 7 && r.Scan(); i++ {
			if n, err := strconv.Atoi(strings.TrimPrefix(r.Text(), "wrote ")); err == nil {
				confirmed = n
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for r.Scan() {
			if n, err := strconv.Atoi(strings.TrimPrefix(r.Text(), "wrote ")); err == nil {
				confirmed = n
			}
		}
		_ = cmd.Wait() // killed
		s := x.sink(t)
		last, _ = strconv.Atoi(take(t, s))
		if last < confirmed || last > confirmed+1 || confirmed == 0 {
			t.Fatalf("the record is %d, and %d writes were confirmed", last, confirmed)
		}
		x.want(t, "SELECT count(*) FROM t", strconv.Itoa(last*50))
		s.Close()
	}
}

func writeForEver(t *testing.T, path string) {
	s, err := sqlsink.Open(t.Context(), sqlsink.Config{Kind: sqlsink.SQLite, Path: path, Destination: "replica"})
	if err != nil {
		t.Fatal(err)
	}
	place, _ := strconv.Atoi(take(t, s))
	for end := time.Now().Add(patience); time.Now().Before(end); place++ {
		var ms []onewrite.Message
		for i := range 50 {
			ms = append(ms, at(ev("c", "t", row{"id": place*50 + i}, nil, row{"id": place*50 + i}))...)
		}
		if _, err := s.WriteAt(t.Context(), ms, []byte(strconv.Itoa(place+1))); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(os.Stdout, "wrote %d\n", place+1)
	}
}

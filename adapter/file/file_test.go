package file_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/file"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// numbered makes the events first to last, as the text of their lines is alike.
func numbered(first, last int) []onewrite.Event {
	var es []onewrite.Event
	for i := first; i <= last; i++ {
		es = append(es, onewrite.Event{
			ID: fmt.Sprintf("id-%05d", i), Source: "db", Topic: "t", Type: "t", Key: "k",
			Time:        time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			ContentType: "application/json", Data: fmt.Appendf(nil, `{"n":%d}`, i),
		})
	}
	return es
}

func write(t *testing.T, s *file.Sink, events []onewrite.Event) {
	t.Helper()
	if n, err := s.Write(context.Background(), events); n != len(events) || err != nil {
		t.Fatalf("Write of %d events = %d, %v", len(events), n, err)
	}
}

// wantNumbered demands that the files hold the events first to last, once each.
func wantNumbered(t *testing.T, first, last int, paths ...string) {
	t.Helper()
	checkNumbered(t, first, last, read(t, paths...))
}

func checkNumbered(t *testing.T, first, last int, got []onewrite.Event) {
	t.Helper()
	want := numbered(first, last)
	if len(got) != len(want) {
		t.Errorf("%d events, want %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if got[i].ID != want[i].ID {
			t.Fatalf("event %d is %s, want %s", i, got[i].ID, want[i].ID)
		}
	}
}

// A crash can tear the last write anywhere. Whatever is left, the same events
// written again are there once.
func TestTornLineIsCutOff(t *testing.T) {
	dir := t.TempDir()
	var whole []byte
	for _, e := range numbered(1, 3) {
		whole = append(cloudevents.AppendJSON(whole, &e), '\n')
	}
	for cut := range len(whole) + 1 {
		for _, zeros := range []int{0, 10} {
			path := filepath.Join(dir, fmt.Sprint(cut, ".", zeros))
			left := append(whole[:cut:cut], make([]byte, zeros)...)
			must(t, os.WriteFile(path, left, 0o600))
			s, err := file.Open(file.Config{Path: path})
			if err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			write(t, s, numbered(1, 4))
			must(t, s.Close())
			wantNumbered(t, 1, 4, path)
			if t.Failed() {
				t.Fatalf("cut at %d of %d, with %d zeros behind", cut, len(whole), zeros)
			}
		}
	}
}

// A torn line longer than the window is cut off as well.
func TestLongTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	s := open(t, file.Config{Path: path})
	write(t, s, numbered(1, 2))
	must(t, s.Close())
	torn := append([]byte(`{"specversion":"1.0","id":"`), bytes.Repeat([]byte("x"), 17<<20)...)
	appendTo(t, path, string(torn))
	var log bytes.Buffer
	s = open(t, file.Config{Path: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	write(t, s, numbered(2, 3))
	if !strings.Contains(log.String(), "torn line") {
		t.Errorf("nothing said of it: %s", log.String())
	}
	// Event 2 was beyond the window: it may be there twice, but nothing is lost.
	got := read(t, path)
	if n := len(got); n < 3 || got[0].ID != "id-00001" || got[n-1].ID != "id-00003" {
		t.Errorf("%d events: %v", n, got)
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString(text)
	must(t, errors.Join(err, f.Close()))
}

// A file that is not ours is not cut.
func TestForeignEndIsLeftAlone(t *testing.T) {
	for _, text := range []string{"my notes", "line\nmy notes", "PK\x03\x04\x00\x00binary", "{\"specver\n{\"other\":"} {
		path := filepath.Join(t.TempDir(), "f")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := file.Open(file.Config{Path: path})
		if err == nil || !strings.Contains(err.Error(), "echo >>") {
			t.Errorf("%q: Open = %v, want an error with the cure", text, err)
		}
		if after, _ := os.ReadFile(path); string(after) != text {
			t.Errorf("%q became %q", text, after)
		}
	}
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, []byte("# a comment\n[1]\n{\"id\":{}}\n\n"), 0o600))
	s := open(t, file.Config{Path: path})
	write(t, s, numbered(1, 1))
	if after, _ := os.ReadFile(path); !bytes.HasPrefix(after, []byte("# a comment\n[1]\n{\"id\":{}}\n\n{\"spec")) {
		t.Errorf("the file became %q", after)
	}
}

// The window keeps repeats out: within a sink, across Open, and across rotation;
// equal ids of two sources are two events.
func TestRepeatsAreWrittenOnce(t *testing.T) {
	for name, rotate := range map[string]int64{"plain": 0, "rotating": 5000} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			for first := 1; first < 400; first += 20 {
				s := open(t, file.Config{Path: path, Rotate: rotate})
				write(t, s, numbered(max(1, first-30), first+19))
				write(t, s, numbered(first, first+19))
				must(t, s.Close())
			}
			wantNumbered(t, 1, 400, append(rotated(t, path), path)...)
			s := open(t, file.Config{Path: path, Rotate: rotate})
			other := numbered(400, 400)
			other[0].Source = "db2"
			write(t, s, append(other, other...))
			if got := read(t, path); len(got) == 0 || got[len(got)-1].Source != "db2" {
				t.Errorf("the event of the other source is missing")
			}
		})
	}
}

// The window is bounded, and what falls out of it is written again, not lost.
func TestWindowIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	s := open(t, file.Config{Path: path})
	for first := 1; first <= 30_000; first += 1000 {
		write(t, s, numbered(first, first+999))
	}
	write(t, s, numbered(20_001, 30_000))
	wantNumbered(t, 1, 30_000, path)
	write(t, s, numbered(1, 1))
	must(t, s.Close())
	s = open(t, file.Config{Path: path})
	write(t, s, numbered(20_002, 30_000))
	write(t, s, numbered(2, 2))
	got := read(t, path)
	if len(got) != 30_002 || got[30_000].ID != "id-00001" || got[30_001].ID != "id-00002" {
		t.Errorf("%d events", len(got))
	}
}

func TestSecondWriterStandsBy(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	s := open(t, file.Config{Path: path})
	_, err := file.Open(file.Config{Path: filepath.Join(dir, ".", "x", "..", "f")})
	if !errors.Is(err, onewrite.ErrStandby) {
		t.Errorf("Open of a file in use: %v", err)
	}
	if runtime.GOOS != "windows" {
		link := filepath.Join(dir, "link")
		must(t, os.Symlink(path, link))
		if _, err := file.Open(file.Config{Path: link}); !errors.Is(err, onewrite.ErrStandby) {
			t.Errorf("Open of a link to a file in use: %v", err)
		}
	}
	must(t, s.Close())
	open(t, file.Config{Path: path})
}

// Log rotation by others: renamed, removed with its folder, copied and
// truncated, or appended to by somebody else.
func TestFileChangedByOthers(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be renamed there")
	}
	dir := filepath.Join(t.TempDir(), "d")
	path := filepath.Join(dir, "f")
	s := open(t, file.Config{Path: path})
	write(t, s, numbered(1, 2))
	must(t, os.Rename(path, path+".1"))
	write(t, s, numbered(3, 4))
	wantNumbered(t, 1, 2, path+".1")
	wantNumbered(t, 3, 4, path)

	must(t, os.RemoveAll(dir))
	write(t, s, numbered(5, 6))
	wantNumbered(t, 5, 6, path)

	must(t, os.Truncate(path, 0))
	write(t, s, numbered(7, 8))
	wantNumbered(t, 7, 8, path)

	appendTo(t, path, "{}\n")
	write(t, s, numbered(9, 9))
	if text, _ := os.ReadFile(path); bytes.Count(text, []byte("\n")) != 4 || !bytes.Contains(text, []byte("\n{}\n{\"spec")) {
		t.Errorf("after a foreign line: %q", text)
	}
	text, err := os.ReadFile(path) // the like of it, but another file
	must(t, err)
	must(t, os.Rename(path, path+".2"))
	must(t, os.WriteFile(path, text, 0o600))
	write(t, s, numbered(10, 10))
	if text, _ := os.ReadFile(path); !bytes.Contains(text, []byte("id-00010")) {
		t.Error("the event went to the file that was moved")
	}
	// A file that was removed and is asked for again gets its events again.
	must(t, os.Remove(path))
	write(t, s, numbered(7, 9))
	wantNumbered(t, 7, 9, path)
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	s := open(t, file.Config{Path: path, Rotate: 4096})
	for i := 1; i <= 200; i++ {
		write(t, s, numbered(i, i))
	}
	files := append(rotated(t, path), path)
	if len(files) < 5 {
		t.Errorf("%d files", len(files))
	}
	for _, f := range files {
		st, err := os.Stat(f)
		must(t, err)
		if st.Size() > 4096 || st.Size() == 0 {
			t.Errorf("%s has %d bytes", f, st.Size())
		}
	}
	wantNumbered(t, 1, 200, files...)
	big := numbered(201, 300) // one Write stays together
	write(t, s, big)
	wantNumbered(t, 201, 300, path)
}

func TestMode(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes there")
	}
	path := filepath.Join(t.TempDir(), "a", "f")
	open(t, file.Config{Path: path})
	st, err := os.Stat(path)
	must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
}

func TestOpenSaysTheCure(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "plain"), nil, 0o600))
	for path, want := range map[string]string{
		"":                              "set path",
		dir:                             "no regular file",
		filepath.Join(dir, "plain/sub"): "set path",
	} {
		if _, err := file.Open(file.Config{Path: path}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q) = %v, want %q", path, err, want)
		}
	}
	if _, err := file.Open(file.Config{Path: filepath.Join(dir, "f"), Rotate: -1}); err == nil {
		t.Error("a negative Rotate is accepted")
	}
}

// limited takes so many bytes and then fails.
type limited struct {
	room int
	got  bytes.Buffer
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.room)
	l.room -= n
	l.got.Write(p[:n])
	if n < len(p) {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

func TestStandardOutput(t *testing.T) {
	var all bytes.Buffer
	for _, e := range numbered(1, 3) {
		all.Write(append(cloudevents.AppendJSON(nil, &e), '\n'))
	}
	line := all.Len() / 3
	for room := range all.Len() + 1 {
		out := &limited{room: room}
		s := open(t, file.Config{Path: "-", Stdout: out})
		n, err := s.Write(context.Background(), numbered(1, 3))
		if n != room/line || (err == nil) != (n == 3) {
			t.Fatalf("with room for %d bytes of %d: Write = %d, %v", room, all.Len(), n, err)
		}
		out.room = 1 << 20
		write(t, s, numbered(n+1, 4))
		var ids []string
		for l := range strings.Lines(out.got.String()) {
			if e, err := cloudevents.ParseJSON([]byte(l)); err == nil {
				ids = append(ids, e.ID)
			}
		}
		ids = slices.Compact(ids) // one that lacked its line break only is repeated
		if room == all.Len() && strings.Contains(out.got.String(), "\n\n") {
			t.Errorf("an empty line: %q", out.got.String())
		}
		if got := strings.Join(ids, " "); got != "id-00001 id-00002 id-00003 id-00004" {
			t.Fatalf("with room for %d bytes: %s", room, got)
		}
		must(t, s.Close())
		if _, err := s.Write(context.Background(), numbered(5, 5)); err == nil {
			t.Error("Write after Close")
		}
	}
}

// The official library reads the lines.
func TestLinesAreCloudEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	s := open(t, file.Config{Path: path})
	events := numbered(1, 3)
	events[0].Header = map[string]string{"tenant": "ä\"b", "X-Request-Id": "r 1"}
	events[1].ContentType, events[1].Data = "text/plain", []byte("a\n\"b\"")
	events[2].ContentType, events[2].Data = "application/octet-stream", []byte{0, 255, 10}
	write(t, s, events)
	text, err := os.ReadFile(path)
	must(t, err)
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	for i, line := range lines {
		var e event.Event
		if err := e.UnmarshalJSON([]byte(line)); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if err := e.Validate(); err != nil {
			t.Errorf("%v: %s", err, line)
		}
		if e.ID() != events[i].ID || e.Source() != "/db" || e.Type() != "t" || !e.Time().Equal(events[i].Time) ||
			e.DataContentType() != events[i].ContentType || e.Extensions()["partitionkey"] != "k" {
			t.Errorf("event %d is %v", i, e)
		}
		data := e.Data()
		if i == 1 { // the library hands a string of the JSON format out as JSON
			data = bytes.Trim(bytes.ReplaceAll(bytes.ReplaceAll(data, []byte(`\n`), []byte("\n")), []byte(`\"`), []byte(`"`)), `"`)
			data = append(data, '"')
		}
		if !bytes.Equal(data, events[i].Data) {
			t.Errorf("event %d has data %q, want %q", i, data, events[i].Data)
		}
	}
}

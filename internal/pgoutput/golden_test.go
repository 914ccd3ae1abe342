package pgoutput

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

var (
	capture = flag.Bool("capture", false, "play the scenario on PostgreSQL 15 to 18 and keep what they send")
	update  = flag.Bool("update", false, "write the rendering of what was captured")
)

// captured are the servers whose bytes are kept.
var captured = []int{15, 16, 17, 18}

// section is what one variant sent.
type section struct {
	variant
	frames [][]byte
}

func goldenPath(version int, ext string) string {
	return filepath.Join("testdata", fmt.Sprintf("pg%d.%s", version, ext))
}

// TestCapture plays the scenario on four servers and keeps the frames: a line of
// hex a frame, under a line with the variant. It runs with -capture -update, and
// needs all four (ONEWRITE_TEST_POSTGRES_16=URL names a running one).
func TestCapture(t *testing.T) {
	if !*capture {
		t.Skip("the bytes in testdata are kept; -capture -update makes them anew")
	}
	for _, version := range captured {
		pg := servers.Postgres(t, version)
		var out bytes.Buffer
		for _, v := range variants {
			if v.since > version {
				continue
			}
			fmt.Fprintf(&out, "# %s\n", v.name)
			for _, frame := range play(t, pg, v) {
				fmt.Fprintf(&out, "%x\n", frame)
			}
		}
		if err := os.WriteFile(goldenPath(version, "golden"), out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// golden reads what a server sent.
func golden(t testing.TB, version int) (sections []section) {
	t.Helper()
	text, err := os.ReadFile(goldenPath(version, "golden"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "# "); ok {
			sections = append(sections, section{variant: variantOf(t, name)})
			continue
		}
		frame, err := hex.DecodeString(line)
		if err != nil || len(frame) == 0 || len(sections) == 0 {
			t.Fatalf("%s: %q: %v", goldenPath(version, "golden"), line, err)
		}
		last := &sections[len(sections)-1]
		last.frames = append(last.frames, frame)
	}
	return sections
}

func variantOf(t testing.TB, name string) variant {
	t.Helper()
	for _, v := range variants {
		if v.name == name {
			return v
		}
	}
	t.Fatalf("no variant is named %q", name)
	return variant{}
}

// TestGolden: what real servers sent reads as it was seen to be right.
func TestGolden(t *testing.T) {
	for _, version := range captured {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			var out strings.Builder
			var m Message
			sections := golden(t, version)
			if want := map[bool]int{true: 5, false: 7}[version == 15]; len(sections) != want {
				t.Fatalf("%d sections, there were %d", len(sections), want)
			}
			for _, s := range sections {
				fmt.Fprintf(&out, "# %s\n", s.name)
				if len(s.frames) < 90 {
					t.Errorf("%s: only %d frames", s.name, len(s.frames))
				}
				d := decoderOf(t, s.variant)
				for _, frame := range s.frames {
					fmt.Fprintln(&out, renderFrame(t, d, frame, &m))
				}
			}
			compareText(t, goldenPath(version, "txt"), out.String())
		})
	}
}

func compareText(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	have := strings.Split(got, "\n")
	for i := range max(len(want), len(have)) {
		var w, h string
		if i < len(want) {
			w = want[i]
		}
		if i < len(have) {
			h = have[i]
		}
		if w != h {
			t.Fatalf("%s:%d is not what it was\nwas: %s\nis:  %s", path, i+1, w, h)
		}
	}
}

// TestGoldenAgain: every captured message, encoded again, is what the server
// sent. It counts what the captures have, so that none of it goes missing.
func TestGoldenAgain(t *testing.T) {
	for _, version := range captured {
		has := make(map[string]int)
		for _, s := range golden(t, version) {
			d := decoderOf(t, s.variant)
			var m Message
			for _, frame := range s.frames {
				if frame[0] == FrameKeepalive {
					has["keepalive"]++
					continue
				}
				x, err := ParseXLogData(frame)
				if err != nil {
					t.Fatal(err)
				}
				if err := d.Decode(x.Data, &m); err != nil {
					t.Fatalf("%v in %x", err, x.Data)
				}
				checkMessage(t, &m, x.Data, s.stream == "parallel")
				count(has, &m)
			}
		}
		want := []string{"keepalive", "K", "O", "old", "n", "u", "t", "b", "cascade", "origin", "origin in a stream", "message", "subtransaction", "subtransaction aborted", "transaction aborted",
			"identity d", "identity n", "identity f", "identity i", "relation in a subtransaction", "truncate in a subtransaction", "pg_catalog"}
		if version >= 16 {
			want = append(want, "abort with a place")
		}
		for _, k := range "BCORYIUDTMScEAbPKrp" {
			want = append(want, Kind(k).String())
		}
		for _, w := range want {
			if has[w] == 0 {
				t.Errorf("PostgreSQL %d: nothing captured has: %s", version, w)
			}
		}
	}
}

// count notes what a message has that another of its kind may not have.
func count(has map[string]int, m *Message) {
	note := func(on bool, what string) {
		if on {
			has[what]++
		}
	}
	inSubtransaction := m.Stream != 0 && m.XID != m.Stream
	note(true, m.Kind.String())
	note(m.OldKind != 0, string(rune(m.OldKind)))
	note(m.OldKind == 0 && m.Kind == KindUpdate, "old")
	for _, t := range []Tuple{m.Old, m.New} {
		for _, c := range t {
			note(true, string(rune(c.Kind)))
		}
	}
	note(m.Cascade && m.RestartIdentity && len(m.Relations) == 2, "cascade")
	note(string(m.Origin) == "far away" && m.OriginLSN == 0x12_000000AB, "origin")
	note(m.Kind == KindOrigin && m.Stream != 0, "origin in a stream")
	note(m.Kind == KindMessage && !m.Transactional, "message")
	note(m.Kind == KindInsert && inSubtransaction, "subtransaction")
	note(m.Kind == KindRelation && inSubtransaction, "relation in a subtransaction")
	note(m.Kind == KindTruncate && inSubtransaction, "truncate in a subtransaction")
	note(m.Kind == KindStreamAbort && m.SubXID != m.XID, "subtransaction aborted")
	note(m.Kind == KindStreamAbort && m.SubXID == m.XID, "transaction aborted")
	note(m.AbortLSN != 0 && m.AbortTime != 0, "abort with a place")
	note(m.Type.Namespace == "pg_catalog", "pg_catalog")
	if m.Relation != nil {
		note(true, "identity "+string(rune(m.Relation.Identity)))
	}
}

package file

import (
	"bytes"
	"encoding/json"
	"io"
)

// The window is what a Sink knows of the end of its file. It has to be longer
// than what can be written between two stored positions of the delivery.
const (
	windowLines = 10_000
	windowBytes = 16 << 20
)

// window remembers the identities of the last events, oldest first.
type window struct {
	seen  map[string]struct{}
	order []string
}

// add reports whether id is new, and remembers it.
func (w *window) add(id string) bool {
	if _, ok := w.seen[id]; ok {
		return false
	}
	if w.seen == nil {
		w.seen = make(map[string]struct{})
	}
	w.seen[id] = struct{}{}
	w.order = append(w.order, id)
	return true
}

// undo forgets the last n that were added since the last trim.
func (w *window) undo(n int) {
	keep := len(w.order) - n
	for _, id := range w.order[keep:] {
		delete(w.seen, id)
	}
	w.order = w.order[:keep]
}

// trim forgets the oldest. It waits for a quarter more than it keeps, so that
// its cost is spread.
func (w *window) trim() {
	old := len(w.order) - windowLines
	if old < windowLines/4 {
		return
	}
	for _, id := range w.order[:old] {
		delete(w.seen, id)
	}
	w.order = w.order[:copy(w.order, w.order[old:])]
}

// identity is what CloudEvents calls the identity of an event. It is never empty.
func identity(source, id string) string { return source + "\x00" + id }

// tail reads the end of a file of size bytes: good is where its last whole line
// ends, ids are the identities of its last lines, oldest first. A line that
// holds no event has none.
func tail(r io.ReaderAt, size int64) (good int64, ids []string, err error) {
	start := max(0, size-windowBytes)
	buf := make([]byte, size-start)
	if err := readAt(r, buf, start); err != nil {
		return 0, nil, err
	}
	last := bytes.LastIndexByte(buf, '\n')
	if last < 0 {
		good, err = lineBefore(r, start)
		return good, nil, err
	}
	good = start + int64(last) + 1
	for buf = buf[:last+1]; len(buf) > 0 && len(ids) < windowLines; {
		begin := bytes.LastIndexByte(buf[:len(buf)-1], '\n') + 1
		if begin == 0 && start > 0 {
			break // the line began before what was read
		}
		if id := lineIdentity(buf[begin : len(buf)-1]); id != "" {
			ids = append(ids, id)
		}
		buf = buf[:begin]
	}
	for i, j := 0, len(ids)-1; i < j; i, j = i+1, j-1 {
		ids[i], ids[j] = ids[j], ids[i]
	}
	return good, ids, nil
}

// lineBefore returns the place after the last line break before end, or 0.
func lineBefore(r io.ReaderAt, end int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for end > 0 {
		part := buf[:min(int64(len(buf)), end)]
		end -= int64(len(part))
		if err := readAt(r, part, end); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return end + int64(i) + 1, nil
		}
	}
	return 0, nil
}

// lineHead is how every line of ours begins.
const lineHead = `{"specversion":`

// startsLine reports whether what begins at off is the begin of one of our
// lines, or the zeros that a file system leaves there after a power failure. It
// protects a file that is not ours from being cut.
func startsLine(r io.ReaderAt, off int64) (bool, error) {
	buf := make([]byte, len(lineHead))
	n, err := r.ReadAt(buf, off)
	if err != nil && err != io.EOF {
		return false, err
	}
	head := buf[:n]
	if i := bytes.IndexByte(head, 0); i >= 0 {
		head = head[:i]
	}
	return bytes.HasPrefix([]byte(lineHead), head), nil
}

func readAt(r io.ReaderAt, buf []byte, off int64) error {
	n, err := r.ReadAt(buf, off)
	if n == len(buf) {
		return nil
	}
	return err
}

// lineIdentity returns the identity of the event in a line, or "". It reads no
// more of the line than it has to. A line with a hole, which a power failure can
// leave in the middle of the last write, counts as no event: it comes again.
func lineIdentity(line []byte) string {
	if len(line) == 0 || line[len(line)-1] != '}' || bytes.IndexByte(line, 0) >= 0 {
		return ""
	}
	d := json.NewDecoder(bytes.NewReader(line))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return ""
	}
	var id, source string
	for id == "" || source == "" {
		name, err := d.Token()
		if err != nil {
			return ""
		}
		value, err := d.Token()
		if err != nil {
			return ""
		}
		text, ok := value.(string)
		if !ok {
			return ""
		}
		switch name {
		case "id":
			id = text
		case "source":
			source = text
		}
	}
	return identity(source, id)
}

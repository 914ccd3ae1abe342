package s3

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/parquet"
)

// maxKey is the longest name of an object, in bytes; S3's own limit is 1,024.
const maxKey = 1000

// object is one to be put.
type object struct {
	key         string
	log         string
	first, last uint64 // offsets; 0 where the events have none
	events      int
	lines       []byte // before compression
}

// packer compresses.
type packer struct {
	end, kind string // of names; the media type
	pack      func([]byte) ([]byte, error)
}

func packerOf(format, compression string) (packer, error) {
	switch {
	case format == "parquet" && parquet.Compression(compression):
		return packer{parquet.Ending, parquet.Type, func(b []byte) ([]byte, error) { return tabulate(b, compression) }}, nil
	case format == "parquet":
		return packer{}, fmt.Errorf("s3: compression %q is none of none, gzip, zstd, snappy, lz4; set one of them", compression)
	case format != "" && format != "jsonl":
		return packer{}, fmt.Errorf("s3: format %q is none of jsonl, parquet; set one of them", format)
	}
	switch compression {
	case "", "none":
		return packer{".jsonl", "application/x-ndjson", func(b []byte) ([]byte, error) { return b, nil }}, nil
	case "gzip":
		return packer{".jsonl.gz", "application/gzip", func(b []byte) ([]byte, error) {
			var out bytes.Buffer
			w := gzip.NewWriter(&out)
			_, err := w.Write(b)
			err = errors.Join(err, w.Close())
			return out.Bytes(), err
		}}, nil
	case "zstd":
		return packer{".jsonl.zst", "application/zstd", func(b []byte) ([]byte, error) {
			w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
			if err != nil {
				return nil, err
			}
			defer w.Close() //nolint:errcheck // nothing was written to it
			return w.EncodeAll(b, nil), nil
		}}, nil
	}
	return packer{}, fmt.Errorf("s3: compression %q is none of none, gzip, zstd; set one of them", compression)
}

// errLine: an event does not come back from its line, so it can be no row.
var errLine = errors.New("the event has no form as a row")

// tabulate makes Parquet of lines.
func tabulate(lines []byte, compression string) ([]byte, error) {
	var out bytes.Buffer
	w := parquet.NewWriter(&out, compression)
	for line := range bytes.Lines(lines) {
		e, err := cloudevents.ParseJSON(line)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %w; take it out by filter, or write format: jsonl", errLine, err), w.Close())
		}
		if err := w.Write(&e, cloudevents.Textual(&e)); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

var placeholder = regexp.MustCompile(`\{[^}]*\}`)

// rootOf returns the folder of a prefix that is the same for all events.
func rootOf(prefix string) (string, error) {
	for _, p := range placeholder.FindAllString(prefix, -1) {
		switch p {
		case "{source}", "{topic}", "{type}", "{date}", "{hour}":
		default:
			return "", fmt.Errorf("s3: prefix has %s, which stands for nothing; write those there are: {source}, {topic}, {type}, {date}, {hour}", p)
		}
	}
	if strings.HasPrefix(prefix, "/") {
		return "", errors.New("s3: prefix begins with /, and S3's names do not; remove it")
	}
	root, _, _ := strings.Cut(prefix, "{")
	return root[:strings.LastIndexByte(root, '/')+1], nil
}

// word is a text of an event as a part of a name.
func word(text string) string {
	text = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r) {
			return r
		}
		return '_'
	}, text)
	if strings.Trim(text, ".") == "" { // a folder of no name, or one that tools take for the folder above
		return "_" + text
	}
	return text
}

// prefixOf fills the prefix in. Day and hour are those of the event, so that it is the
// same in a repeat.
func (s *Sink) prefixOf(e *onewrite.Event) string {
	date, hour := "undated", "undated"
	if !e.Time.IsZero() {
		date, hour = e.Time.UTC().Format("2006-01-02"), e.Time.UTC().Format("15")
	}
	return strings.NewReplacer("{source}", word(e.Source), "{topic}", word(e.Topic), "{type}", word(e.Type), "{date}", date, "{hour}", hour).Replace(s.prefix)
}

// objects makes the objects of messages, in the order of their first ones. An error is
// about messages[bad].
func (s *Sink) objects(messages []onewrite.Message) (list []object, bad int, err error) {
	at := map[[2]string]int{}
	for i := range messages {
		m := &messages[i]
		log := m.Log
		if log == "" {
			log = m.Source
		}
		prefix := s.prefixOf(&m.Event)
		if n := len(prefix) + len(log) + 100; n > maxKey {
			return nil, i, fmt.Errorf("s3: event %s would be in an object with a name of %d bytes, and S3 takes 1,024: %w; take what is so long out of prefix", m.ID, n, onewrite.ErrRejected)
		}
		n, has := at[[2]string{prefix, log}]
		if !has {
			n = len(list)
			at[[2]string{prefix, log}] = n
			list = append(list, object{key: prefix, log: log, first: m.Offset})
		}
		o := &list[n]
		o.first, o.last = min(o.first, m.Offset), max(o.last, m.Offset)
		o.lines = append(cloudevents.AppendJSON(o.lines, &m.Event), '\n')
		o.events++
	}
	for i := range list {
		o := &list[i]
		sum := sha256.Sum256(o.lines)
		o.key += word(o.log)
		if o.last > 0 {
			o.key += fmt.Sprintf("-%016d-%016d", o.first, o.last)
		}
		o.key += "-" + hex.EncodeToString(sum[:16]) + s.pack.end
	}
	return list, 0, nil
}

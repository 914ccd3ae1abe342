// Package parquet writes events as Apache Parquet, a row an event, and reads them back.
// The columns have the names of the CloudEvents attributes, so that a Parquet file holds
// what a file of lines of JSON holds.
//
// Sources: the Parquet format's specification (file layout and logical types), and the
// CloudEvents JSON format for the names.
package parquet

import (
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	pq "github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"

	"github.com/onewrite/onewrite"
)

// Ending is behind the names of Parquet files, Type their media type.
const (
	Ending = ".parquet"
	Type   = "application/vnd.apache.parquet"
)

// group is how many bytes of events a row group has before it is written: it bounds the
// memory of a writer, and what a reader has to load at once.
const group = 32 << 20

// row is what a file has of an event. Pointers are columns that may be null.
type row struct {
	ID          string            `parquet:"id"`
	Source      string            `parquet:"source,dict"`
	Type        string            `parquet:"type,dict"`
	Time        *int64            `parquet:"time,timestamp(microsecond)"`
	ContentType *string           `parquet:"datacontenttype,dict"`
	Topic       string            `parquet:"topic,dict"`
	Key         *string           `parquet:"partitionkey"`
	Seq         *string           `parquet:"sequence"`
	TxID        *string           `parquet:"txid"`
	TxIndex     *int64            `parquet:"txindex"`
	TxLast      *bool             `parquet:"txlast"`
	Headers     map[string]string `parquet:"headers"`
	Data        *string           `parquet:"data"`
	Binary      *[]byte           `parquet:"data_binary"`
}

// name is the columns that tell which event a row is.
type name struct {
	ID     string `parquet:"id"`
	Source string `parquet:"source"`
}

// codecs are the compressions that readers of Parquet have.
var codecs = map[string]compress.Codec{
	"": &pq.Zstd, "zstd": &pq.Zstd, "gzip": &pq.Gzip, "snappy": &pq.Snappy, "lz4": &pq.Lz4Raw, "none": &pq.Uncompressed,
}

// Compression reports whether there is a compression of this name; "" is zstd.
func Compression(name string) bool { return codecs[name] != nil }

// Writer writes events to one file. The file can be read when Close has
// returned nil, and not before: its directory stands at its end.
type Writer struct {
	out  *pq.GenericWriter[row]
	size int // bytes of events in the row group
	rows int64
}

// NewWriter makes a writer with a compression that [Compression] reports.
func NewWriter(out io.Writer, compression string) *Writer {
	return &Writer{out: pq.NewGenericWriter[row](out, pq.Compression(codecs[compression]), pq.CreatedBy("onewrite", "1", ""), pq.KeyValueMetadata("specversion", "1.0"))}
}

// Write adds an event. text says that its data is JSON or text, and not any bytes. After
// an error the file is lost.
func (w *Writer) Write(e *onewrite.Event, text bool) error {
	if _, err := w.out.Write([]row{rowOf(e, text)}); err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	w.rows++
	if w.size += e.Size(); w.size < group {
		return nil
	}
	w.size = 0
	if err := w.out.Flush(); err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	return nil
}

// Rows returns how many events were added.
func (w *Writer) Rows() int64 { return w.rows }

// Close writes what is left, and the directory.
func (w *Writer) Close() error {
	if err := w.out.Close(); err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	return nil
}

func rowOf(e *onewrite.Event, text bool) row {
	r := row{ID: e.ID, Source: "/" + e.Source, Type: e.Type, Topic: e.Topic, Headers: e.Header,
		ContentType: filled(e.ContentType), Key: filled(e.Key), Seq: filled(e.Seq), TxID: filled(e.Tx.ID)}
	if !e.Time.IsZero() {
		t := e.Time.UnixMicro()
		r.Time = &t
	}
	if e.Tx.ID != "" {
		i, last := int64(e.Tx.Index), e.Tx.Last
		r.TxIndex, r.TxLast = &i, &last
	}
	switch data := string(e.Data); {
	case e.Data == nil:
	case text && utf8.Valid(e.Data):
		r.Data = &data
	default:
		r.Binary = &e.Data
	}
	return r
}

// filled is a text as a column that may be null.
func filled(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// Rows returns how many rows the directory of a file names. A file that is not whole is
// an error.
func Rows(r io.ReaderAt, size int64) (n int64, err error) {
	defer caught(&err)
	f, err := pq.OpenFile(r, size, pq.SkipPageIndex(true), pq.SkipBloomFilters(true))
	if err != nil {
		return 0, fmt.Errorf("parquet: %w", err)
	}
	return f.NumRows(), nil
}

// Names returns id and source of the last events of a file, at most limit, oldest first.
func Names(r io.ReaderAt, size int64, limit int) (events []onewrite.Event, err error) {
	err = read(r, size, limit, func(n *name) {
		events = append(events, onewrite.Event{ID: n.ID, Source: n.Source[min(1, len(n.Source)):]})
	})
	return events, err
}

// Events returns all events of a file.
func Events(r io.ReaderAt, size int64) (events []onewrite.Event, err error) {
	err = read(r, size, -1, func(r *row) { events = append(events, r.event()) })
	return events, err
}

// read hands out the last rows of a file; all, if limit is negative.
func read[T any](r io.ReaderAt, size int64, limit int, take func(*T)) (err error) {
	defer caught(&err)
	f, err := pq.OpenFile(r, size)
	if err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	in := pq.NewGenericReader[T](f)
	defer in.Close() //nolint:errcheck // it reads memory
	if left := in.NumRows() - int64(limit); limit >= 0 && left > 0 {
		if err := in.SeekToRow(left); err != nil {
			return fmt.Errorf("parquet: %w", err)
		}
	}
	for {
		some := make([]T, 256) // not used again: what is handed out points into it
		n, err := in.Read(some)
		for i := range some[:n] {
			take(&some[i])
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("parquet: %w", err)
		}
	}
}

// caught makes an error of what the library panics with on a damaged file.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("parquet: the file is damaged: %v", p)
	}
}

func (r *row) event() onewrite.Event {
	e := onewrite.Event{ID: r.ID, Source: r.Source[min(1, len(r.Source)):], Type: r.Type, Topic: r.Topic,
		ContentType: value(r.ContentType), Key: value(r.Key), Seq: value(r.Seq)}
	e.Tx = onewrite.Tx{ID: value(r.TxID), Index: int(value(r.TxIndex)), Last: value(r.TxLast)}
	if r.Time != nil {
		e.Time = time.UnixMicro(*r.Time).UTC()
	}
	if len(r.Headers) > 0 {
		e.Header = r.Headers
	}
	switch {
	case r.Data != nil:
		e.Data = []byte(*r.Data)
	case r.Binary != nil:
		e.Data = append([]byte{}, *r.Binary...) // of no bytes is not the same as none
	}
	return e
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

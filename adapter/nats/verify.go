package nats

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/minio/highwayhash"
)

// The server verifies little: after a clean stop it believes its index, and passes
// over a message whose checksum is wrong when it comes to it; after a crash it cuts
// a block at the first bad record, in silence. So the blocks are read here before
// it starts. A record is
//
//	length 4 (the top bit: has headers) | sequence 8 | time 8 | subject length 2 |
//	subject | header length 4 and headers, if it has | data | checksum 8
//
// and the checksum covers sequence, time, subject, headers and data.
const (
	recordHead = 22
	recordSum  = 8
	hasHeader  = 1 << 31
	maxRecord  = 32 << 20 // what the server takes for damage
)

// checksum is the server's, keyed with the names of the stream and the block.
type checksum interface {
	Write(p []byte) (int, error)
	Sum(b []byte) []byte
	Reset()
}

// streamsDir is where the server keeps its streams, one folder each.
func streamsDir(dir string) string {
	return filepath.Join(dir, "jetstream", "$G", "streams")
}

// verify reads every block of the store. damage says what is wrong, "" if nothing
// is. torn are the streams whose newest record is not whole: a crash does that to
// one that nobody was told of, and the server cuts it off.
func verify(dir string) (damage string, torn []string, err error) {
	streams, err := os.ReadDir(streamsDir(dir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", nil, err
	}
	var data []byte // of one block after the other
	for _, s := range streams {
		if !s.IsDir() || strings.HasPrefix(s.Name(), ".") { // of a stream that was being removed
			continue
		}
		numbers, err := blocks(filepath.Join(streamsDir(dir), s.Name(), "msgs"))
		if err != nil {
			return "", nil, err
		}
		for i, n := range numbers {
			key := sha256.Sum256([]byte(s.Name() + "-" + strconv.Itoa(n)))
			sum, err := highwayhash.New64(key[:])
			if err != nil {
				return "", nil, err
			}
			path := filepath.Join(streamsDir(dir), s.Name(), "msgs", strconv.Itoa(n)+".blk")
			data, err = readInto(data, path)
			if err != nil {
				return "", nil, err
			}
			at := verifyBlock(data, sum)
			switch {
			case at == len(data):
			case i == len(numbers)-1 && cutShort(data[at:], sum):
				torn = append(torn, s.Name())
			default:
				return fmt.Sprintf("%s is not what was written, from byte %d on", path, at), nil, nil
			}
		}
	}
	return "", torn, nil
}

// readInto reads a file into room, or into a larger one.
func readInto(room []byte, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return room, err
	}
	defer func() { _ = f.Close() }()
	s, err := f.Stat()
	if err != nil {
		return room, err
	}
	room = slices.Grow(room[:0], int(s.Size()))[:s.Size()]
	_, err = io.ReadFull(f, room)
	return room, err
}

// blocks returns the numbers of a stream's blocks in order.
func blocks(dir string) (numbers []int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		text, ok := strings.CutSuffix(e.Name(), ".blk")
		if n, err := strconv.Atoi(text); ok && err == nil {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// verifyBlock returns where the first bad record begins; the end if all are good.
func verifyBlock(data []byte, sum checksum) int {
	for at := 0; at < len(data); {
		n := verifyRecord(data[at:], sum)
		if n == 0 {
			return at
		}
		at += n
	}
	return len(data)
}

// verifyRecord returns the length of the record that data begins with, 0 if it is
// bad.
func verifyRecord(data []byte, sum checksum) int {
	if len(data) < recordHead+recordSum {
		return 0
	}
	length := binary.LittleEndian.Uint32(data)
	headers := length&hasHeader != 0
	n, subject := int(length&^hasHeader), int(binary.LittleEndian.Uint16(data[20:]))
	end := n - recordSum
	if n > maxRecord || n > len(data) || end < recordHead+subject {
		return 0
	}
	body := data[recordHead+subject : end]
	if headers {
		if len(body) < 4 {
			return 0
		}
		size := int(binary.LittleEndian.Uint32(body))
		body = body[4:]
		// Its length is not covered by the checksum; where it ends shows in itself.
		if size > len(body) || !bytes.HasPrefix(body, []byte("NATS/1.0")) || bytes.Index(body, []byte("\r\n\r\n"))+4 != size {
			return 0
		}
	}
	sum.Reset()
	sum.Write(data[4:20])
	sum.Write(data[recordHead : recordHead+subject])
	sum.Write(body)
	if !bytes.Equal(sum.Sum(nil), data[end:n]) {
		return 0
	}
	return n
}

// cutShort reports whether data is the beginning of one record that was being
// written, and not one that was written and changed: then others follow it.
func cutShort(data []byte, sum checksum) bool {
	for at := 1; at+recordHead+recordSum <= len(data); at++ {
		if verifyRecord(data[at:], sum) > 0 {
			return false
		}
	}
	if len(data) < recordHead+recordSum {
		return true
	}
	n := int(binary.LittleEndian.Uint32(data) &^ hasHeader)
	return n > len(data) && n <= maxRecord
}

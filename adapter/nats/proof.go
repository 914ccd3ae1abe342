package nats

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What the server confirms is looked for in the folder, by its path, before anybody hears
// of it. Which files are there says little: the server begins blocks, writes them anew
// and removes them at any time. That the next start will find the record says all.

// marks are the bits of a record's sequence that say that it is a deletion.
const marks = 3 << 62

// patient is how long a record is looked for that is not found at once.
const patient = time.Second

// errGone says that what was stored is not in the folder.
var errGone = errors.New("it is not in the folder")

// proof is where the newest record of a stream was seen.
type proof struct {
	n    int         // the block; 0 is none
	file os.FileInfo // its file
	at   int64       // up to where that was read
	from uint64      // the sequence of the first record, if it was read from its beginning
	seq  uint64      // the highest sequence in it
}

// proofs are those of the streams of a store.
type proofs struct {
	dir string

	mu   sync.Mutex
	seen map[string]proof
	lost map[string]int // a block that is gone with what it held
}

// settle reads the store anew.
func (p *proofs) settle() error {
	p.mu.Lock()
	p.seen, p.lost = map[string]proof{}, map[string]int{}
	p.mu.Unlock()
	streams, err := os.ReadDir(streamsDir(p.dir))
	if err != nil && !errors.Is(err, os.ErrNotExist) { // there is none before something is stored
		return err
	}
	for _, s := range streams {
		if strings.HasPrefix(s.Name(), ".") { // of a stream that was being removed
			continue
		}
		if _, _, err := p.look(s.Name(), 1); err != nil && err != errGone {
			return err
		}
	}
	return nil
}

// look looks for a record of a stream that was confirmed, or a later one, and returns
// where the last one was and where this one is.
func (p *proofs) look(stream string, seq uint64) (was, now proof, err error) {
	if runtime.GOOS == "windows" { // there a file in use cannot be removed, and who reads one keeps the server from it
		return was, now, nil
	}
	p.mu.Lock()
	was = p.seen[stream]
	p.mu.Unlock()
	if now, err = was.find(p.msgs(stream), seq); err == nil {
		p.mu.Lock()
		p.seen[stream] = now
		p.mu.Unlock()
	}
	return was, now, err
}

// lose notes that a block is gone which holds what is not purged.
func (p *proofs) lose(stream string, n int) {
	p.mu.Lock()
	p.lost[stream] = n
	p.mu.Unlock()
}

// missing reports whether something that was seen is there no more.
func (p *proofs) missing() bool {
	p.mu.Lock()
	seen, lost := maps.Clone(p.seen), maps.Clone(p.lost)
	p.mu.Unlock()
	for stream, n := range lost {
		if !there(p.msgs(stream), n) {
			return true
		}
	}
	for stream, was := range seen {
		if _, err := was.find(p.msgs(stream), was.seq); err == errGone {
			return true
		}
	}
	return false
}

func (p *proofs) msgs(stream string) string {
	return filepath.Join(streamsDir(p.dir), stream, "msgs")
}

func blockPath(dir string, n int) string { return filepath.Join(dir, strconv.Itoa(n)+".blk") }

func there(dir string, n int) bool {
	_, err := os.Stat(blockPath(dir, n))
	return !errors.Is(err, os.ErrNotExist)
}

// find looks for a record with a sequence, or a later one: where the last one was, or in
// the newest blocks. The error is errGone, or says why that is not known.
func (p proof) find(dir string, seq uint64) (proof, error) {
	if p.n > 0 {
		if now, err := p.grown(dir, seq); err != nil || now.seq >= seq {
			return now, err
		}
	}
	// The server may write a block anew, or remove the newest for another one, while they are
	// looked at; on a busy machine that takes a while.
	for end := time.Now().Add(patient); ; time.Sleep(2 * time.Millisecond) {
		numbers, err := blocks(dir)
		if err != nil {
			return p, err
		}
		for _, n := range slices.Backward(numbers) {
			now, holds, err := proof{n: n}.read(dir)
			if err != nil || now.seq >= seq {
				return now, err
			}
			if holds {
				break // what is before it is older
			}
		}
		if time.Now().After(end) {
			return p, errGone
		}
	}
}

// grown looks whether the block goes on to hold the newest record. It costs an append
// next to nothing: a block that has grown since is the one that is written to, and is
// not read for it.
func (p proof) grown(dir string, seq uint64) (proof, error) {
	info, err := os.Stat(blockPath(dir, p.n))
	if err == nil && os.SameFile(p.file, info) {
		if more := info.Size() - p.file.Size(); more > 0 || more == 0 && p.seq >= seq {
			return proof{p.n, info, p.at, p.from, max(p.seq, seq)}, nil
		}
	}
	now, _, err := p.read(dir)
	return now, err
}

// read reads on in a block, or all of it if the file is another one, as when the server
// has written it anew without what was purged. A block that is not there has nothing.
// holds says that there were messages and not only deletions.
func (p proof) read(dir string) (now proof, holds bool, err error) {
	now.n = p.n
	f, err := os.Open(blockPath(dir, p.n))
	if errors.Is(err, os.ErrNotExist) {
		return now, false, nil
	}
	if err != nil {
		return now, false, err
	}
	defer func() { _ = f.Close() }()
	if now.file, err = f.Stat(); err != nil {
		return now, false, err
	}
	size := now.file.Size()
	if p.file != nil && os.SameFile(p.file, now.file) && p.file.Size() <= size {
		now.at, now.from, now.seq = p.at, p.from, p.seq
	}
	var room [4 << 10]byte
	for next := []byte(nil); size-now.at >= recordHead+recordSum; {
		if len(next) < recordHead {
			n, err := f.ReadAt(room[:], now.at)
			if err != nil && err != io.EOF {
				return now, holds, err
			}
			if next = room[:n]; n < recordHead { // it was cut just now
				break
			}
		}
		n := int64(binary.LittleEndian.Uint32(next) &^ hasHeader)
		if n < recordHead+recordSum || n > size-now.at { // it is being written
			break
		}
		seq := binary.LittleEndian.Uint64(next[4:])
		holds = holds || seq&marks == 0
		if now.from == 0 {
			now.from = seq &^ marks
		}
		now.at, now.seq = now.at+n, max(now.seq, seq&^marks)
		next = next[min(n, int64(len(next))):]
	}
	return now, holds, nil
}

// stored is called before a write that the server has confirmed is: it has to be in the
// files of the folder.
func (b *Bus) stored(ctx context.Context, stream string, seq uint64) error {
	if b.emb == nil {
		return nil
	}
	ill := b.emb.ill
	was, now, err := ill.proofs.look(stream, seq)
	if err == nil && was.n != now.n {
		err = b.unbroken(ctx, stream, was)
	}
	if err == errGone {
		ill.add("", gone)
		return ill.lost()
	}
	if err != nil {
		return fmt.Errorf("nats: look for what was stored in stream %s: %w", stream, err)
	}
	return ill.of(stream)
}

// unbroken returns errGone if a log that went on in another block lost the one before it,
// with what was not purged: its newest record is in no other block either. Of places and
// parked events any may go at any time.
func (b *Bus) unbroken(ctx context.Context, stream string, was proof) error {
	seen := &b.emb.ill.proofs
	if was.n == 0 || stream == b.stateStream() || stream == b.parkedStream() {
		return nil
	}
	dir := seen.msgs(stream)
	for end := time.Now().Add(patient); !there(dir, was.n); time.Sleep(2 * time.Millisecond) {
		js, err := b.link.jetStream()
		if err != nil {
			return err
		}
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		if s.CachedInfo().State.FirstSeq > was.seq {
			return nil
		}
		if held, err := holds(dir, was.seq); held || err != nil {
			return err
		}
		if time.Now().After(end) {
			seen.lose(stream, was.n)
			return errGone
		}
	}
	return nil
}

// holds reports whether a block of a log has a record.
func holds(dir string, seq uint64) (bool, error) {
	numbers, err := blocks(dir)
	if err != nil {
		return false, err
	}
	for _, n := range numbers {
		if now, _, err := (proof{n: n}).read(dir); err != nil || now.from <= seq && seq <= now.seq {
			return err == nil, err
		}
	}
	return false, nil
}

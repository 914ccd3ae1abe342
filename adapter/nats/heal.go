package nats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite/internal/disk"
)

// The server never writes to a stream again whose store failed once, be it for
// want of room: what it holds in memory may not be what is on disk. It reads the
// disk anew when it is started again, so that is the cure, once there is room.

// needed is how much room a disk must have before the embedded server is started
// again: that much is written soon.
const needed = 2 << 20

// gone is the illness of a store whose files are there no more.
const gone = "the folder was removed"

// illness says which streams of the embedded server cannot be written.
type illness struct {
	dir    string
	home   atomic.Pointer[map[string]os.FileInfo] // the folder and that of the store, as they were when the server began
	proofs proofs
	wake   chan struct{} // holds one token when something was added

	mu      sync.Mutex
	streams map[string]string // by name, what the server said; "" is all of them
}

func newIllness(dir string) *illness {
	return &illness{dir: dir, proofs: proofs{dir: dir}, wake: make(chan struct{}, 1), streams: map[string]string{}}
}

// settle notes which folders are written to, and what they hold.
func (i *illness) settle() error {
	home := map[string]os.FileInfo{}
	for _, path := range []string{i.dir, filepath.Join(i.dir, server.JetStreamStoreDir)} {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("nats: bus folder: %w", err)
		}
		home[path] = info
	}
	i.home.Store(&home)
	if err := i.proofs.settle(); err != nil {
		return fmt.Errorf("nats: bus folder: %w", err)
	}
	return nil
}

// removed reports whether the folders are there no more, or what they held. The server would
// go on writing to files that are gone, and answer that they are synced.
func (i *illness) removed() bool {
	home := i.home.Load()
	if home == nil {
		return false
	}
	for path, was := range *home {
		if now, err := os.Stat(path); err != nil || !os.SameFile(was, now) {
			return true
		}
	}
	return i.proofs.missing()
}

// wasRemoved is removed, also when what was put in place is as good as what was seen.
func (i *illness) wasRemoved() bool {
	i.mu.Lock()
	text := i.streams[""]
	i.mu.Unlock()
	return text == gone || i.removed()
}

// watch notes that the folders are there no more.
func (i *illness) watch() {
	if i.removed() {
		i.add("", gone)
	}
}

// hear takes the server's errors. It is called under the server's locks.
func (i *illness) hear(text string) {
	lower := strings.ToLower(text)
	switch {
	case strings.Contains(lower, "critical write error"), strings.Contains(lower, "failed to store a msg on stream"):
		_, name, _ := strings.Cut(text, " > ")
		name, rest, ok := strings.Cut(name, "': ")
		if !ok { // the store's own words, the stream's follow
			return
		}
		i.add(name, rest)
	case strings.Contains(text, "will be DISABLED"), strings.Contains(text, "disabling JetStream"):
		i.add("", text)
	}
}

func (i *illness) add(stream, text string) {
	i.mu.Lock()
	_, old := i.streams[stream]
	if !old {
		i.streams[stream] = text
	}
	i.mu.Unlock()
	if old {
		return
	}
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

func (i *illness) clear() {
	i.mu.Lock()
	clear(i.streams)
	i.mu.Unlock()
}

// of says why a stream cannot be written, nil if it can.
func (i *illness) of(stream string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	text, ill := i.streams[stream]
	if !ill {
		text, ill = i.streams[""]
	}
	switch {
	case !ill:
		return nil
	case text == gone || i.removed():
		return i.lost()
	}
	return fmt.Errorf("nats: the embedded bus cannot write to its folder: %s; nothing is lost, what is new waits in the database and goes on by itself when there is room on the disk: df -h %s", text, i.dir)
}

// lost is the error of a store whose files are there no more.
func (i *illness) lost() error {
	return fmt.Errorf("nats: the folder of the embedded bus, %s, was removed or put elsewhere while onewrite runs; what is new waits in the database: put it back, and reading goes on by itself, or if it is lost, stop onewrite and start it again: the outbox is read again, and the rows of captured tables; deletes in the log of PostgreSQL that were not delivered are not told", i.dir)
}

// writable says why a stream of the embedded bus cannot be written, nil if it can.
func (b *Bus) writable(stream string) error {
	if b.emb == nil {
		return nil
	}
	return b.emb.ill.of(stream)
}

// suspect is called with the answer to a failed write. What the server does not
// log, it may have failed at for want of room as well.
func (b *Bus) suspect(stream string, err error) error {
	if err == nil || b.emb == nil {
		return err
	}
	if b.emb.ill.of(stream) == nil && code(err) != 0 && !moved(err) && !full(err) {
		if free, _, known := disk.Room(b.emb.dir); known && free < needed {
			b.emb.ill.add(stream, "no space left on device")
		}
	}
	if ill := b.emb.ill.of(stream); ill != nil {
		return ill
	}
	return err
}

// publish stores one message in a stream of the bus and waits for the answer.
func (b *Bus) publish(ctx context.Context, stream string, m *natsgo.Msg) (uint64, error) {
	if err := b.writable(stream); err != nil {
		return 0, err
	}
	seq, err := b.link.publish(ctx, m)
	if err == nil {
		err = b.stored(ctx, stream, seq)
	}
	return seq, b.suspect(stream, err)
}

// hasRoom tries whether dir can be written again.
func hasRoom(dir string) error {
	if free, _, known := disk.Room(dir); known && free < needed {
		return syscall.ENOSPC // what little there is is left to others
	}
	path := filepath.Join(dir, "room")
	err := os.WriteFile(path, make([]byte, needed), 0o600)
	return errors.Join(err, os.Remove(path))
}

// tend starts the embedded server again when it cannot write any more and there
// is room, until ctx ends.
func (b *Bus) tend(ctx context.Context) {
	var started time.Time
	pause := time.Duration(0)
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			b.emb.ill.watch()
			continue
		case <-b.emb.ill.wake:
		}
		if time.Since(started) > time.Minute {
			pause = 0
		}
		b.link.drop() // who waits for an answer waits in vain
		if b.emb.ill.wasRemoved() {
			b.log.Error("the folder of the embedded bus was removed or put elsewhere; what is new waits in the database", "folder", b.emb.dir, "cure", "put it back; if it is lost, stop onewrite and start it again")
		} else {
			b.log.Error("the embedded bus cannot write and is started again when there is room; what is new waits in the database", "folder", b.emb.dir, "cure", "df -h "+b.emb.dir)
		}
		if !b.revive(ctx, pause) {
			return
		}
		started = time.Now()
		pause = min(max(2*pause, time.Second), 30*time.Second)
	}
}

// revive waits for room and starts the server again; false when ctx ended.
func (b *Bus) revive(ctx context.Context, pause time.Duration) bool {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	from := time.Now().Add(pause)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-b.emb.ill.wake: // another stream
			b.link.drop()
			continue
		case <-tick.C:
		}
		if time.Now().Before(from) || b.emb.ill.removed() || hasRoom(b.emb.dir) != nil {
			continue
		}
		err := b.emb.restart(ctx, &b.cfg, b.link.drop)
		if err == nil {
			break
		}
		b.log.Error("the embedded bus could not be started again, another try follows", "error", err)
		pause = min(max(2*pause, time.Second), 30*time.Second)
		from = time.Now().Add(pause)
	}
	b.forget(ctx)
	b.emb.ill.clear()
	b.log.Info("the embedded bus was started again and writes", "folder", b.emb.dir)
	return true
}

// forget drops what this process believes of the logs: the server read its disk
// anew, and that is what holds.
func (b *Bus) forget(ctx context.Context) {
	b.mu.Lock()
	logs := make([]*logState, 0, len(b.logs))
	for _, l := range b.logs {
		logs = append(logs, l)
	}
	b.mu.Unlock()
	for _, l := range logs {
		l.writing.Lock()
		l.known = false
		l.writing.Unlock()
		if _, err := b.learnTail(ctx, l); err != nil {
			b.log.Warn("a log of the bus cannot be read", "source", l.source, "error", err)
		}
	}
}

// short adds the cure to an error that came of a full disk.
func short(dir string, err error) error {
	if err == nil || !errors.Is(err, syscall.ENOSPC) && !strings.Contains(err.Error(), "no space left") && !strings.Contains(err.Error(), "not enough space") {
		return err
	}
	return fmt.Errorf("%w; make room on the disk: df -h %s", err, dir)
}

package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
)

// Files beside the store that say what it must hold.
const (
	sealFile   = "seal"   // the sizes of its blocks at a clean stop
	placesFile = "places" // the names of the destinations that have a place
	againFile  = "again"  // the store is a new one, the places have to be made again
	soleFile   = "only-copy-"
)

// damaged says that the store does not hold what was written to it.
type damaged struct{ what string }

func (d damaged) Error() string { return d.what }

// checked is the form of the files above: a checksum and JSON.
func writeChecked(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeWhole(path, fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(text), text))
}

// readChecked reports whether the file was there and is what was written.
func readChecked(path string, v any) bool {
	data, err := os.ReadFile(path)
	sum, text, ok := strings.Cut(strings.TrimSuffix(string(data), "\n"), " ")
	return err == nil && ok && sum == fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(text))) && json.Unmarshal([]byte(text), v) == nil
}

// sizes returns the size of every block by its path in the store.
func sizes(dir string) (map[string]int64, error) {
	all := map[string]int64{}
	paths, err := filepath.Glob(filepath.Join(streamsDir(dir), "*", "msgs", "*.blk"))
	for _, path := range paths {
		info, serr := os.Stat(path)
		if serr != nil {
			return nil, serr
		}
		name, rerr := filepath.Rel(streamsDir(dir), path)
		if rerr != nil {
			return nil, rerr
		}
		all[filepath.ToSlash(name)] = info.Size()
	}
	return all, err
}

// seal notes what a clean stop leaves behind. Without it a block that ends early
// looks like one that a crash has cut.
func seal(dir string) {
	if all, err := sizes(dir); err == nil {
		_ = writeChecked(filepath.Join(dir, sealFile), all) // it only makes the next start stricter
	}
}

// inspect looks at a store before the server does. say is told what a crash may
// have done, an error that is damaged what it cannot have done.
func inspect(dir string, say func(string)) error {
	var sealed map[string]int64
	whole := readChecked(filepath.Join(dir, sealFile), &sealed)
	if err := os.Remove(filepath.Join(dir, sealFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("nats: bus folder: %w", err)
	}
	damage, torn, err := verify(dir)
	if err != nil {
		return fmt.Errorf("nats: verify the bus folder %s: %w; look at its disk: dmesg", dir, err)
	}
	if damage != "" {
		return damaged{damage}
	}
	if whole {
		now, err := sizes(dir)
		if err != nil {
			return fmt.Errorf("nats: verify the bus folder %s: %w", dir, err)
		}
		for _, name := range slices.Sorted(maps.Keys(sealed)) {
			if now[name] != sealed[name] {
				return damaged{fmt.Sprintf("%s has %d bytes, it had %d when onewrite stopped", filepath.Join(streamsDir(dir), name), now[name], sealed[name])}
			}
		}
	}
	for _, stream := range torn {
		say(fmt.Sprintf("the newest record of stream %s on the bus was cut short, by a crash or by damage: what it held is read or delivered again", stream))
	}
	return nil
}

// setAside moves a damaged store out of the way, so that a new one is made: the
// sources see another identity and read again all that is not confirmed. It
// refuses where the outbox was freed of events that are not.
func setAside(c *Config, why damaged) error {
	sole, err := filepath.Glob(filepath.Join(c.Dir, soleFile+"*"))
	if err != nil {
		return fmt.Errorf("nats: bus folder: %w", err)
	}
	store := filepath.Join(c.Dir, "jetstream")
	if len(sole) > 0 {
		return fmt.Errorf("nats: the bus is damaged (%s) and holds the only copy of events that bus.keep let go from the outbox; restore %s from its backup, or give them up: mv '%s' '%s.damaged' && rm '%s'", why.what, c.Dir, store, store, strings.Join(sole, "' '"))
	}
	if err := writeWhole(filepath.Join(c.Dir, againFile), nil); err != nil {
		return short(c.Dir, fmt.Errorf("nats: bus folder: %w", err))
	}
	aside := filepath.Join(c.Dir, "damaged-"+time.Now().UTC().Format("20060102-150405.000"))
	if err := os.Rename(store, aside); err != nil {
		return fmt.Errorf("nats: set the damaged store aside: %w; move it yourself: mv '%s' '%s'", err, store, aside)
	}
	c.say(fmt.Sprintf("the bus was damaged (%s) and is made anew; every event that is not confirmed by all destinations is read again from the outbox, so that some come twice; its old store is kept in %s: remove it when nobody wants to look at it", why.what, aside))
	return nil
}

// sound compares the started store with what it must hold. What can be wrong is
// what the server did with it: left out a stream, or cut one.
func (b *Bus) sound(ctx context.Context) error {
	js, err := b.link.jetStream()
	if err != nil {
		return err
	}
	all, err := sizes(b.cfg.Dir)
	if err != nil {
		return fmt.Errorf("nats: bus folder: %w", err)
	}
	streams := map[string]*jetstream.StreamInfo{}
	for path, size := range all {
		name, _, _ := strings.Cut(path, "/")
		if size == 0 || streams[name] != nil || strings.HasPrefix(name, ".") {
			continue
		}
		s, err := js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return damaged{"the description of stream " + name + " cannot be read"}
		}
		if err != nil {
			return fmt.Errorf("nats: stream %s: %w", name, err)
		}
		streams[name] = s.CachedInfo()
	}
	for name, info := range streams {
		if s := info.State; name != b.stateStream() && name != b.parkedStream() && s.NumDeleted > 0 {
			return damaged{fmt.Sprintf("%d messages are missing in the middle of stream %s", s.NumDeleted, name)}
		}
		source, ours := strings.CutPrefix(name, b.cfg.Name+"-")
		if !ours || b.checkSource(source) != nil {
			continue
		}
		n, err := b.newest(ctx, source)
		if err != nil {
			return err
		}
		if n != nil && !n.whole { // nobody writes now, and the server ends what a crash has cut
			return damaged{"stream " + name + " ends within a batch"}
		}
	}
	records := map[string]places.Record{}
	if streams[b.stateStream()] != nil {
		records, err = b.records(ctx)
		if errors.Is(err, errUnreadable) {
			return damaged{err.Error()}
		}
		if err != nil { // it was not answered, or given up: that says nothing of the store
			return err
		}
	}
	return b.soundPlaces(ctx, records, streams)
}

// soundPlaces compares the places of the destinations with the logs, with the
// parking lots and with the list of their names.
func (b *Bus) soundPlaces(ctx context.Context, records map[string]places.Record, streams map[string]*jetstream.StreamInfo) error {
	var names []string
	_, err := os.Stat(filepath.Join(b.cfg.Dir, againFile))
	if again := err == nil; !again && readChecked(filepath.Join(b.cfg.Dir, placesFile), &names) {
		for _, name := range names {
			if _, ok := records[name]; !ok {
				return damaged{"the place of destination " + name + " is gone"}
			}
		}
	}
	for name, r := range records {
		for log, lc := range r.Cursor.Logs {
			info, ends := streams[b.stream(log)], places.Seen(lc)
			if r.Seen(log) == 0 {
				continue
			}
			first, last := uint64(0), uint64(0)
			if info != nil {
				var err error
				if first, err = b.firstOffset(ctx, b.logOf(log), info.State); err == nil {
					last, err = b.lastOffset(ctx, b.logOf(log), info.State)
				}
				if err != nil {
					return err
				}
			}
			if last == 0 { // of a log that ends too soon the rest is read again; one that is gone never was
				ends = r.Seen(log)
			}
			if last < ends {
				return damaged{fmt.Sprintf("the log of source %s ends before event %d, which destination %s knows of", log, ends, name)}
			}
			if _, lost, _ := places.MoveUp(lc, first); lost > 0 {
				return damaged{fmt.Sprintf("the log of source %s begins with event %d, and destination %s waits for %d before it", log, first, name, lost)}
			}
		}
		if r.Cursor.Parked == 0 {
			continue
		}
		n, last, err := b.countParked(ctx, name, r.Cursor.LastParked)
		if err != nil {
			return err
		}
		if n < r.Cursor.Parked || !last {
			return damaged{fmt.Sprintf("of %d parked events of destination %s there are %d", r.Cursor.Parked, name, n)}
		}
	}
	return nil
}

// countParked counts the parked events of a destination, and tells whether one of
// them is ref.
func (b *Bus) countParked(ctx context.Context, name string, ref uint64) (n uint64, there bool, err error) {
	m, err := b.link.get(ctx, b.parkedStream(), query{Seq: ref})
	if err != nil {
		return 0, false, fmt.Errorf("nats: parked events of destination %s: %w", name, err)
	}
	there = m != nil && strings.HasPrefix(m.Subject, b.parkedSubject(name))
	s := &subscription{b: b, in: onewrite.Interest{Name: name}}
	n, err = s.countOf(ctx, b.parkedStream(), b.parkedSubject(name)+"*.*")
	return n, there, err
}

// remember keeps the names of destinations outside the store, and makes places for
// those whose store was set aside: their events wait for them, configured or not,
// and one that was to begin with what is new begins with what is left.
func (b *Bus) remember(ctx context.Context) error {
	if err := b.finishForgetting(ctx); err != nil {
		return err
	}
	again := filepath.Join(b.cfg.Dir, againFile)
	var names []string
	if _, err := os.Stat(again); err == nil && readChecked(filepath.Join(b.cfg.Dir, placesFile), &names) {
		for _, name := range names {
			r, rev, err := b.load(ctx, name)
			if err != nil {
				return err
			}
			if rev > 0 {
				continue
			}
			r.Released = true
			if _, err := b.save(ctx, name, &r, 0); err != nil {
				return err
			}
		}
	}
	names, err := b.Destinations(ctx)
	if err != nil {
		return err
	}
	if err := b.writePlaces(names); err != nil {
		return err
	}
	if err := os.Remove(again); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("nats: bus folder: %w", err)
	}
	return nil
}

func (b *Bus) writePlaces(names []string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.places = slices.Clone(names)
	if err := writeChecked(filepath.Join(b.cfg.Dir, placesFile), names); err != nil {
		return short(b.cfg.Dir, fmt.Errorf("nats: bus folder: %w", err))
	}
	return nil
}

// name notes that a destination has a place, or is about to lose it: a name without
// a place is damage, a place without a name is a crash in between.
func (b *Bus) name(dest string, has bool) error {
	b.mu.Lock()
	names := slices.Clone(b.places)
	b.mu.Unlock()
	if b.emb == nil || slices.Contains(names, dest) == has {
		return nil
	}
	if has {
		return b.writePlaces(append(names, dest))
	}
	return b.writePlaces(slices.DeleteFunc(names, func(n string) bool { return n == dest }))
}

// Sole notes whether the folder of the embedded bus holds the only copy of events
// of a source: freed says that the outbox is about to let go of all up to last, and
// it is the only one until everything up to there is confirmed. A damaged folder
// that holds an only copy is not set aside.
func (b *Bus) Sole(source string, last, confirmed uint64, freed bool) error {
	if b.emb == nil {
		return nil
	}
	path := filepath.Join(b.cfg.Dir, soleFile+source)
	_, err := os.Stat(path)
	there, noted := err == nil, uint64(0)
	if there && !readChecked(path, &noted) {
		noted = last
	}
	switch {
	case freed && noted < last:
		err = writeChecked(path, last)
	case there && !freed && confirmed >= noted:
		err = os.Remove(path)
	default:
		return nil
	}
	if err != nil {
		return short(b.cfg.Dir, fmt.Errorf("nats: bus folder: %w", err))
	}
	return nil
}

package storm

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/onewrite/onewrite/torture/history"
)

// loses takes the folder of the embedded bus away with all that is in it.
func (s *storm) loses(_ context.Context, f *history.Fault) error {
	p := s.copies[0]
	if err := p.signal(syscall.SIGKILL, true); err != nil {
		return err
	}
	f.On, f.Says = "the bus", "gap"
	return s.exchange(f, "")
}

// returns puts an older copy of the folder back, as a restored backup does.
func (s *storm) returns(ctx context.Context, f *history.Fault) error {
	p := s.copies[0]
	old := s.path(fmt.Sprintf("older-%d", s.age.Load()))
	if err := p.signal(syscall.SIGTERM, true); err != nil {
		return err
	}
	if err := os.CopyFS(old, os.DirFS(s.path(stateDir))); err != nil {
		return err
	}
	_, given, err := s.db.freed(ctx)
	if err != nil {
		return err
	}
	if err := p.start(); err != nil {
		return err
	}
	// Until rows are gone from the outbox that the copy knows nothing of.
	if err := s.until(ctx, "the outbox is freed beyond the copy", func() bool {
		freed, _, err := s.db.freed(ctx)
		return err == nil && freed > given
	}); err != nil {
		return err
	}
	if err := p.signal(syscall.SIGKILL, true); err != nil {
		return err
	}
	f.On, f.Says = "the bus", "gap"
	return s.exchange(f, old)
}

// exchange sets the folder of the bus aside, puts another in its place if there is
// one, and starts onewrite. Events may be read again from the outbox: all of them.
func (s *storm) exchange(f *history.Fault, with string) error {
	state := s.path(stateDir)
	aside := s.path(fmt.Sprintf("lost-%d", s.age.Load()))
	if err := os.Rename(state, aside); err != nil {
		return err
	}
	f.Proof = "moved to " + filepath.Base(aside)
	if with != "" {
		if err := os.Rename(with, state); err != nil {
			return err
		}
		f.Proof += ", " + filepath.Base(with) + " is in its place"
	}
	f.Again = int(s.committed.Load() + s.doubtful.Load())
	s.age.Add(1)
	s.restarts.Add(1)
	return s.copies[0].start()
}

// flips changes bytes in the folder of the bus while onewrite is down. If it does
// not start then, the operator does what its error says: the folder goes.
func (s *storm) flips(ctx context.Context, f *history.Fault) error {
	p := s.copies[0]
	if err := p.signal(syscall.SIGTERM, true); err != nil {
		return err
	}
	f.On, f.Again = "the bus", int(s.committed.Load()+s.doubtful.Load())
	for range 1 + s.rng.IntN(3) {
		what, err := s.flip(s.path(stateDir))
		if err != nil {
			return err
		}
		f.Proof += what + "; "
	}
	s.restarts.Add(1)
	s.age.Add(1) // before anybody asks: the log may be shorter now
	if err := p.start(); err != nil {
		return err
	}
	for end := time.Now().Add(s.Wait); !p.ended(); time.Sleep(20 * time.Millisecond) {
		if st, err := p.status(); err == nil && len(st.Destinations) > 0 {
			s.labels.hit("damage: it runs")
			return nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return fmt.Errorf("onewrite neither runs nor ends after bytes were changed (%s); see %s", f.Proof, p.log.Name())
		}
	}
	s.labels.hit("damage: refused")
	proof := f.Proof
	f.Says = "gap"
	err := s.exchange(f, "")
	f.Proof = proof + "it refused to start; " + f.Proof
	return err
}

// flip changes one byte of one file, or cuts it.
func (s *storm) flip(dir string) (what string, err error) {
	var files []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && strings.HasPrefix(d.Name(), "damaged-") {
			return fs.SkipDir // what was set aside
		}
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err == nil && info.Size() > 0 {
			files = append(files, path)
		}
		return nil
	})
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("no files in %s: %w", dir, err)
	}
	file := files[s.rng.IntN(len(files))]
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	i := s.rng.IntN(len(text))
	name, _ := filepath.Rel(dir, file)
	if s.rng.IntN(5) == 0 {
		return fmt.Sprintf("%s cut at %d of %d", name, i, len(text)), os.Truncate(file, int64(i))
	}
	text[i] ^= byte(1 << s.rng.IntN(8))
	return fmt.Sprintf("%s byte %d of %d", name, i, len(text)), os.WriteFile(file, text, 0o600)
}

// fills leaves no room on the disk of the bus for a while.
func (s *storm) fills(ctx context.Context, f *history.Fault) error {
	f.On, f.Says = "the disk of the bus", "trouble"
	undo, proof, err := s.disk.fill(s.copies[0].pid())
	if err != nil {
		return err
	}
	f.Proof = proof
	f.Until = s.now()
	// As long as it may take to be said.
	err = s.until(ctx, "onewrite says that its disk is full", func() bool { return s.state().source != "ok" })
	pause(ctx, time.Duration(s.rng.IntN(3000))*time.Millisecond)
	if u := undo(); err == nil {
		err = u
	}
	return err
}

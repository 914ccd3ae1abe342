package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/onewrite/onewrite/torture/history"
	"github.com/onewrite/onewrite/torture/storm"
)

// trial is a storm of a series, and what is expected of it.
type trial struct {
	Name   string
	Storm  storm.Config
	Caught []string // laws, one of which has to be broken; empty: every law has to hold
	Tries  int      // seeds, one of which has to do; default 1
}

// result is what is kept of a trial. Its recording is kept when it was not as
// expected.
type result struct {
	Name    string          `json:"name"`
	Program string          `json:"program"` // digest of the program
	Seed    uint64          `json:"seed"`
	Tries   int             `json:"tries"`
	OK      bool            `json:"ok"`
	Says    string          `json:"says"` // in a few words
	Took    time.Duration   `json:"took"`
	Report  *history.Report `json:"report,omitempty"`
}

// series runs trials, each once for a program: what was as expected is not run
// again.
type series struct {
	dir      string
	seed     uint64
	parallel int
	only     []string // parts of the names of the trials that are run; none: all
	out      io.Writer
}

// wants reports whether a trial is to be run.
func (s *series) wants(name string) bool {
	return len(s.only) == 0 || slices.ContainsFunc(s.only, func(part string) bool { return strings.Contains(name, part) })
}

// run returns the results in the order of the trials.
func (s *series) run(ctx context.Context, trials []trial) ([]*result, error) {
	trials = slices.DeleteFunc(trials, func(t trial) bool { return !s.wants(t.Name) })
	results := make([]*result, len(trials))
	errs := make([]error, len(trials))
	turns := make(chan struct{}, max(1, s.parallel))
	var all sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for i := range trials {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			if errs[i] = ctx.Err(); errs[i] != nil {
				return
			}
			r, fresh, err := s.one(ctx, &trials[i])
			results[i], errs[i] = r, err
			mu.Lock()
			defer mu.Unlock()
			done++
			if err == nil {
				fmt.Fprintf(s.out, "%3d of %d  %s\n", done, len(trials), r.line(fresh))
			}
		})
	}
	all.Wait()
	return results, errors.Join(errs...)
}

// one runs a trial until it is as expected, within its tries.
func (s *series) one(ctx context.Context, t *trial) (r *result, fresh bool, err error) {
	program, err := digest(t.Storm.Binary)
	if err != nil {
		return nil, false, err
	}
	dir := filepath.Join(s.dir, t.Name)
	kept := filepath.Join(dir, "result.json")
	r = &result{}
	if text, err := os.ReadFile(kept); err == nil && json.Unmarshal(text, r) == nil && r.OK && r.Program == program {
		return r, false, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, false, err
	}
	r = &result{Name: t.Name, Program: program}
	start := time.Now()
	for r.Tries < max(1, t.Tries) && !r.OK {
		c := t.Storm
		c.Seed = s.seed + hash(t.Name) + uint64(r.Tries)
		c.Dir = filepath.Join(dir, fmt.Sprintf("try-%d", r.Tries+1))
		r.Seed, r.Tries = c.Seed, r.Tries+1
		report, err := storm.Run(ctx, c)
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		r.OK, r.Says = t.judge(report, err)
		r.Report = report
		if r.OK {
			if err := os.RemoveAll(dir); err != nil {
				return nil, false, err
			}
		}
	}
	r.Took = time.Since(start)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, false, err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, false, err
	}
	return r, true, os.WriteFile(kept, append(text, '\n'), 0o644)
}

// judge says whether a storm ended as it should.
func (t *trial) judge(r *history.Report, err error) (ok bool, says string) {
	if err != nil {
		return false, "no verdict: " + err.Error()
	}
	var broken []string
	for law := range r.Laws {
		broken = append(broken, law)
	}
	slices.Sort(broken)
	if len(t.Caught) == 0 {
		if r.OK() {
			return true, "every law held"
		}
		return false, "broken: " + strings.Join(broken, " ") + ": " + r.Broken[0]
	}
	for _, law := range t.Caught {
		if r.Laws[law] > 0 {
			return true, "caught by " + law
		}
	}
	return false, fmt.Sprintf("not caught by %s (broken: %s)", strings.Join(t.Caught, " or "), strings.Join(broken, " "))
}

func (r *result) line(fresh bool) string {
	how := fmt.Sprintf("%.1f s", r.Took.Seconds())
	if !fresh {
		how = "from before"
	}
	word := "ok"
	if !r.OK {
		word = "FAILED"
	}
	return fmt.Sprintf("%-7s %-36s %s (%s, seed %d)", word, r.Name, r.Says, how, r.Seed)
}

func hash(text string) uint64 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(text))
	return uint64(h.Sum32())
}

// digest names a program by what is in it.
func digest(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// verdicts fails unless every trial was as expected.
func verdicts(results []*result) error {
	bad := 0
	for _, r := range results {
		if r != nil && !r.OK {
			bad++
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d trials were not as expected; what they recorded is kept", bad, len(results))
	}
	return nil
}

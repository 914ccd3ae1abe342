package history

import (
	"slices"
	"time"
)

// patience is how long a sink may stand still while onewrite says that all is
// well and there is work, and how long a fault may go unsaid.
const patience = int64(10 * time.Second)

// watch follows one destination through the samples of one copy.
type watch struct {
	position uint64
	seen     uint64
	since    int64 // when seen was another number, there was no work, or it was said that all is not well
}

// epochs collects which copy owned which epoch of each sink. An epoch that two
// copies claim is of neither: both are listed, and what they do is judged by the
// order of arrivals.
func epochs(dir string) (map[string]map[int][]uint64, error) {
	out := map[string]map[int][]uint64{}
	err := each(dir, SampleFile, "", func(s *Sample) {
		if s.Copy == 0 || !s.Up {
			return
		}
		for sink, d := range s.Sinks {
			if d.Epoch == 0 {
				continue
			}
			if out[sink] == nil {
				out[sink] = map[int][]uint64{}
			}
			if !slices.Contains(out[sink][s.Copy], d.Epoch) {
				out[sink][s.Copy] = append(out[sink][s.Copy], d.Epoch)
			}
		}
	})
	for _, copies := range out {
		for _, list := range copies {
			slices.Sort(list)
		}
	}
	return out, err
}

// samples judges what onewrite said of itself.
func (c *checker) samples(dir string) error {
	owner := map[string]map[uint64]int{} // of each epoch of a sink
	type seat struct {
		sink      string
		copy, age int
	}
	loud := c.loud()
	watches := map[seat]*watch{}
	var last *Sample
	n := 0
	err := each(dir, SampleFile, "", func(s *Sample) {
		n++
		c.bounds(s)
		loud.sample(s)
		if !s.Up { // who does not answer, as a frozen copy, says nothing of what stands
			for at, w := range watches {
				if at.copy == s.Copy {
					w.since = s.At
				}
			}
			return
		}
		slack := c.slack(s.At)
		if s.Events > s.Committed+uint64(c.Changes)+slack {
			c.fail("I13", "onewrite says that it took %d events, the database committed %d, and %d may have been read again", s.Events, s.Committed, slack)
		}
		for _, sink := range sorted(s.Sinks) {
			d := s.Sinks[sink]
			if owner[sink] == nil {
				owner[sink] = map[uint64]int{}
			}
			w := watches[seat{sink, s.Copy, s.Age}]
			if w == nil {
				w = &watch{since: s.At}
				watches[seat{sink, s.Copy, s.Age}] = w
			}
			if d.Epoch > 0 && s.Copy > 0 {
				if first := owner[sink][d.Epoch]; first != 0 && first != s.Copy {
					c.fail("I14", "copies %d and %d both own epoch %d of %s", first, s.Copy, d.Epoch, sink)
				}
				owner[sink][d.Epoch] = s.Copy
			}
			c.destination(w, s, sink, &d, slack)
		}
		last = s
	})
	if err != nil {
		return err
	}
	loud.end()
	if n == 0 {
		return nil
	}
	c.rest(last)
	return nil
}

// bounds holds a sample against the budgets.
func (c *checker) bounds(s *Sample) {
	c.Memory = max(c.Memory, s.RSS)
	for _, b := range []struct {
		what       string
		used, most int64
	}{{"resident memory", s.RSS, c.run.Budget.RSS}, {"the outbox", s.Outbox, c.run.Budget.Outbox}, {"the folder of the bus", s.Folder, c.run.Budget.Folder},
		{"the log for the slot", s.Retained, c.run.Budget.Retained}} {
		if b.most > 0 && b.used > b.most {
			c.fail("I9", "%s has %d bytes, %d are allowed", b.what, b.used, b.most)
		}
	}
}

// destination judges one destination in one sample.
func (c *checker) destination(w *watch, s *Sample, sink string, d *SinkState, slack uint64) {
	if d.Position < w.position {
		c.fail("I10", "the position of %s went back from %d to %d", sink, w.position, d.Position)
	}
	w.position = max(w.position, d.Position)
	if d.Delivered > d.Seen+slack {
		c.fail("I10", "onewrite says that %s confirmed %d events, it has %d", sink, d.Delivered, d.Seen)
	}
	if sum := d.Delivered + d.Pending + d.Parked + d.Filtered + d.Skipped; sum > s.Committed+uint64(c.Changes)+slack {
		c.fail("I13", "%s adds up to %d events, the database committed %d", sink, sum, s.Committed)
	}
	filtered := d.Filtered
	if c.Changes > 0 { // which all are filtered, and not counted as committed
		filtered = 0
	}
	work := s.Committed > d.Seen+d.Parked+filtered+d.Skipped && !c.run.Sinks[sink].Rows
	if d.Seen != w.seen || !work || d.State != "ok" || s.State != "ok" {
		w.seen, w.since = d.Seen, s.At
	} else if s.At-w.since > patience {
		c.fail("I11", "%s stands at %d of %d for %v, and onewrite says ok", sink, d.Seen, s.Committed, time.Duration(s.At-w.since).Round(time.Second))
	}
}

// rest judges the last sample, when all is quiet.
func (c *checker) rest(s *Sample) {
	if s == nil {
		c.fail("I11", "onewrite never answered")
		return
	}
	if n := uint64(c.Events + c.Changes); s.Age == 0 && s.Events < n || s.Events > n+c.slack(s.At) {
		c.fail("I13", "at rest onewrite took %d events of %d, and %d may have been read again", s.Events, n, c.slack(s.At))
	}
	for _, sink := range sorted(s.Sinks) {
		d := s.Sinks[sink]
		if sum := d.Delivered + d.Pending + d.Parked + d.Filtered + d.Skipped; sum != s.Events || d.Pending > 0 {
			c.fail("I13", "at rest %s adds up to %d of %d events, %d of them pending", sink, sum, s.Events, d.Pending)
		}
	}
}

package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/pipeline"
)

// Status returns a snapshot of everything.
func (r *Relay) Status(context.Context) dashboard.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := dashboard.Status{
		Version: r.opts.Version, PID: pid, Started: r.started, Config: absolute(r.opts.ConfigPath), Bus: r.usage,
		Sources: map[string]dashboard.Source{}, Destinations: map[string]dashboard.Destination{},
		Warnings: slices.Sorted(maps.Values(r.warnings)),
	}
	for name, in := range r.sources {
		st := in.Status()
		src := dashboard.Source{State: st.State, Position: string(st.Position), LagSeconds: st.Lag.Seconds(), Events: st.Offset, LastError: st.LastError}
		if st.Gap != "" {
			src.Gap, src.GapAt = &st.Gap, &st.GapAt
		}
		_, told := r.kept[name]
		src.Unknown = !told && st.Offset == 0 && st.Position == "" && st.State == pipeline.Waiting
		src.Importing = waiting(in.importing)
		src.Snapshots = maps.Clone(in.snapshots)
		s.Sources[name] = src
	}
	for name, d := range r.destinations {
		st := d.Status()
		s.Destinations[name] = dashboard.Destination{
			State: st.State, Position: position(st.Position), Epoch: st.Epoch,
			Delivered: st.Delivered, Pending: st.Pending, Parked: st.Parked, Filtered: st.Filtered, Skipped: st.Skipped,
			LagSeconds: st.Lag.Seconds(), LastError: st.LastError, Unknown: st.Epoch == 0,
		}
	}
	for name, o := range r.orphans {
		s.Destinations[name] = o.status(name)
	}
	return s
}

// waiting is the sum of the rows that wait, by import; nil without imports, and while
// one of the numbers is not known: a sum without it would look like the end.
func waiting(importing map[string]int) *uint64 {
	var sum uint64
	for _, rows := range importing {
		if rows < 0 {
			return nil
		}
		sum += uint64(rows)
	}
	if len(importing) == 0 {
		return nil
	}
	return &sum
}

// absolute is the path as a program with another working directory knows it.
func absolute(path string) string {
	if full, err := filepath.Abs(path); path != "" && err == nil {
		return full
	}
	return path
}

// position writes the place in each log as "shop=42 stock=7".
func position(logs map[string]uint64) string {
	parts := make([]string, 0, len(logs))
	for _, name := range slices.Sorted(maps.Keys(logs)) {
		parts = append(parts, fmt.Sprintf("%s=%d", name, logs[name]))
	}
	return strings.Join(parts, " ")
}

// NotReady names what keeps the instance from being ready: a source that is not
// read (a standby is not ready either) or that has a gap, a destination that is
// not being delivered, a bus that does not answer.
func (r *Relay) NotReady(ctx context.Context) []string {
	r.mu.Lock()
	up := r.up
	r.mu.Unlock()
	if !up {
		return []string{"starting"}
	}
	var out []string
	s := r.Status(ctx)
	if s.Bus.LastError != "" {
		out = append(out, "bus: "+s.Bus.LastError)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Sources)) {
		if v := s.Sources[name]; v.State != pipeline.OK && v.State != pipeline.CatchingUp {
			out = append(out, "source "+name+": "+stateText(v.State, v.LastError))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Destinations)) {
		if v := s.Destinations[name]; v.State != pipeline.OK && v.State != pipeline.CatchingUp {
			out = append(out, "destination "+name+": "+stateText(v.State, v.LastError))
		}
	}
	return out
}

// stateText is a state with its reason, which may begin with the state's own word.
func stateText(state pipeline.State, reason string) string {
	if strings.HasPrefix(reason, string(state)) {
		return reason
	}
	return string(state) + ": " + reason
}

// Retry delivers a parked event again, and what waits behind it; all for ref 0. data, if
// not nil, is the payload that it gets, of the same content type: if it is refused
// again, it stays parked as it was.
func (r *Relay) Retry(ctx context.Context, destination string, ref uint64, data []byte) error {
	d, err := r.destination(destination)
	switch {
	case err != nil:
		return err
	case data == nil:
		return d.Redrive(ctx, ref)
	case len(data) > int(r.config().MaxEvent):
		return fmt.Errorf("the payload has %d bytes, more than max_event, %d", len(data), r.config().MaxEvent)
	}
	list, err := d.Parked(ctx, max(ref, 1)-1, 1)
	if err == nil && len(list) == 1 && list[0].Ref == ref && cloudevents.IsJSON(list[0].Message.ContentType) && !json.Valid(data) {
		err = fmt.Errorf("the payload is not JSON, and event %s has the content type %s", list[0].Message.ID, list[0].Message.ContentType)
	}
	if err != nil {
		return err
	}
	return d.RedriveAs(ctx, ref, data)
}

// Skip forgets a parked event undelivered.
func (r *Relay) Skip(ctx context.Context, destination string, ref uint64) error {
	d, err := r.destination(destination)
	if err != nil {
		return err
	}
	return d.Discard(ctx, ref)
}

func (r *Relay) destination(name string) (*destination, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.destinations[name]
	if d == nil && r.orphans[name] != nil {
		return nil, fmt.Errorf("destination %s is not in the configuration, and its events are kept; put it back and run onewrite reload", name)
	}
	if d == nil {
		return nil, fmt.Errorf("there is no destination %q; the configuration has %s", name, strings.Join(slices.Sorted(maps.Keys(r.destinations)), ", "))
	}
	return d, nil
}

// Replay stops the destination, moves its cursor back and starts it again.
func (r *Relay) Replay(ctx context.Context, name string, from onewrite.From) error {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	d, err := r.destination(name)
	if err != nil {
		return err
	}
	d.halt()
	err = r.bus.Rewind(ctx, name, from)
	r.mu.Lock()
	r.startDestination(name, d.cfg)
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("replay to %s: %w", name, err)
	}
	return nil
}

// Tail shows events on the bus until ctx ends.
func (r *Relay) Tail(ctx context.Context, topics []string, from onewrite.From, show func(onewrite.Message) error) error {
	sub, err := r.bus.Subscribe(ctx, onewrite.Interest{Sources: slices.Sorted(maps.Keys(r.config().Sources)), Topics: topics, From: from})
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		msgs, _, err := sub.Read(ctx)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if err := show(m); err != nil {
				return err
			}
		}
	}
}

// errNothingChanged words the refusals of a reload.
var errNothingChanged = errors.New("nothing was changed")

// Reload reads the configuration again. Destinations come, go and change; a bad
// file, or a destination with pending events that would go, leaves everything
// as it was. Changes of sources, bus and listen are named; they need a restart.
func (r *Relay) Reload(_ context.Context, forget []string) (dashboard.Reload, error) {
	report, err := r.reload(forget)
	if err != nil { // whoever asked is told, and may be another than who reads the log
		r.log.Error("reload failed, the old configuration goes on", "error", err)
	}
	return report, err
}

func (r *Relay) reload(forget []string) (dashboard.Reload, error) {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	if r.opts.ConfigPath == "" {
		return dashboard.Reload{}, errors.New("this instance was not started from a file; restart it with its new configuration")
	}
	fresh, warnings, err := Load(r.opts.ConfigPath)
	if err != nil {
		return dashboard.Reload{}, fmt.Errorf("%w: %w", errNothingChanged, err)
	}
	if r.opts.Listen != "" {
		fresh.Listen = r.opts.Listen
	}
	r.mu.Lock()
	diff := config.Diff(r.cfg, fresh)
	r.mu.Unlock()
	report := dashboard.Reload{Added: diff.Added, Removed: diff.Removed, Changed: diff.Changed, Restart: diff.RestartNeeded}
	for _, w := range warnings {
		report.Warnings = append(report.Warnings, w.String())
	}
	report.Warnings = append(report.Warnings, r.nothingToForget(fresh, diff.Removed, forget)...)
	left := r.elsewhere(diff.Removed, forget)
	if err := r.mayGo(diff.Removed, slices.Concat(forget, left)); err != nil {
		return dashboard.Reload{}, err
	}
	report.Started = r.stopped(slices.Concat(diff.Removed, diff.Changed))
	for _, name := range slices.Concat(diff.Removed, diff.Changed, report.Started) {
		if d, err := r.destination(name); err == nil {
			d.halt()
		}
	}
	gone, dropped, err := r.forgetAll(diff.Removed, forget, left)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, name := range slices.Concat(diff.Removed, diff.Changed, report.Started) {
			r.startDestination(name, r.cfg.Destinations[name])
		}
		return dashboard.Reload{}, fmt.Errorf("%w: %w; try again when the bus answers", errNothingChanged, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range diff.Removed {
		delete(r.destinations, name)
	}
	for _, name := range left {
		r.addOrphan(name)
	}
	report.Dropped = dropped
	report.Warnings = append(report.Warnings, r.tellOthers(gone, left)...)
	report.Forgotten = slices.DeleteFunc(slices.Clone(gone), func(name string) bool { return slices.Contains(diff.Removed, name) })
	for _, name := range slices.Concat(diff.Changed, diff.Added, report.Started) {
		r.startDestination(name, fresh.Destinations[name])
	}
	next := *r.cfg
	next.Destinations = fresh.Destinations
	r.cfg = &next
	r.log.Info("configuration reloaded", "added", diff.Added, "removed", diff.Removed, "changed", diff.Changed, "restart_needed", diff.RestartNeeded)
	return report, nil
}

// stopped returns the destinations that an event or an answer stopped, but those
// that are dealt with anyway: a reload starts them again.
func (r *Relay) stopped(but []string) (names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, d := range r.destinations {
		if !slices.Contains(but, name) && d.Status().State == pipeline.Stopped {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// nothingToForget returns a warning for each destination that is not forgotten: the
// file still has it, or nobody knows it.
func (r *Relay) nothingToForget(fresh *config.Config, removed, forget []string) (warnings []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range forget {
		_, kept := fresh.Destinations[name]
		switch {
		case kept:
			warnings = append(warnings, fmt.Sprintf("destination %s is not forgotten, %s has it; take it out there, then run onewrite reload --forget %s", name, r.opts.ConfigPath, name))
		case !slices.Contains(removed, name) && r.orphans[name] == nil:
			warnings = append(warnings, "there is no destination "+name+" to forget; onewrite status shows their names")
		}
	}
	return warnings
}

// elsewhere returns the destinations that are taken out of the file of this copy alone,
// as far as it knows: another one on the same bus may deliver to them, so that their
// places are not this one's to drop unless it is told to.
func (r *Relay) elsewhere(removed, forget []string) (names []string) {
	for _, name := range removed {
		if d, err := r.destination(name); err == nil && r.bus.Durable() && !slices.Contains(forget, name) && d.Status().Epoch == 0 {
			names = append(names, name)
		}
	}
	return names
}

// tellOthers returns what is to be done on the other copies of an external bus.
func (r *Relay) tellOthers(gone, left []string) (warnings []string) {
	for _, name := range left {
		warnings = append(warnings, fmt.Sprintf("destination %s keeps its place on the bus, as this copy does not deliver to it; when no copy has it in its file any more, run on the one that delivers: onewrite reload --forget %s", name, name))
	}
	for _, name := range gone {
		if r.bus.Durable() {
			warnings = append(warnings, fmt.Sprintf("destination %s is forgotten; a copy on this bus that still has it takes it up as a new one and delivers everything again: reload the standbys with the changed file before the copy that delivers", name))
		}
	}
	return warnings
}

// mayGo refuses to remove a destination that still has something to deliver.
func (r *Relay) mayGo(removed, forget []string) error {
	var errs []error
	for _, name := range removed {
		d, err := r.destination(name)
		if err != nil || slices.Contains(forget, name) {
			continue
		}
		s := d.Status()
		if s.Pending > 0 || s.Parked > 0 || s.Epoch == 0 {
			has := fmt.Sprintf("has %d pending and %d parked events", s.Pending, s.Parked)
			if s.Epoch == 0 {
				has = "has not been reached on the bus, so that it is not known what it has pending or parked"
			}
			errs = append(errs, fmt.Errorf("%w: destination %s %s; put it back, or onewrite reload --forget %s", errNothingChanged, name, has, name))
		}
	}
	return errors.Join(errs...)
}

package dashboard_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/pipeline"
)

var allStates = []pipeline.State{pipeline.OK, pipeline.CatchingUp, pipeline.Waiting, pipeline.InGap, pipeline.Stopped}

// busy is a status with a source and a destination in each state.
func busy() dashboard.Status {
	s := dashboard.Status{Sources: map[string]dashboard.Source{}, Destinations: map[string]dashboard.Destination{}, Warnings: []string{"a", "b"},
		Bus: dashboard.Bus{Bytes: 5, MaxBytes: 10}}
	for i, st := range allStates {
		n := uint64(i)
		s.Sources[fmt.Sprint("s", i)] = dashboard.Source{State: st, LagSeconds: float64(i), Events: 100 + n}
		s.Destinations[fmt.Sprint("d", i)] = dashboard.Destination{State: st, LagSeconds: float64(i), Delivered: 1 + n, Pending: 2 + n, Parked: 3 + n, Filtered: 4 + n, Skipped: 5 + n}
	}
	return s
}

// exercise calls everything that counts, with other ids and reasons each time.
func exercise(m *dashboard.Metrics, round int) {
	o := m.Observer()
	text := fmt.Sprint("reason ", round)
	o.Appended("s0", 3, time.Millisecond)
	o.Gap("s0", text, round%2 == 0)
	o.Delivered("d0", time.Duration(round-1)*time.Second) // clocks differ: a lag may be negative
	o.Failed("d0", errors.New(text))
	o.Parked("d0", fmt.Sprint("id ", round), text, round%2 == 0)
}

func TestMetricsLint(t *testing.T) {
	m := dashboard.NewMetrics(busy)
	exercise(m, 0)
	problems, err := testutil.GatherAndLint(m.Gatherer())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	ours := 0
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "onewrite_") {
			ours++
		} else if !strings.HasPrefix(f.GetName(), "go_") && !strings.HasPrefix(f.GetName(), "process_") {
			t.Errorf("%s does not say whose it is", f.GetName())
		}
	}
	if ours < 15 {
		t.Errorf("only %d metrics are there", ours)
	}
}

// TestMetricsAreBounded: no id, reason or time makes a new series.
func TestMetricsAreBounded(t *testing.T) {
	m := dashboard.NewMetrics(busy)
	exercise(m, 0)
	before, err := testutil.GatherAndCount(m.Gatherer())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		exercise(m, i)
	}
	after, err := testutil.GatherAndCount(m.Gatherer())
	if err != nil || after != before {
		t.Errorf("%d series became %d (%v)", before, after, err)
	}
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	status := busy()
	for _, f := range families {
		for _, x := range f.GetMetric() {
			for _, l := range x.GetLabel() {
				known := true
				switch l.GetName() {
				case "source":
					_, known = status.Sources[l.GetValue()]
				case "destination":
					_, known = status.Destinations[l.GetValue()]
				case "state":
					known = false
					for _, st := range allStates {
						known = known || string(st) == l.GetValue()
					}
				default:
					known = !strings.HasPrefix(f.GetName(), "onewrite_")
				}
				if !known {
					t.Errorf("%s has a label %s=%q", f.GetName(), l.GetName(), l.GetValue())
				}
			}
		}
	}
}

func TestMetricsOfStatus(t *testing.T) {
	status := busy()
	m := dashboard.NewMetrics(func() dashboard.Status { return status })
	var want strings.Builder
	for _, kind := range []string{"destination", "source"} {
		fmt.Fprintf(&want, "# HELP onewrite_%[1]s_state 1 for the state the %[1]s is in.\n# TYPE onewrite_%[1]s_state gauge\n", kind)
		for i := range allStates {
			for j, st := range allStates {
				is := 0
				if i == j {
					is = 1
				}
				fmt.Fprintf(&want, "onewrite_%s_state{%s=\"%s%d\",state=%q} %d\n", kind, kind, kind[:1], i, st, is)
			}
		}
	}
	if err := testutil.GatherAndCompare(m.Gatherer(), strings.NewReader(want.String()), "onewrite_source_state", "onewrite_destination_state"); err != nil {
		t.Error(err)
	}
	status = dashboard.Status{
		Sources:      map[string]dashboard.Source{"shop": {State: pipeline.OK, LagSeconds: 1.5, Events: 20}},
		Destinations: map[string]dashboard.Destination{"audit": {State: pipeline.OK, LagSeconds: 2.5, Delivered: 1, Pending: 2, Parked: 3, Filtered: 4, Skipped: 5}},
		Warnings:     []string{"a"}, Bus: dashboard.Bus{Bytes: 6, MaxBytes: 7},
	}
	_, got := ask(t, serve(t, &control{status: status}, ""), http.MethodGet, "/metrics")
	for _, line := range []string{
		`onewrite_source_lag_seconds{source="shop"} 1.5`, `onewrite_source_offset{source="shop"} 20`,
		`onewrite_destination_lag_seconds{destination="audit"} 2.5`, `onewrite_destination_delivered_total{destination="audit"} 1`,
		`onewrite_destination_pending{destination="audit"} 2`, `onewrite_destination_parked{destination="audit"} 3`,
		`onewrite_destination_filtered_total{destination="audit"} 4`, `onewrite_destination_skipped_total{destination="audit"} 5`,
		"onewrite_warnings 1", "onewrite_bus_bytes 6", "onewrite_bus_max_bytes 7",
	} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("/metrics lacks %s", line)
		}
	}
	// A destination that left the configuration leaves the gauges too.
	delete(status.Destinations, "audit")
	if n, err := testutil.GatherAndCount(m.Gatherer(), "onewrite_destination_state"); err != nil || n != 0 {
		t.Errorf("%d series are left of a destination that is gone (%v)", n, err)
	}
}

func TestMetricsOfObserver(t *testing.T) {
	m := dashboard.NewMetrics(func() dashboard.Status { return dashboard.Status{} })
	exercise(m, 0)
	exercise(m, 1)
	want := `
# HELP onewrite_delivery_failures_total Writes that failed and were tried again.
# TYPE onewrite_delivery_failures_total counter
onewrite_delivery_failures_total{destination="d0"} 2
# HELP onewrite_events_parked_total Events set aside, followers included.
# TYPE onewrite_events_parked_total counter
onewrite_events_parked_total{destination="d0"} 2
# HELP onewrite_source_events_total Events of the source made durable on the bus by this process.
# TYPE onewrite_source_events_total counter
onewrite_source_events_total{source="s0"} 6
# HELP onewrite_source_gaps_total Gaps met in the source.
# TYPE onewrite_source_gaps_total counter
onewrite_source_gaps_total{source="s0"} 2
`
	if err := testutil.GatherAndCompare(m.Gatherer(), strings.NewReader(want), "onewrite_delivery_failures_total", "onewrite_events_parked_total",
		"onewrite_source_events_total", "onewrite_source_gaps_total"); err != nil {
		t.Error(err)
	}
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "onewrite_delivery_lag_seconds" {
			if h := f.GetMetric()[0].GetHistogram(); h.GetSampleCount() != 2 || h.GetSampleSum() != 0 {
				t.Errorf("lag: %v", h)
			}
		}
	}
}

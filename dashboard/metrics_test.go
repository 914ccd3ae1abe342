package dashboard_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/pipeline"
)

var allStates = []pipeline.State{pipeline.OK, pipeline.CatchingUp, pipeline.Waiting, pipeline.InGap, pipeline.Stopped}

// busy is a status with a source and a destination in each state.
func busy() dashboard.Status {
	s := dashboard.Status{Sources: map[string]dashboard.Source{}, Destinations: map[string]dashboard.Destination{}}
	for i, st := range allStates {
		s.Sources[fmt.Sprint("s", i)] = dashboard.Source{State: st}
		s.Destinations[fmt.Sprint("d", i)] = dashboard.Destination{State: st}
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

// scrape returns what Prometheus sees: each of our series with its value.
func scrape(t *testing.T, m *dashboard.Metrics) map[string]string {
	t.Helper()
	w := httptest.NewRecorder()
	h := dashboard.Handler(dashboard.Options{Control: &control{}, Metrics: m.Gatherer()})
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("/metrics: %d %s", w.Code, w.Body)
	}
	series := map[string]string{}
	for lines := bufio.NewScanner(w.Body); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok && strings.HasPrefix(name, "onewrite_") {
			series[name] = value
		}
	}
	return series
}

func TestMetricsLint(t *testing.T) {
	m := dashboard.NewMetrics(busy)
	exercise(m, 0)
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
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

var label = regexp.MustCompile(`([a-z]+)="([^"]*)"`)

// TestMetricsAreBounded: no id, reason or time makes a new series.
func TestMetricsAreBounded(t *testing.T) {
	m := dashboard.NewMetrics(busy)
	exercise(m, 0)
	before := len(scrape(t, m))
	for i := range 500 {
		exercise(m, i)
	}
	series := scrape(t, m)
	if len(series) != before {
		t.Errorf("%d series became %d", before, len(series))
	}
	known := map[string]bool{}
	for i, st := range allStates {
		known[fmt.Sprint(`source s`, i)], known[fmt.Sprint(`destination d`, i)], known["state "+string(st)] = true, true, true
	}
	for name := range series {
		for _, l := range label.FindAllStringSubmatch(name, -1) {
			if l[1] != "le" && !known[l[1]+" "+l[2]] {
				t.Errorf("%s has a label that is no name of the configuration", name)
			}
		}
	}
}

// TestStatesAreExported: every state of a source and a destination is a series,
// and the one it is in is 1.
func TestStatesAreExported(t *testing.T) {
	series := scrape(t, dashboard.NewMetrics(busy))
	found := 0
	for name := range series {
		if strings.Contains(name, "_state{") {
			found++
		}
	}
	if want := 2 * len(allStates) * len(allStates); found != want {
		t.Errorf("%d series of states, want %d", found, want)
	}
	for i := range allStates {
		for j, st := range allStates {
			want := "0"
			if i == j {
				want = "1"
			}
			for _, kind := range []string{"source", "destination"} {
				name := fmt.Sprintf(`onewrite_%s_state{%s="%s%d",state="%s"}`, kind, kind, kind[:1], i, st)
				if series[name] != want {
					t.Errorf("%s is %q, want %s", name, series[name], want)
				}
			}
		}
	}
}

func TestMetricsOfStatus(t *testing.T) {
	waits := uint64(8)
	status := dashboard.Status{
		Sources:      map[string]dashboard.Source{"shop": {State: pipeline.OK, LagSeconds: 1.5, Events: 20, Importing: &waits}, "other": {}},
		Destinations: map[string]dashboard.Destination{"audit": {State: pipeline.OK, LagSeconds: 2.5, Delivered: 1, Pending: 2, Parked: 3, Filtered: 4, Skipped: 5}},
		Warnings:     []string{"a"}, Bus: dashboard.Bus{Bytes: 6, MaxBytes: 7},
	}
	m := dashboard.NewMetrics(func() dashboard.Status { return status })
	sameSeries(t, scrape(t, m), map[string]string{
		`onewrite_source_importing{source="shop"}`: "8", `onewrite_source_importing{source="other"}`: "",
		`onewrite_source_lag_seconds{source="shop"}`: "1.5", `onewrite_source_offset{source="shop"}`: "20",
		`onewrite_destination_lag_seconds{destination="audit"}`: "2.5", `onewrite_destination_delivered_total{destination="audit"}`: "1",
		`onewrite_destination_pending{destination="audit"}`: "2", `onewrite_destination_parked{destination="audit"}`: "3",
		`onewrite_destination_filtered_total{destination="audit"}`: "4", `onewrite_destination_skipped_total{destination="audit"}`: "5",
		"onewrite_warnings": "1", "onewrite_bus_bytes": "6", "onewrite_bus_max_bytes": "7",
	})
	// What left the configuration leaves the gauges too.
	delete(status.Destinations, "audit")
	for name := range scrape(t, m) {
		if strings.Contains(name, "audit") {
			t.Errorf("%s is left of a destination that is gone", name)
		}
	}
}

func TestMetricsOfObserver(t *testing.T) {
	m := dashboard.NewMetrics(func() dashboard.Status { return dashboard.Status{} })
	exercise(m, 0)
	exercise(m, 1)
	sameSeries(t, scrape(t, m), map[string]string{
		`onewrite_source_events_total{source="s0"}`: "6", `onewrite_source_gaps_total{source="s0"}`: "2",
		`onewrite_append_seconds_count{source="s0"}`: "2", `onewrite_append_seconds_sum{source="s0"}`: "0.002",
		`onewrite_delivery_lag_seconds_count{destination="d0"}`: "2", `onewrite_delivery_lag_seconds_sum{destination="d0"}`: "0",
		`onewrite_delivery_failures_total{destination="d0"}`: "2", `onewrite_events_parked_total{destination="d0"}`: "2",
	})
}

func sameSeries(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %s", name, got[name], value)
		}
	}
}

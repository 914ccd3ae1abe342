package dashboard

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/onewrite/onewrite/pipeline"
)

// Metrics counts what the pipelines do and exports the status. Its labels are
// the names of the configuration, so their number is bounded.
type Metrics struct {
	registry *prometheus.Registry
	appended *prometheus.CounterVec
	append   *prometheus.HistogramVec
	gaps     *prometheus.CounterVec
	lag      *prometheus.HistogramVec
	failures *prometheus.CounterVec
	parked   *prometheus.CounterVec
	statusOf func() Status
}

var seconds = []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}

// NewMetrics returns metrics whose gauges come from status at each scrape.
func NewMetrics(status func() Status) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		statusOf: status,
		appended: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onewrite_source_events_total", Help: "Events of the source made durable on the bus by this process."}, []string{"source"}),
		append:   prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "onewrite_append_seconds", Help: "Time to make a batch durable on the bus.", Buckets: seconds}, []string{"source"}),
		gaps:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onewrite_source_gaps_total", Help: "Gaps met in the source."}, []string{"source"}),
		lag:      prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "onewrite_delivery_lag_seconds", Help: "Time from the event's own time to its confirmation by the destination.", Buckets: seconds}, []string{"destination"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onewrite_delivery_failures_total", Help: "Writes that failed and were tried again."}, []string{"destination"}),
		parked:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onewrite_events_parked_total", Help: "Events set aside, followers included."}, []string{"destination"}),
	}
	m.registry.MustRegister(m.appended, m.append, m.gaps, m.lag, m.failures, m.parked, gauges{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Source makes the counters of a source appear, at zero, before its first event:
// an alert on their increase sees only what was there before.
func (m *Metrics) Source(name string) {
	m.appended.WithLabelValues(name)
	m.append.WithLabelValues(name)
	m.gaps.WithLabelValues(name)
}

// Destination does the same for a destination.
func (m *Metrics) Destination(name string) {
	m.lag.WithLabelValues(name)
	m.failures.WithLabelValues(name)
	m.parked.WithLabelValues(name)
}

// Gatherer returns what /metrics serves.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Observer returns the observer that feeds the metrics.
func (m *Metrics) Observer() pipeline.Observer {
	return pipeline.Observer{
		Appended: func(source string, events int, took time.Duration) {
			m.appended.WithLabelValues(source).Add(float64(events))
			m.append.WithLabelValues(source).Observe(took.Seconds())
		},
		Gap: func(source, _ string, _ bool) { m.gaps.WithLabelValues(source).Inc() },
		Delivered: func(destination string, lag time.Duration) {
			m.lag.WithLabelValues(destination).Observe(max(0, lag.Seconds()))
		},
		Failed: func(destination string, _ error) { m.failures.WithLabelValues(destination).Inc() },
		Parked: func(destination, _, _ string, _ bool) { m.parked.WithLabelValues(destination).Inc() },
	}
}

var (
	descSourceState = prometheus.NewDesc("onewrite_source_state", "1 for the state the source is in.", []string{"source", "state"}, nil)
	descSourceLag   = prometheus.NewDesc("onewrite_source_lag_seconds", "How far the reader is behind the source.", []string{"source"}, nil)
	descImporting   = prometheus.NewDesc("onewrite_source_importing", "Rows that wait in the tables of import:, counted up to 10,000 of each.", []string{"source"}, nil)
	descOffset      = prometheus.NewDesc("onewrite_source_offset", "Events the bus ever took from the source.", []string{"source"}, nil)
	descDestState   = prometheus.NewDesc("onewrite_destination_state", "1 for the state the destination is in.", []string{"destination", "state"}, nil)
	descDestLag     = prometheus.NewDesc("onewrite_destination_lag_seconds", "Age of the oldest event not confirmed.", []string{"destination"}, nil)
	descDelivered   = prometheus.NewDesc("onewrite_destination_delivered_total", "Events confirmed by the destination.", []string{"destination"}, nil)
	descPending     = prometheus.NewDesc("onewrite_destination_pending", "Events on the bus neither confirmed nor parked.", []string{"destination"}, nil)
	descParked      = prometheus.NewDesc("onewrite_destination_parked", "Events set aside now.", []string{"destination"}, nil)
	descSkipped     = prometheus.NewDesc("onewrite_destination_skipped_total", "Parked events that an operator forgot undelivered.", []string{"destination"}, nil)
	descWarnings    = prometheus.NewDesc("onewrite_warnings", "Warnings in the status, such as that the bus folder holds the only copy of events.", nil, nil)
	descFiltered    = prometheus.NewDesc("onewrite_destination_filtered_total", "Events that the destination's topics leave out.", []string{"destination"}, nil)
	descBusBytes    = prometheus.NewDesc("onewrite_bus_bytes", "Bytes of events kept on the bus.", nil, nil)
	descBusMax      = prometheus.NewDesc("onewrite_bus_max_bytes", "Bytes of events the bus may keep.", nil, nil)
)

var states = []pipeline.State{pipeline.OK, pipeline.CatchingUp, pipeline.Waiting, pipeline.InGap, pipeline.Stopped}

// gauges exports the status at the moment of the scrape.
type gauges struct{ m *Metrics }

// Describe sends nothing: the collector is unchecked, for its labels come and go
// with the configuration.
func (g gauges) Describe(chan<- *prometheus.Desc) {}

// Collect sends the status as metrics.
func (g gauges) Collect(out chan<- prometheus.Metric) {
	s := g.m.statusOf()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for name, src := range s.Sources {
		for _, st := range states {
			gauge(descSourceState, is(src.State == st), name, string(st))
		}
		gauge(descSourceLag, src.LagSeconds, name)
		if src.Importing != nil {
			gauge(descImporting, float64(*src.Importing), name)
		}
		if !src.Unknown {
			gauge(descOffset, float64(src.Events), name) // it starts again with a new bus
		}
	}
	for name, d := range s.Destinations {
		for _, st := range states {
			gauge(descDestState, is(d.State == st), name, string(st))
		}
		if d.Unknown { // no number is better than a wrong one
			continue
		}
		gauge(descDestLag, d.LagSeconds, name)
		counter(descDelivered, d.Delivered, name)
		gauge(descPending, float64(d.Pending), name)
		gauge(descParked, float64(d.Parked), name)
		counter(descFiltered, d.Filtered, name)
		counter(descSkipped, d.Skipped, name)
	}
	gauge(descWarnings, float64(len(s.Warnings)))
	if !s.Bus.Unknown {
		gauge(descBusBytes, float64(s.Bus.Bytes))
	}
	gauge(descBusMax, float64(s.Bus.MaxBytes))
}

var _ prometheus.Collector = gauges{}

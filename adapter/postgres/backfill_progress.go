package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// sayEvery is how often it is said how far a snapshot is.
const sayEvery = 5 * time.Second

// Progress is how far the snapshot of a table is. After a restart it counts from where
// the snapshot went on.
type Progress struct {
	// Rows were read, of about About; 0: nobody knows yet.
	Rows, About int64
	// Left is about how long it takes from now; negative: nobody knows.
	Left time.Duration
	// Done says that all are read, or that the reading was given up for now.
	Done bool
}

// progress tells how far the snapshot of a table is.
type progress struct {
	r     *logReader
	table string
	rows  atomic.Int64
	about atomic.Int64 // -1: not asked yet
	began time.Time
	quit  chan struct{}
	said  sync.WaitGroup
}

func newProgress(r *logReader, c captured) *progress {
	p := &progress{r: r, table: c.name, began: time.Now(), quit: make(chan struct{})}
	p.about.Store(-1)
	p.said.Go(p.run)
	return p
}

// begins asks once about how many rows there are; of is what they are selected from. An
// error is one that their reading would have as well.
func (p *progress) begins(ctx context.Context, conn *pgx.Conn, c captured, of string) error {
	if p.about.Load() >= 0 {
		return nil
	}
	var text string
	if err := conn.QueryRow(ctx, "EXPLAIN (FORMAT JSON) SELECT FROM "+of).Scan(&text); err != nil {
		return c.refused(err)
	}
	var bytes int64 // the planner takes a table that it knows nothing of for one of ten pages
	if err := conn.QueryRow(ctx, `SELECT pg_relation_size($1::oid::regclass) + coalesce((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree($1::oid::regclass)), 0)::bigint`, c.rel).Scan(&bytes); err != nil {
		return explain(err)
	}
	var plans []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	if err := json.Unmarshal([]byte(text), &plans); err == nil && len(plans) == 1 {
		p.about.Store(int64(plans[0].Plan.Rows))
	}
	if bytes == 0 {
		p.about.Store(0)
	}
	p.r.log.Info("snapshot begins", "table", p.table, "rows", fmt.Sprint("about ", p.about.Load()))
	return nil
}

func (p *progress) run() {
	tick := time.NewTicker(cmp.Or(p.r.cfg.say, sayEvery))
	defer tick.Stop()
	for {
		select {
		case <-p.quit:
			p.tell(Progress{Done: true})
			return
		case <-tick.C:
		}
		now, rate := p.now(time.Since(p.began))
		left := "unknown"
		if now.Left >= 0 {
			left = now.Left.String()
		}
		p.r.log.Info("snapshot", "table", p.table, "rows", now.Rows, "of", fmt.Sprint("about ", now.About), "per_second", int64(rate), "left", left)
		p.tell(now)
	}
}

// now is how far it is after some time, and how many rows came per second.
func (p *progress) now(after time.Duration) (now Progress, rate float64) {
	now = Progress{Rows: p.rows.Load(), About: max(0, p.about.Load()), Left: -1}
	rate = float64(now.Rows) / after.Seconds()
	if now.About > now.Rows && rate > 0 {
		now.Left = time.Duration(float64(now.About-now.Rows) / rate * float64(time.Second)).Round(time.Second)
	}
	return now, rate
}

func (p *progress) tell(now Progress) {
	if p.r.cfg.Snapshotting != nil {
		p.r.cfg.Snapshotting(p.table, now)
	}
}

func (p *progress) end() {
	p.r.log.Info("snapshot was read", "table", p.table, "rows", p.rows.Load(), "took", time.Since(p.began).Round(time.Millisecond))
}

// stop ends the telling.
func (p *progress) stop() {
	close(p.quit)
	p.said.Wait()
}

package storm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// rounds is how many transactions a writer of rows makes at least.
const rounds = 120

// rower is a client that changes rows.
type rower struct {
	*writer
	done int
}

// simply runs statements as they are: each one has to be planned anew while tables are
// altered.
func (d *database) simply(ctx context.Context, query string) error {
	conn, err := d.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err = conn.ExecContext(ctx, query, pgx.QueryExecModeSimpleProtocol); err != nil { // what failed after a savepoint keeps its locks
		_, _ = conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK", pgx.QueryExecModeSimpleProtocol)
	}
	return err
}

// rowing starts the writers of the workloads that are on, once changes are captured.
func (s *storm) rowing(ctx context.Context, run func(func(context.Context) error)) {
	row := func(id int, round func(*rower, context.Context) error) {
		run(func(ctx context.Context) error { return (&rower{writer: s.writer(id)}).loop(ctx, round) })
	}
	if s.has("W6") {
		for i := range 3 {
			row(200+i, (*rower).mixed)
		}
		row(210, (*rower).prepared)
		if len(s.Traps) == 0 {
			row(211, (*rower).openAcross)
			row(212, (*rower).cut)
		}
	}
	if s.has("W4") {
		row(220, (*rower).alter)
		row(221, (*rower).beside)
	}
	if s.has("W5") {
		row(230, (*rower).extreme)
	}
	if s.has("W7") {
		row(240, (*rower).busy)
	}
	if s.has("W8") {
		run(s.writer(250).bulk)
	}
}

// loop makes rounds until the storm is over.
func (w *rower) loop(ctx context.Context, round func(*rower, context.Context) error) error {
	for w.captured.Load() == 0 || w.done < rounds || !w.labels.tormented() {
		if w.gate.pass(); ctx.Err() != nil {
			return nil
		}
		if w.captured.Load() > 0 {
			if err := round(w, ctx); err != nil {
				return err
			}
			w.done++
		}
		pause(ctx, time.Duration(2+w.rng.IntN(12))*time.Millisecond)
	}
	return nil
}

// run runs statements, and forgives what happens to those who change the same rows, and
// what comes of the storm.
func (w *rower) run(ctx context.Context, label, query string) error {
	err := w.db.simply(ctx, query)
	if err == nil {
		w.labels.hit(label)
		return nil
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		if slices.Contains([]string{"40P01", "40001", "23505", "55P03"}, pe.Code) {
			return nil
		}
		if !strings.HasPrefix(pe.Code, "57P") { // the server goes down, or is starting
			return fmt.Errorf("writer %d: %w: %.400s", w.id, err, query)
		}
	}
	if err = w.forgive(ctx, err); err != nil {
		return fmt.Errorf("%w: %.200s", err, query)
	}
	return nil
}

// fresh is a number that no other change has.
func (s *storm) fresh() int64 { return 1000 + s.stamp.Add(1) }

// mixed is W6: single and many rows, large values that are left alone, keys that
// change, rows that go and come within a transaction, savepoints, rollbacks, tables
// without a key and with partitions.
func (w *rower) mixed(ctx context.Context) error {
	id, v, u := w.rng.IntN(400)+1, w.fresh(), w.fresh()
	small := w.rng.IntN(300) + 1
	pair := "(SELECT region, id FROM rows.pair ORDER BY random() LIMIT 1)"
	bare := "(SELECT v FROM rows.bare ORDER BY random() LIMIT 1)"
	list := [][2]string{
		{"update", fmt.Sprintf("UPDATE rows.plain SET v = %d, n = n + 1 WHERE id = %d", v, id)},
		{"update", fmt.Sprintf("UPDATE rows.plain SET v = %d, note = 'n%[1]d' WHERE id BETWEEN %d AND %[2]d + 15", v, id)},
		{"large", fmt.Sprintf("UPDATE rows.plain SET v = %d, big = repeat('y', %d) || %[1]d WHERE id = %d", v, 2100+w.rng.IntN(4000), id)},
		{"delete", fmt.Sprintf("DELETE FROM rows.plain WHERE id = %d", id)},
		{"upsert", fmt.Sprintf("INSERT INTO rows.plain VALUES (%d, %d, 0, 'again', repeat('z', 2600)) ON CONFLICT (id) DO UPDATE SET v = excluded.v, n = plain.n + 1", id, v)},
		{"upsert", fmt.Sprintf("INSERT INTO rows.plain SELECT i, %d, 0, 'many', repeat('m', 2200) || i FROM generate_series(%d, %[2]d + 25) i ON CONFLICT DO NOTHING", v, id)},
		{"same_key", fmt.Sprintf("BEGIN; DELETE FROM rows.plain WHERE id = %d; INSERT INTO rows.plain VALUES (%[1]d, %d, 1, 'reborn', NULL); UPDATE rows.plain SET v = %d WHERE id = %[1]d; COMMIT", id, v, u)},
		{"savepoint", fmt.Sprintf("BEGIN; UPDATE rows.plain SET v = %d WHERE id = %d; SAVEPOINT s; UPDATE rows.plain SET v = %d, note = 'never' WHERE id = %[2]d; DELETE FROM rows.plain WHERE id < 40; ROLLBACK TO s; UPDATE rows.plain SET n = n + 1, v = %d WHERE id = %[2]d; COMMIT", v, id, u, w.fresh())},
		{"rolled_back", fmt.Sprintf("BEGIN; UPDATE rows.plain SET v = %d, note = 'never'; DELETE FROM rows.bare; INSERT INTO rows.pair VALUES ('never', %d, %[1]d); ROLLBACK", v, id)},
		{"moved", fmt.Sprintf("UPDATE rows.pair SET v = %d, region = 'r%d' WHERE (region, id) = %s", v, w.rng.IntN(9), pair)},
		{"moved", fmt.Sprintf("UPDATE rows.pair SET v = %d, id = id %% 300 + 1 WHERE (region, id) = %s", v, pair)},
		{"large", fmt.Sprintf("UPDATE rows.pair SET v = %d, big = repeat('b', 2500) || %[1]d WHERE (region, id) = %s", v, pair)},
		{"upsert", fmt.Sprintf("INSERT INTO rows.pair VALUES ('r%d', %d, %d, repeat('i', 2700)) ON CONFLICT (region, id) DO UPDATE SET v = excluded.v", small%7, small, v)},
		{"keyless", fmt.Sprintf("INSERT INTO rows.bare VALUES (%d, 'row %[1]d')", v)},
		{"keyless", fmt.Sprintf("UPDATE rows.bare SET v = %d WHERE v = %s", v, bare)},
		{"keyless", fmt.Sprintf("DELETE FROM rows.bare WHERE v = %s", bare)},
		{"partition", fmt.Sprintf("INSERT INTO rows.parts VALUES (%d, %d, %d, 'in') ON CONFLICT (id, part) DO UPDATE SET v = excluded.v, note = 'twice'", small, w.rng.IntN(6), v)},
		{"partition", fmt.Sprintf("UPDATE rows.parts SET v = %d, part = (part + 1) %% 6 WHERE id = %d AND part = (SELECT min(part) FROM rows.parts WHERE id = %[2]d)", v, small)},
		{"partition", fmt.Sprintf("DELETE FROM rows.parts WHERE id = %d", small)},
	}
	q := list[w.rng.IntN(len(list))]
	return w.run(ctx, q[0], q[1])
}

// cut empties tables now and then.
func (w *rower) cut(ctx context.Context) error {
	if w.rng.IntN(12) > 0 {
		return nil
	}
	name := []string{"pair", "parts", "pair, rows.parts", "bare"}[w.rng.IntN(4)]
	query := "BEGIN; SET LOCAL lock_timeout = '20s'; TRUNCATE rows." + name + "; COMMIT"
	if w.rng.IntN(3) == 0 {
		return w.run(ctx, "rolled_back", "BEGIN; TRUNCATE rows."+name+"; ROLLBACK")
	}
	v := w.fresh()
	return w.run(ctx, "truncate", strings.Replace(query, "COMMIT", fmt.Sprintf("INSERT INTO rows.pair SELECT 'r' || i %% 7, i, %d, repeat('t', 2500) FROM generate_series(1, 100) i ON CONFLICT DO NOTHING; COMMIT", v), 1))
}

// prepared commits in two phases, or takes back what was prepared.
func (w *rower) prepared(ctx context.Context) error {
	name := fmt.Sprintf("p%d", w.fresh())
	if err := w.run(ctx, "prepared", fmt.Sprintf("BEGIN; UPDATE rows.plain SET v = %d, note = '%s' WHERE id BETWEEN %d AND %[3]d + 3; PREPARE TRANSACTION '%[2]s'", w.fresh(), name, 1+w.rng.IntN(396))); err != nil {
		return err
	}
	end := []string{"COMMIT", "ROLLBACK"}[w.rng.IntN(2)]
	for ctx.Err() == nil { // nobody else ends it, whatever becomes of the server
		err := w.db.simply(ctx, end+" PREPARED '"+name+"'")
		var pe *pgconn.PgError
		switch {
		case err == nil:
			w.labels.hit("prepared_" + strings.ToLower(end))
			return nil
		case errors.As(err, &pe) && pe.Code == "42704": // there is none
			return nil
		}
		if err := w.forgive(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// openAcross keeps a transaction open across a restart of onewrite, with a change
// before it and one after.
func (w *rower) openAcross(ctx context.Context) error {
	before := w.restarts.Load()
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return w.forgive(ctx, err)
	}
	defer tx.Rollback()
	change := func() error {
		_, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO rows.plain VALUES (%d, %d, 0, 'long', NULL)", 10_000+w.fresh(), w.fresh()), pgx.QueryExecModeSimpleProtocol)
		return err
	}
	if err := change(); err != nil {
		return w.forgive(ctx, err)
	}
	for w.restarts.Load() == before && !w.labels.tormented() && !w.gate.held() && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	if err := change(); err != nil {
		return w.forgive(ctx, err)
	}
	if err := tx.Commit(); err != nil {
		return w.forgive(ctx, err)
	}
	if w.restarts.Load() > before {
		w.labels.hit("row_open_across_restart")
	} else {
		w.done = rounds
	}
	return nil
}

// alter is the DDL of W4: columns come, go, and get other names and types, in the
// transactions that change the rows.
func (w *rower) alter(ctx context.Context) error {
	names, err := texts(ctx, w.db, `SELECT attname FROM pg_attribute WHERE attrelid = 'rows.churn'::regclass AND attnum > 2 AND NOT attisdropped`)
	if err != nil || len(names) == 0 {
		return w.forgive(ctx, errors.Join(err, errors.New("no columns")))
	}
	n, id := w.fresh(), w.rng.IntN(60)+1
	name := `"` + names[w.rng.IntN(len(names))] + `"`
	other := fmt.Sprintf(`"k%d"`, n)
	types := []string{"text USING %s::text", "int USING length(%s::text)", "numeric(40, 3) USING length(%s::text) / 7.0", "timestamptz USING CASE WHEN %s IS NOT NULL THEN '2024-02-03 04:05:06.7+08'::timestamptz END",
		"int[] USING ARRAY[1, NULL, length(%s::text)]", "jsonb USING to_jsonb(left(%s::text, 200))", "bytea USING convert_to(left(%s::text, 200), 'UTF8')", "boolean USING length(%s::text) > 3"}
	ddl := []string{"DROP COLUMN " + name, "ADD COLUMN " + other + " text DEFAULT 'it''s new'", "ADD COLUMN " + other + " int", "ADD COLUMN " + other + " timestamptz DEFAULT clock_timestamp()",
		"RENAME COLUMN " + name + " TO " + other, "ALTER COLUMN " + name + " DROP DEFAULT, ALTER COLUMN " + name + " TYPE " + strings.ReplaceAll(types[w.rng.IntN(len(types))], "%s", name)}
	kind := w.rng.IntN(len(ddl))
	if kind == 0 && len(names) < 3 || kind < 4 && kind > 0 && len(names) > 9 {
		kind = 4 + w.rng.IntN(2)
	}
	end, label := "COMMIT", "ddl"
	if w.rng.IntN(5) == 0 {
		end, label = "ROLLBACK", "rolled_back_ddl"
	}
	query := fmt.Sprintf("BEGIN; UPDATE rows.churn SET v = %d WHERE id BETWEEN %d AND %[2]d + 3; ALTER TABLE rows.churn %s; INSERT INTO rows.churn (id, v) VALUES (%d, %d) ON CONFLICT (id) DO UPDATE SET v = excluded.v", n, id, ddl[kind], 61+w.rng.IntN(40), w.fresh())
	if kind > 0 && kind < 4 {
		query += fmt.Sprintf("; UPDATE rows.churn SET v = %d, %s = NULL WHERE id = %d", w.fresh(), other, id)
	}
	return w.run(ctx, label, query+"; "+end)
}

// beside changes rows of the tables that are altered and made anew.
func (w *rower) beside(ctx context.Context) error {
	id, v := w.rng.IntN(100)+1, w.fresh()
	list := []string{"INSERT INTO rows.churn (id, v) VALUES (%d, %d) ON CONFLICT (id) DO UPDATE SET v = excluded.v", "UPDATE rows.churn SET v = %[2]d WHERE id = %[1]d", "DELETE FROM rows.churn WHERE id = %d AND %d > 0",
		"INSERT INTO rows.anew (id, v, note) VALUES (%d, %d, 'beside') ON CONFLICT (id) DO UPDATE SET v = excluded.v, note = NULL", "DELETE FROM rows.anew WHERE id = %d AND %d > 0"}
	return w.run(ctx, "beside", fmt.Sprintf(list[w.rng.IntN(len(list))], id, v))
}

// busy is the neighbour of W7, whose table is not captured.
func (w *rower) busy(ctx context.Context) error {
	return w.run(ctx, "busy", "INSERT INTO public.busy SELECT repeat(md5(random()::text), 100) FROM generate_series(1, 250)")
}

// bulk is W8: transactions of many rows, one of them rolled back.
func (w *writer) bulk(ctx context.Context) error {
	for w.captured.Load() == 0 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	r := &rower{writer: w}
	insert := "INSERT INTO rows.bulk SELECT i, %d, 'row ' || i FROM generate_series(1, %d) i"
	for _, q := range [][2]string{
		{"large_rolled_back", fmt.Sprintf("BEGIN; "+insert+"; ROLLBACK", w.fresh(), w.Large)},
		{"large", fmt.Sprintf(insert, w.fresh(), w.Large)},
		{"large_savepoint", fmt.Sprintf("BEGIN; DELETE FROM rows.bulk WHERE id %% 10 = 0; SAVEPOINT s; UPDATE rows.bulk SET v = %d WHERE id <= %d; ROLLBACK TO s; UPDATE rows.bulk SET v = %d WHERE id %% 10 = 1; COMMIT", w.fresh(), w.Large/2, w.fresh())},
	} {
		if err := r.run(ctx, q[0], q[1]); err != nil {
			return err
		}
	}
	return nil
}

// settleDoubt counts what is committed, when nobody writes any more.
func (s *storm) settleDoubt(ctx context.Context) error {
	var n int64
	if err := s.db.QueryRowContext(ctx, `SELECT coalesce(sum(json_array_length(events::json)), 0) FROM oracle_tx`).Scan(&n); err != nil {
		return err
	}
	s.committed.Store(n)
	s.doubtful.Store(0)
	return nil
}

// settleRows ends what is prepared, and changes every row of the table that was
// altered: what an ALTER writes over is in no log.
func (s *storm) settleRows(ctx context.Context) error {
	open, err := texts(ctx, s.db, `SELECT gid FROM pg_prepared_xacts WHERE database = current_database()`)
	for _, name := range open {
		err = errors.Join(err, s.db.simply(ctx, "ROLLBACK PREPARED '"+name+"'"))
	}
	if err != nil {
		return err
	}
	if err := s.db.simply(ctx, fmt.Sprintf("UPDATE rows.churn SET v = %d", s.fresh())); err != nil {
		return err
	}
	s.endMark.Store(s.fresh())
	return s.mark(ctx, s.endMark.Load())
}

// mark writes a row to look for.
func (s *storm) mark(ctx context.Context, v int64) error {
	return s.db.simply(ctx, fmt.Sprintf("INSERT INTO rows.mark VALUES (0, %d) ON CONFLICT (id) DO UPDATE SET v = excluded.v", v))
}

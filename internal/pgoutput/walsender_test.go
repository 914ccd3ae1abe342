package pgoutput

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// walsender is a replication connection that keeps all that it reads.
type walsender struct {
	t      *testing.T
	ctx    context.Context
	conn   *pgconn.PgConn
	dec    *Decoder
	frames [][]byte
	kept   bool // a keepalive is in frames; one is enough
	end    LSN  // the end of the last committed transaction
}

func startWalsender(t *testing.T, ctx context.Context, url string, v variant) *walsender {
	t.Helper()
	w := &walsender{t: t, ctx: ctx, dec: decoderOf(t, v)}
	cfg, err := pgconn.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["options"] = "-c logical_decoding_work_mem=64kB"
	if w.conn, err = pgconn.ConnectConfig(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	slot := fmt.Sprintf("pgoutput_%d", time.Now().UnixNano()) // it is gone a moment after its connection
	create := `CREATE_REPLICATION_SLOT ` + slot + ` TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing'`
	if v.twoPhase {
		create += `, TWO_PHASE`
	}
	if _, err := w.conn.Exec(ctx, create+`)`).ReadAll(); err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf(`proto_version '%d', publication_names 'p', messages 'true'`, v.proto)
	if v.stream != "" {
		options += fmt.Sprintf(`, streaming '%s'`, v.stream)
	}
	if v.twoPhase {
		options += `, two_phase 'true'`
	}
	if v.binary {
		options += `, binary 'true'`
	}
	w.conn.Frontend().Send(&pgproto3.Query{String: `START_REPLICATION SLOT ` + slot + ` LOGICAL 0/0 (` + options + `)`})
	if err := w.conn.Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := w.conn.ReceiveMessage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyBothResponse:
			return w
		case *pgproto3.ErrorResponse:
			t.Fatal(pgconn.ErrorResponseToPgError(msg))
		}
	}
}

func (w *walsender) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = w.conn.Close(ctx)
}

// until reads up to a message for which found is true.
func (w *walsender) until(found func(*Message) bool) {
	w.t.Helper()
	var m Message
	for {
		msg, err := w.conn.ReceiveMessage(w.ctx)
		if err != nil {
			w.t.Fatalf("after %d frames: %v", len(w.frames), err)
		}
		data, ok := msg.(*pgproto3.CopyData)
		if !ok {
			continue
		}
		frame := append([]byte(nil), data.Data...)
		switch frame[0] {
		case FrameKeepalive:
			w.keepalive(frame)
		case FrameXLogData:
			w.frames = append(w.frames, frame)
			x, err := ParseXLogData(frame)
			if err != nil {
				w.t.Fatal(err)
			}
			if err := w.dec.Decode(x.Data, &m); err != nil {
				w.t.Fatalf("%v in %x", err, x.Data)
			}
			if m.Kind == KindCommit || m.Kind == KindStreamCommit {
				w.end = m.EndLSN
			}
			if found(&m) {
				return
			}
		default:
			w.t.Fatalf("a frame %q", frame[0])
		}
	}
}

func (w *walsender) keepalive(frame []byte) {
	w.t.Helper()
	k, err := ParseKeepalive(frame)
	if err != nil {
		w.t.Fatal(err)
	}
	if !w.kept {
		w.kept = true
		w.frames = append(w.frames, frame)
	}
	if k.ReplyRequested {
		w.status(Status{Clock: TimestampOf(time.Now())})
	}
}

func (w *walsender) status(s Status) {
	w.t.Helper()
	w.conn.Frontend().Send(&pgproto3.CopyData{Data: AppendStatus(nil, s)})
	if err := w.conn.Frontend().Flush(); err != nil {
		w.t.Fatal(err)
	}
}

// confirm tells the server what was read and sees that it understood all of it:
// the three places, the clock, and that an answer is wanted.
func (w *walsender) confirm(conn *pgx.Conn) {
	w.t.Helper()
	sent := Status{Write: w.end + 2, Flush: w.end, Apply: w.end - 1, Clock: TimestampOf(time.Now()), ReplyRequested: true}
	w.status(sent)
	const query = `SELECT s.confirmed_flush_lsn::text, coalesce(r.write_lsn, '0/0')::text, coalesce(r.flush_lsn, '0/0')::text, coalesce(r.replay_lsn, '0/0')::text,
		coalesce(extract(epoch FROM r.reply_time), 0)::numeric::text
		FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE s.active_pid = $1`
	want := fmt.Sprint(sent.Flush, sent.Write, sent.Flush, sent.Apply, fmt.Sprintf("%d.%06d", sent.Clock.Time().Unix(), sent.Clock.Time().Nanosecond()/1000))
	for {
		var confirmed, write, flush, apply, clock string
		if err := conn.QueryRow(w.ctx, query, int64(w.conn.PID())).Scan(&confirmed, &write, &flush, &apply, &clock); err != nil {
			w.t.Fatalf("want %s: %v", want, err)
		}
		parse := func(s string) LSN {
			lsn, err := ParseLSN(s)
			if err != nil || lsn.String() != s {
				w.t.Fatalf("%q is %s: %v", s, lsn, err)
			}
			return lsn
		}
		got := fmt.Sprint(parse(confirmed), parse(write), parse(flush), parse(apply), clock)
		if got == want {
			break
		}
		select {
		case <-w.ctx.Done():
			w.t.Fatalf("the server has %s, sent was %s", got, want)
		case <-time.After(10 * time.Millisecond):
		}
	}
	for { // the answer; what was on its way before it may be one too
		msg, err := w.conn.ReceiveMessage(w.ctx)
		if err != nil {
			w.t.Fatalf("no keepalive although one was asked for: %v", err)
		}
		if data, ok := msg.(*pgproto3.CopyData); ok && data.Data[0] == FrameKeepalive {
			return
		}
	}
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// logRecord is the row of onewrite.log.
type logRecord struct {
	slot              string
	began, idle, read pgoutput.LSN
	pub               uint32
	gap               string
	system            uint64
	bus               string
}

// recordOf reads the record of a source, nil if there is none. An error that is a Gap: not
// even its table is there.
func recordOf(ctx context.Context, conn *pgx.Conn, source string) (*logRecord, error) {
	var r logRecord
	var began, idle, read string
	var system int64
	err := conn.QueryRow(ctx, `SELECT slot, began::text, idle::text, read::text, publication, gap, system, bus_id FROM onewrite.log WHERE source = $1`, source).Scan(&r.slot, &began, &idle, &read, &r.pub, &r.gap, &system, &r.bus)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case isCode(err, "42P01"):
		return nil, &onewrite.Gap{Reason: "row changes: the table onewrite.log is gone, and with it the record of the slot", From: "unknown", To: "now", Cure: cureRegistry}
	case err != nil:
		return nil, explain(err)
	}
	r.system = uint64(system)
	if r.began, err = pgoutput.ParseLSN(began); err == nil {
		r.idle, err = pgoutput.ParseLSN(idle)
	}
	if err == nil {
		r.read, err = pgoutput.ParseLSN(read)
	}
	return &r, err
}

// other says why the log is another one than was read, as far as the record tells; "": it is
// not. The slot is named after the database, and ends as standbySlot on a standby.
func (r *logRecord) other(slot string, system uint64, pub uint32) string {
	switch {
	case r == nil || r.slot == "":
		return "the record of the slot is gone from onewrite.log: the outbox was made anew, or restored"
	case r.system != system:
		return fmt.Sprintf("the database is another cluster than before (system identifier %d, was %d): cloned, or dumped and loaded", system, r.system)
	case strings.TrimSuffix(r.slot, standbySlot) != strings.TrimSuffix(slot, standbySlot):
		return fmt.Sprintf("the database is another one of the same server than before (its slot was %s, and is %s here): copied, and renamed in place of the old one", r.slot, slot)
	case r.slot != slot:
		return "the log is read from another server than before: log_url was set, or taken out"
	case r.pub != pub: // the log of the time without it cannot be decoded
		return "the publication was dropped and made again"
	}
	return ""
}

package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// newFile gives the history another identity: every position from before is
// foreign from then on, so the table is read again until one of the new history
// is stored, however often the source is opened meanwhile.
const newFile = `UPDATE onewrite_meta SET file = lower(hex(randomblob(16))), epoch = ?, bus = ? RETURNING file`

// highWater is the greatest number given so far.
const highWater = `SELECT max(coalesce((SELECT max(seq) FROM onewrite_outbox), 0),
	coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'onewrite_outbox'), 0))`

// adopt claims the file for a new reader in one small transaction, and decides
// whether its history is the one that at belongs to. It returns the place to
// read from.
func adopt(ctx context.Context, c *sql.Conn, at place, bus string) (from place, gap *onewrite.Gap, err error) {
	err = immediate(ctx, c, func() error {
		var file, known string
		var epoch, high, freed int64
		if err := c.QueryRowContext(ctx, "SELECT file, epoch, bus, freed FROM onewrite_meta").Scan(&file, &epoch, &known, &freed); err != nil {
			return err
		}
		if err := c.QueryRowContext(ctx, highWater).Scan(&high); err != nil {
			return err
		}
		reason, err := broken(ctx, c, at, place{file: file, epoch: epoch, seq: high}, known, bus)
		if err != nil {
			return err
		}
		if bus == "" {
			bus = known
		}
		if err := sabotage.At("sqlite.adopt"); err != nil {
			return err
		}
		from = place{file: file, epoch: max(epoch, at.epoch) + 1, seq: at.seq, id: at.id}
		if reason == "" {
			if at.seq < freed {
				gap = &onewrite.Gap{
					Reason: "the bus does not have events that it confirmed and that were deleted from the outbox for it: its log was removed, an older copy of it was put back, or the source has got another name; destinations that had not got them yet miss them",
					Cure:   "the warnings of onewrite status name what each destination misses; bring it there by hand, or publish it again",
					From:   "seq " + strconv.FormatInt(at.seq+1, 10), To: "seq " + strconv.FormatInt(freed, 10),
				}
				from.seq, from.id = freed, ""
			}
			_, err = c.ExecContext(ctx, "UPDATE onewrite_meta SET epoch = ?, bus = ?", from.epoch, bus)
			return err
		}
		gap = &onewrite.Gap{
			Reason: reason + "; the outbox was read again from its first row, with the same ids; events that were in neither are lost",
			From:   "the oldest row", To: "seq " + strconv.FormatInt(high, 10),
		}
		from.seq, from.id = 0, ""
		return c.QueryRowContext(ctx, newFile, from.epoch, bus).Scan(&from.file)
	})
	return from, gap, err
}

// broken says why the history in the file is not the one of the position; empty
// if it is.
func broken(ctx context.Context, c *sql.Conn, at, now place, known, bus string) (string, error) {
	if bus != "" && known != "" && bus != known && now.seq > 0 {
		return "the bus is not the one that got this outbox's events so far", nil
	}
	if at.file == "" {
		return "", nil
	}
	switch {
	case at.file != now.file:
		return "the file is not the one that was read before, or its history was broken", nil
	case at.epoch > now.epoch:
		return "an older copy of the file was restored", nil
	case at.seq > now.seq:
		return "the file holds less than was read before: an older copy was restored, or its WAL was removed", nil
	}
	var id string
	err := c.QueryRowContext(ctx, "SELECT lower(id) FROM onewrite_outbox WHERE seq = ?", at.seq).Scan(&id)
	if err == nil && id != at.id {
		return "an older copy of the file was restored and written since", nil
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = nil // reclaimed
	}
	return "", err
}

// disown breaks the history on purpose, when it was seen to change under the
// reader. It may fail; then the next Open has to find out by itself.
func (s *Source) disown(ctx context.Context, reason string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	var file string
	err := s.writer.QueryRowContext(ctx, `UPDATE onewrite_meta SET file = lower(hex(randomblob(16))) WHERE epoch <= ? RETURNING file`, s.at.epoch).Scan(&file)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		s.log.Warn("the history could not be marked as broken", "error", err)
	}
	return fmt.Errorf("sqlite: source %s: %s; it will be read again", s.cfg.Name, reason)
}

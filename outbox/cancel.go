package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// RowQueryer is what Cancel needs of a transaction: *sql.Tx has it, and so have
// *sql.DB and the transactions of most libraries that wrap database/sql.
type RowQueryer interface {
	// QueryRowContext runs one statement in the caller's transaction.
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Cancel takes back, in tx, an event that was published with DeliverAt: it will not
// be sent if tx commits. It reports whether the event was there to be taken back;
// else it was sent, or cancelled, or never committed. Set the event's ID to know it
// (see [NewID]). To move an event to another time, cancel it and publish it again,
// with a new ID, in one transaction.
//
// An error is the database's: roll tx back.
func (p *Publisher) Cancel(ctx context.Context, tx RowQueryer, id string) (bool, error) {
	if p.refusal != nil {
		return false, p.refusal
	}
	if p.log {
		return false, errLogCancel
	}
	if p.layout.cancel == "" {
		return false, errors.New("outbox: this dialect has no scheduled events yet")
	}
	if !isUUID(id) {
		return false, fmt.Errorf("outbox: cancel: %q is no id; it is a UUID of 36 characters", id)
	}
	var was bool
	err := tx.QueryRowContext(ctx, p.layout.cancel, id).Scan(&was)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("outbox: cancel: %w (roll the transaction back; %s)", err, p.cure(err))
	}
	return was, nil
}

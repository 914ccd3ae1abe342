// Package pgoutput decodes what PostgreSQL's output plugin of this name sends:
// the logical replication protocol, versions 1 to 4, and the frames that carry it
// over a replication connection. It knows one message at a time. What relations
// there are, what a streamed transaction came to and what may be confirmed is for
// the reader of the log to keep.
//
// The decoder is strict. A kind, flag or length that it does not know is a
// [FormatError], never skipped: whoever guesses at a log loses rows of it. After
// an error the connection is of no more use.
//
// Sources: PostgreSQL's documentation, "Logical Replication Message Formats" and
// "Streaming Replication Protocol", and what servers of versions 15 to 18 sent,
// which is kept under testdata. What only experiment tells is said at the fields.
package pgoutput

import "fmt"

// Kind is the first byte of a message.
type Kind byte

// The kinds of messages. From StreamStart to StreamAbort they come with
// protocol 2 and option streaming, the rest of the list with protocol 3 and a
// slot with two_phase, StreamPrepare with both.
const (
	KindBegin    Kind = 'B'
	KindCommit   Kind = 'C'
	KindOrigin   Kind = 'O'
	KindRelation Kind = 'R'
	KindType     Kind = 'Y'
	KindInsert   Kind = 'I'
	KindUpdate   Kind = 'U'
	KindDelete   Kind = 'D'
	KindTruncate Kind = 'T'
	KindMessage  Kind = 'M'

	KindStreamStart  Kind = 'S'
	KindStreamStop   Kind = 'E'
	KindStreamCommit Kind = 'c'
	KindStreamAbort  Kind = 'A'

	KindBeginPrepare     Kind = 'b'
	KindPrepare          Kind = 'P'
	KindCommitPrepared   Kind = 'K'
	KindRollbackPrepared Kind = 'r'
	KindStreamPrepare    Kind = 'p'
)

// The frames of a replication connection are kinds in errors only.
const (
	kindXLogData  Kind = 'w'
	kindKeepalive Kind = 'k'
)

// String returns the kind's name, or its byte in quotes.
func (k Kind) String() string {
	switch {
	case kinds[k].since > 0:
		return kinds[k].name
	case k == kindXLogData:
		return "XLogData"
	case k == kindKeepalive:
		return "Keepalive"
	}
	return fmt.Sprintf("%q", byte(k))
}

// Message is one decoded message. Which fields a kind sets is said at the field,
// by the kind's letter; all others are zero or empty. Byte slices, tuples
// included, point into the data that was decoded and are good for as long as it
// is.
type Message struct {
	Kind Kind

	// Stream is the streamed transaction that the message belongs to: in S, E, c,
	// A, p and in all that comes between S and E. Outside of stream blocks it is 0.
	Stream uint32
	// XID is the transaction of B, b, P, K, r, S, c, A, p. Of R, Y, I, U, D, T and
	// M it is known in stream blocks only, where it may be a subtransaction. Of M
	// it is always the whole transaction, even in a savepoint.
	XID uint32
	// SubXID is what was rolled back (A). Equal to XID it is the transaction,
	// else a subtransaction; those below it had an A of their own just before.
	// All that came since the first message of the subtransaction went with it.
	// An M from a savepoint that has nothing before it there is not told from
	// one that stays.
	SubXID uint32
	// FirstSegment is true for the transaction's first block (S).
	FirstSegment bool

	FinalLSN      LSN // B: where the commit will be
	CommitLSN     LSN // C, c, K: the commit record
	PrepareLSN    LSN // b, P, p: the prepare record
	PrepareEndLSN LSN // r: the end of the prepare record
	AbortLSN      LSN // A, of a parallel stream: the abort record; 0 if a crash of the server was the abort
	EndLSN        LSN // C, c, K, b, P, p, r: behind the record; what may be confirmed once all is safe
	LSN           LSN // M: of the message itself
	OriginLSN     LSN // O: the commit on the server where it began; 0 if not known yet

	// CommitTime (B, C, c, K) is the origin's if the transaction was replayed
	// from another server.
	CommitTime   Timestamp
	PrepareTime  Timestamp // b, P, p, r
	RollbackTime Timestamp // r
	AbortTime    Timestamp // A, of a parallel stream; 0 as AbortLSN

	// GID is the name of a prepared transaction (b, P, K, r, p).
	GID string

	// RelationID says which table (R, I, U, D). Its R came before it on the same
	// connection.
	RelationID uint32
	// Old is the row as it was (U, D), see OldKind.
	Old Tuple
	// New is the row as it is (I, U).
	New Tuple
	// OldKind is OldKey, OldRow, or 0: an update that did not change the key.
	OldKind byte

	// Relations are the tables of T, one at least.
	Relations []uint32
	// Cascade and RestartIdentity are the options of T. With Cascade, Relations
	// names the tables that it reached too, if they are published.
	Cascade, RestartIdentity bool

	// Transactional is false for an M that is there whatever became of the
	// transaction that sent it; such a message comes between transactions, and
	// may come again after a reconnect.
	Transactional bool
	// Prefix and Content are the arguments of pg_logical_emit_message (M).
	Prefix, Content []byte

	// Origin names where the transaction was replayed from (O).
	Origin []byte

	// Relation describes a table (R). It is newly made and does not alias.
	Relation *Relation
	// Type describes a type that is not built in (Y); it does not alias.
	Type Type
}

// reset makes m empty and keeps the room that it has.
func (m *Message) reset() {
	*m = Message{Old: m.Old[:0], New: m.New[:0], Relations: m.Relations[:0]}
}

// What Old holds.
const (
	// OldKey: the columns of the replica identity; all others are null,
	// whatever the row had.
	OldKey byte = 'K'
	// OldRow: the whole row, under REPLICA IDENTITY FULL.
	OldRow byte = 'O'
)

// Tuple is a row, with as many columns as its Relation.
type Tuple []Column

// Column is one value of a row.
type Column struct {
	// Kind is ColumnNull, ColumnUnchanged, ColumnText or ColumnBinary.
	Kind byte
	// Data is the value; nil if there is none, empty if that is what it is.
	Data []byte
}

// The kinds of column values.
const (
	// ColumnNull is SQL's NULL.
	ColumnNull byte = 'n'
	// ColumnUnchanged is a large value, stored out of line, that the update did
	// not touch: it is absent, not null.
	ColumnUnchanged byte = 'u'
	// ColumnText is a value in the text form of its type.
	ColumnText byte = 't'
	// ColumnBinary is a value in the binary form, under option binary. Types
	// without one still come as text.
	ColumnBinary byte = 'b'
)

// Relation describes a table as it is from here on in the log.
type Relation struct {
	ID              uint32
	Namespace, Name string
	// Identity is pg_class.relreplident: 'd' default, 'n' nothing, 'f' full,
	// 'i' index.
	Identity byte
	// Columns are those that are published, in the order of Tuple.
	Columns []RelationColumn
}

// RelationColumn is a column of a Relation.
type RelationColumn struct {
	// Key: the column belongs to the replica identity. Under 'f' all do.
	Key  bool
	Name string
	// Type is the type's oid. Those that are not built in had their Y before.
	Type uint32
	// Modifier is pg_attribute.atttypmod, -1 for none.
	Modifier int32
}

// Type describes a type that is not built in. For a domain Namespace and Name
// are those of the type below it; for all others they are its own.
type Type struct {
	ID              uint32
	Namespace, Name string
}

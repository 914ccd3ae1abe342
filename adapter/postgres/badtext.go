package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// A database whose encoding is SQL_ASCII takes any bytes for text, and one of another
// encoding may hold what has no place in UTF-8. The server refuses to send that, in the
// log as in a snapshot, and says nothing of where it is.

// notUTF8 reports whether a server refused to send a text.
func notUTF8(code string) bool { return code == "22021" || code == "22P05" }

// badText says in which table it is that the log has text which is not UTF-8.
func (r *logReader) badText(err error) error {
	var se *serverError
	if !errors.As(err, &se) || !strings.HasSuffix(se.says, "(SQLSTATE 22021)") && !strings.HasSuffix(se.says, "(SQLSTATE 22P05)") {
		return err
	}
	name, lookErr := r.tableOfBadText()
	if lookErr != nil {
		r.log.Info("the table is not found whose text is not UTF-8", "error", lookErr)
	}
	if name == "" {
		name = "a captured table"
	}
	return &serverError{says: "postgres: the log has a row of " + name + " with text that is not UTF-8: " + strings.TrimPrefix(se.says, "postgres: "),
		cure: "mend the rows of " + name + ", or take it out of tables: and run onewrite migrate, and then drop the slot, and the tables are read again: " + dropped(r.slot)}
}

// mostPeeked is in how many changes the table is looked for; the slot is not far behind.
const mostPeeked = 100_000

// tableOfBadText looks at the log in a session to which the server sends text as it is.
func (r *logReader) tableOfBadText() (name string, err error) {
	ctx, cancel := context.WithTimeout(r.alive, 30*time.Second)
	defer cancel()
	conn, _, err := connectWith(ctx, r.cfg.logURL(), func(c *pgx.ConnConfig) {
		c.RuntimeParams["client_encoding"] = "SQL_ASCII"
		c.DefaultQueryExecMode = pgx.QueryExecModeExec
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for deadline := time.Now().Add(5 * time.Second); ; { // the server sees a moment later that nobody streams
		name, err = peekBadText(ctx, conn, fmt.Sprintf("SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, %d, %s)", quoteText(r.slot), mostPeeked, r.options()))
		if !isCode(err, "55006") || time.Now().After(deadline) {
			return name, explainSlot(err)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func peekBadText(ctx context.Context, conn *pgx.Conn, sql string) (name string, err error) {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var dec pgoutput.Decoder
	var m pgoutput.Message
	names := map[uint32]string{}
	for rows.Next() {
		var data []byte
		if err := rows.Scan(&data); err != nil {
			return "", err
		}
		if err := dec.Decode(data, &m); err != nil {
			return "", err
		}
		switch m.Kind {
		case pgoutput.KindRelation:
			names[m.Relation.ID] = m.Relation.Namespace + "." + m.Relation.Name
		case pgoutput.KindInsert, pgoutput.KindUpdate, pgoutput.KindDelete:
			for _, row := range []pgoutput.Tuple{m.Old, m.New} {
				for _, c := range row {
					if !utf8.Valid(c.Data) {
						return names[m.RelationID], nil
					}
				}
			}
		default:
		}
	}
	return "", rows.Err()
}

// encoding looks at how the database keeps text.
func (e *examiner) encoding(ctx context.Context, tx pgx.Tx) error {
	var encoding string
	if err := row(ctx, tx, `SELECT current_setting('server_encoding')`).Scan(&encoding); err != nil {
		return err
	}
	if encoding == "SQL_ASCII" {
		e.warn("encoding", "CREATE DATABASE another ENCODING 'UTF8' TEMPLATE template0; -- then load a dump into it that iconv has made UTF-8",
			"the database takes any bytes for text (SQL_ASCII): a row whose text is not UTF-8 stops its source")
	}
	return nil
}

package postgres

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/servers"
)

// slowConn is a connection of a machine so busy that the last query before
// START_REPLICATION is written when the answer is there.
type slowConn struct{ net.Conn }

func (c slowConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if bytes.Contains(p, []byte("wal_sender_timeout")) {
		time.Sleep(200 * time.Millisecond) // the driver reads in the background after 15 ms
	}
	return n, err
}

// What the server answers to START_REPLICATION reaches the reader, whatever the driver
// did on the connection before.
func TestReplicationStartsOnABusyMachine(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		conn := dial(t, url)
		sql(t, conn, `CREATE PUBLICATION onewrite_shop`)
		slot := "onewrite_busy_" + one[string](t, conn, `SELECT oid::text FROM pg_database WHERE datname = current_database()`)
		at, err := pgoutput.ParseLSN(one[string](t, conn, `SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')`, slot))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		rep, err := connectReplication(ctx, url, "busy", func(c *pgx.ConnConfig) {
			dial := c.DialFunc
			c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				return slowConn{conn}, err
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		err = rep.start(ctx, slot, "onewrite_shop", at, "")
		rep.close(false)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the slot is free", func() bool {
			_, err := conn.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, slot)
			return err == nil
		})
	})
}

package postgres

import (
	"encoding/json"
	"errors"
	"strconv"

	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// toldDDL is what the event triggers tell.
type toldDDL struct {
	Command, Schema, Table, DDL string
	Captured                    string // the name under which the table, or its root, is captured
}

// ddl makes the event of a command on a captured table.
func (r *logReader) ddl(m *pgoutput.Message) {
	var c change
	if !r.stamp(&c) {
		return
	}
	e := r.env.bare(&c)
	var d toldDDL
	if err := json.Unmarshal(m.Content, &d); err != nil || d.Command == "" || d.Captured == "" {
		r.invalid(&e, m, errors.New("it was not written by the event triggers that tell of DDL; run onewrite migrate"))
	} else {
		e.Topic, e.Type, e.Key, e.ContentType = ddlPrefix, "ddl", d.Captured, "application/json"
		e.Data = r.env.ddl(&c, &d, r.database)
	}
	r.hold(&c, true, item{event: &e})
}

func (v *envelope) ddl(c *change, d *toldDDL, database string) []byte {
	b := cloudevents.AppendString([]byte(`{"command":`), d.Command)
	b = cloudevents.AppendString(append(b, `,"schema":`...), d.Schema)
	b = cloudevents.AppendString(append(b, `,"table":`...), d.Table)
	b = cloudevents.AppendString(append(b, `,"ddl":`...), d.DDL)
	b = v.origin(append(b, ','), c, tableOrigin(database, d.Schema, d.Table))
	b = strconv.AppendInt(append(b, `},"ts_ms":`...), c.at.UnixMilli(), 10)
	return append(b, '}')
}

package sqlsink_test

import (
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlsink"
)

// Tables of engines without transactions are refused, with the cure, and found by the
// doctor; the cure cures. A server whose default is such an engine gets InnoDB tables.
func TestEngines(t *testing.T) {
	x := newTarget(t, sqlsink.MySQL, false)
	x.exec(t, "SET GLOBAL default_storage_engine = MyISAM")
	defer x.exec(t, "SET GLOBAL default_storage_engine = InnoDB")
	s := x.sink(t)
	write(t, s, put(1, "a"), onewrite.Event{ID: "m", Source: "s", Topic: "note", Type: "note"})
	x.want(t, "SELECT DISTINCT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()", "InnoDB")
	for _, engine := range []string{"MyISAM", "Aria", "MEMORY"} {
		u := "u" + strings.ToLower(engine)
		insert := ev("c", u, row{"id": 1}, nil, row{"id": 1, "v": "a"})
		x.exec(t, "CREATE TABLE "+u+" (id bigint PRIMARY KEY, v varchar(20)) ENGINE="+engine)
		refused(t, s, []onewrite.Event{put(2, engine), insert}, 1, engine, "ALTER TABLE `"+u+"` ENGINE=InnoDB")
		x.want(t, "SELECT count(*) FROM "+u, "0")
		tables := []sqlsink.SourceTable{{Schema: "public", Table: u, Topic: u}}
		finds(t, sqlsink.Examine(t.Context(), x.cfg, tables, nil), "problem table ENGINE=InnoDB")
		x.exec(t, "ALTER TABLE "+u+" ENGINE=InnoDB")
		write(t, s, insert)
		finds(t, sqlsink.Examine(t.Context(), x.cfg, tables, nil), "ok table "+u)
	}
	x.exec(t, "CREATE VIEW w AS SELECT id, v FROM t") // has no engine of its own
	if found := sqlsink.Examine(t.Context(), x.cfg, []sqlsink.SourceTable{{Schema: "public", Table: "w", Topic: "w"}}, nil); strings.Contains(found[len(found)-1].Text, "engine") {
		t.Errorf("of a view: %v", found)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	x.exec(t, "ALTER TABLE onewrite_places ENGINE=Aria")
	if _, err := sqlsink.Open(t.Context(), x.cfg); err == nil || !strings.Contains(err.Error(), "ALTER TABLE `onewrite_places` ENGINE=InnoDB") {
		t.Errorf("opened with places in Aria: %v", err)
	}
	finds(t, sqlsink.Examine(t.Context(), x.cfg, nil, nil), "problem places ENGINE=InnoDB")
}

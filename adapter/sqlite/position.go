package sqlite

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/onewrite/onewrite"
)

// place is what a position says: the history, the epoch of its reader, and the
// last event handed over. The event's id tells a row that was given out from
// another one of the same number, which a restored copy of the file may hold.
type place struct {
	file  string
	epoch int64
	seq   int64
	id    string
}

func (p place) pos() onewrite.Pos {
	return onewrite.Pos("1:" + p.file + ":" + strconv.FormatInt(p.epoch, 10) + ":" + strconv.FormatInt(p.seq, 10) + ":" + p.id)
}

// parsePlace reads a position; the empty one is the zero place.
func parsePlace(pos onewrite.Pos) (place, error) {
	if pos == "" {
		return place{}, nil
	}
	f := strings.Split(string(pos), ":")
	if len(f) == 5 && f[0] == "1" && f[1] != "" {
		epoch, err1 := strconv.ParseInt(f[2], 10, 64)
		seq, err2 := strconv.ParseInt(f[3], 10, 64)
		if err1 == nil && err2 == nil && epoch >= 0 && seq >= 0 {
			return place{f[1], epoch, seq, f[4]}, nil
		}
	}
	return place{}, fmt.Errorf("sqlite: the bus holds a position of another kind of source under this name; give the source another name")
}

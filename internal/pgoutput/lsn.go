package pgoutput

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// LSN is a place in the write-ahead log. Zero is no place. Only what a server
// sent may be sent back to it: an LSN is not for arithmetic.
type LSN uint64

// String returns the form that PostgreSQL prints, 16/B374D848.
func (l LSN) String() string {
	b := make([]byte, 0, 17)
	b = strconv.AppendUint(b, uint64(l>>32), 16)
	b = append(b, '/')
	b = strconv.AppendUint(b, uint64(l&0xFFFFFFFF), 16)
	return strings.ToUpper(string(b))
}

// ParseLSN reads what String writes. Like PostgreSQL it takes lower case and
// leading zeros, up to 8 digits on either side.
func ParseLSN(s string) (LSN, error) {
	high, low, found := strings.Cut(s, "/")
	h, okHigh := parseHex(high)
	l, okLow := parseHex(low)
	if !found || !okHigh || !okLow {
		return 0, fmt.Errorf("pgoutput: %q is no LSN; one looks like 16/B374D848", s)
	}
	return LSN(h)<<32 | LSN(l), nil
}

// parseHex takes digits only; strconv takes signs, too.
func parseHex(s string) (uint64, bool) {
	if s == "" || len(s) > 8 || strings.Trim(s, "0123456789abcdefABCDEF") != "" {
		return 0, false
	}
	v, err := strconv.ParseUint(s, 16, 32)
	return v, err == nil
}

// Timestamp is PostgreSQL's clock: microseconds since 2000-01-01 UTC.
type Timestamp int64

// epoch is where Timestamp begins, in seconds of Unix time.
const epoch = 946_684_800

// TimestampOf cuts t to microseconds.
func TimestampOf(t time.Time) Timestamp {
	return Timestamp((t.Unix()-epoch)*1e6 + int64(t.Nanosecond()/1e3))
}

// Time returns t in UTC.
func (t Timestamp) Time() time.Time {
	return time.Unix(int64(t)/1e6+epoch, int64(t)%1e6*1e3).UTC()
}

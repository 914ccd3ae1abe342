package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes. In the file: a number with B, KB, MB, GB, TB
// (powers of 1000) or KiB, MiB, GiB, TiB, PiB (powers of 1024).
type Size int64

var units = []struct {
	name  string
	bytes int64
}{
	{"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

// String returns the size in the largest unit that divides it.
func (s Size) String() string {
	best := units[len(units)-1]
	for _, u := range units {
		if s != 0 && int64(s)%u.bytes == 0 && u.bytes > best.bytes {
			best = u
		}
	}
	return strconv.FormatInt(int64(s)/best.bytes, 10) + best.name
}

// parseSize reads a size; case and spaces before the unit do not matter.
func parseSize(text string) (Size, error) {
	t := strings.TrimSpace(text)
	cut := strings.LastIndexAny(t, "0123456789.") + 1
	unit, number := strings.TrimSpace(t[cut:]), t[:cut]
	factor := int64(0)
	for _, u := range units {
		if strings.EqualFold(unit, u.name) || strings.EqualFold(unit+"B", u.name) || (unit == "" && u.name == "B") {
			factor = u.bytes
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || factor == 0 || strings.ContainsAny(number, "eExXpP_+-") {
		return 0, fmt.Errorf("is not a size")
	}
	if n*float64(factor) >= math.MaxInt64 {
		return 0, fmt.Errorf("is too large")
	}
	if whole, err := strconv.ParseInt(number, 10, 64); err == nil {
		return Size(whole * factor), nil
	}
	return Size(n * float64(factor)), nil
}

// parseDuration reads Go's durations, and whole days ("7d").
func parseDuration(text string) (time.Duration, error) {
	t := strings.TrimSpace(text)
	if days, ok := strings.CutSuffix(t, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(t)
	if err != nil {
		return 0, fmt.Errorf("is not a duration")
	}
	return d, nil
}

// showDuration prints a duration without the zero parts that Go appends, and
// more than one day as days.
func showDuration(d time.Duration) string {
	if day := 24 * time.Hour; d > day && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

package nats

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/disk"
)

// folder looks at the folder of the embedded bus, from outside: what is in it, only
// the process that owns it can tell.
func (e *examiner) folder(c *Config) {
	if full, err := filepath.Abs(c.Dir); err == nil { // it shows where a relative one leads
		c.Dir = full
	}
	there := disk.Existing(c.Dir)
	info, err := os.Stat(there)
	why, cure := disk.Unwritable(there)
	switch {
	case err != nil || !info.IsDir():
		e.Add(diagnosis.Problem, "folder", "set bus.dir to a folder", "%s is no folder", there)
		return
	case why != "":
		e.Add(diagnosis.Problem, "folder", cure, "%s", why)
		return
	case there != c.Dir:
		e.OK("folder", "%s is to be made, by onewrite run", c.Dir)
	default:
		e.OK("folder", "%s can be written", c.Dir)
	}
	e.format(c.Dir)
	pid, held := disk.Holder(filepath.Join(c.Dir, "lock"))
	switch {
	case held && pid > 0:
		e.OK("owner", "onewrite runs: process %d has the folder", pid)
	case held:
		e.OK("owner", "onewrite runs and has the folder")
	default:
		e.OK("owner", "nobody has the folder: onewrite does not run")
	}
	e.room(c, there)
	e.leftovers(c.Dir)
}

// format refuses a store of a newer program, as a start does.
func (e *examiner) format(dir string) {
	path := filepath.Join(dir, "format")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	v, bad := strconv.Atoi(strings.TrimSpace(string(text)))
	switch {
	case err != nil:
		_, cure := disk.Unreadable(path)
		e.Add(diagnosis.Problem, "format", cure, "%v", err)
	case bad != nil || v < 1:
		e.Add(diagnosis.Problem, "format", fmt.Sprintf("mv %[1]s %[1]s.damaged # what is not confirmed is read from the outbox again", disk.Quote(dir)), "%s does not hold a version number", path)
	case v > format:
		e.Add(diagnosis.Problem, "format", "install the newer onewrite", "the folder was written by a newer onewrite (format %d, this one knows %d)", v, format)
	}
}

// room compares what max_size lets the bus take with what the disk has.
func (e *examiner) room(c *Config, there string) {
	free, _, known := disk.Room(there)
	if !known {
		return
	}
	used := int64(0)
	if all, err := sizes(c.Dir); err == nil {
		for _, size := range all {
			used += size
		}
	}
	most := c.MaxBytes + c.MaxBytes/10 // what waits to be compacted
	switch {
	case free < needed:
		e.Add(diagnosis.Problem, "disk", "df -h "+disk.Quote(there), "%s free: the bus cannot write", disk.Bytes(free))
	case int64(free) < most-used:
		fits := (int64(free) + used) / 11 * 10 / 1e6
		e.Add(diagnosis.Warning, "disk", fmt.Sprintf("max_size: %dMB", max(fits, 17)), "%s free, %s used, and max_size = %s lets the bus take %s: a full disk stops it before that", disk.Bytes(free), disk.Bytes(used), disk.Bytes(c.MaxBytes), disk.Bytes(most))
	case disk.Scarce(there) != "":
		e.Add(diagnosis.Warning, "disk", "df -h "+disk.Quote(there), "%s", disk.Scarce(there))
	default:
		e.OK("disk", "%s free, %s used, max_size %s", disk.Bytes(free), disk.Bytes(used), disk.Bytes(c.MaxBytes))
	}
}

// leftovers names what an operator should know of a folder.
func (e *examiner) leftovers(dir string) {
	sole, _ := filepath.Glob(filepath.Join(dir, soleFile+"*")) // a bad pattern is the only error
	for _, path := range sole {
		source := strings.TrimPrefix(filepath.Base(path), soleFile)
		e.Add(diagnosis.Warning, "only copy", "onewrite status", "the folder holds the only copy of events of source %s, which a destination does not take: copy it before anything is done to it", source)
	}
	aside, _ := filepath.Glob(filepath.Join(dir, "damaged-*"))
	for _, path := range aside {
		e.Add(diagnosis.Warning, "damage", "rm -r "+disk.Quote(path), "the folder was damaged and is made anew; the old one is kept in %s: look at the disk, then remove it", path)
	}
}

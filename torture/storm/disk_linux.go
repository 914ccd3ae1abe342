package storm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// disk is a small disk for the folder of the bus.
type disk struct {
	dir     string
	mounted bool
}

// prepare mounts it. Where that is not allowed the size of files is limited
// instead, when the disk is to be full.
func (d *disk) prepare(s *storm) error {
	if s.Fills == 0 {
		return nil
	}
	d.dir = s.path(stateDir)
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return err
	}
	d.mounted = syscall.Mount("tmpfs", d.dir, "tmpfs", 0, "size=64m") == nil
	return nil
}

// fill takes all that is left of the disk, or limits the size of the process's
// files.
func (d *disk) fill(pid int) (undo func() error, proof string, err error) {
	if !d.mounted {
		var was unix.Rlimit
		if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4096, Max: unix.RLIM_INFINITY}, &was); err != nil {
			return nil, "", fmt.Errorf("neither mount nor limit: %w", err)
		}
		return func() error { return unix.Prlimit(pid, unix.RLIMIT_FSIZE, &was, nil) }, "no file may be larger than 4 KiB (a disk could not be mounted)", nil
	}
	ballast := filepath.Join(d.dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		return nil, "", err
	}
	n, err := io.Copy(f, endless{})
	if err = errors.Join(ignore(err, syscall.ENOSPC), f.Close()); err != nil {
		return nil, "", err
	}
	return func() error { return os.Remove(ballast) }, fmt.Sprintf("a tmpfs of 64 MB was filled with %d bytes", n), nil
}

func ignore(err, but error) error {
	if errors.Is(err, but) {
		return nil
	}
	return err
}

// endless reads zeros.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func (d *disk) close() error {
	if !d.mounted {
		return nil
	}
	return syscall.Unmount(d.dir, syscall.MNT_DETACH)
}

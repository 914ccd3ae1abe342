//go:build !linux

package storm

import "errors"

// disk is a small disk for the folder of the bus. It needs Linux.
type disk struct{}

func (d *disk) prepare(s *storm) error {
	if s.Fills > 0 {
		return errors.New("a full disk needs Linux")
	}
	return nil
}

func (d *disk) fill(int) (undo func() error, proof string, err error) {
	return nil, "", errors.New("a full disk needs Linux")
}

func (d *disk) close() error { return nil }

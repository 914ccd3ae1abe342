//go:build !unix

package main

import "os"

// hangup: there is no such signal here; use onewrite reload.
var hangup os.Signal

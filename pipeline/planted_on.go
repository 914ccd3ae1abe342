//go:build owbug

package pipeline

import "os"

// planted names the bug that a test planted, so that the test can be seen to
// catch it.
var planted = os.Getenv("OW_BUG")

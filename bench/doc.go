// Package bench holds the benchmarks behind docs/benchmarks.md. Each measures
// its yardstick in the same run and reports the ratio, so that the machine's
// speed cancels out:
//
//	make bench PKG=./bench
//
// They start real servers through internal/servers and send traffic only to
// this machine.
package bench

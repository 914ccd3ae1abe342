// Package onewritetest holds the conformance suites: whoever writes an adapter
// runs the suite of its interface, and the adapter is one when it passes.
//
// The suites talk to the adapter as the pipeline does, and look at the other end
// by a way of the test's own, never by the adapter's word.
package onewritetest

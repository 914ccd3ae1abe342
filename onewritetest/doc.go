// Package onewritetest is for tests: of applications that publish, of programs that
// embed the pipeline, and of adapters.
//
// # Applications
//
// [RequirePublished] looks at what a transaction has published, in the application's
// own test and in its own transaction. For pgx there is package pgxtest. A
// [Recorder] is a transaction without a database.
//
// # The pipeline
//
// [MemoryBus] and [MemorySink] are a bus and a destination in memory; the
// destination can be told to refuse, to fail and to hang.
//
// # Adapters
//
// [TestSource], [TestBus] and [TestSink] are the conformance suites: whoever writes
// an adapter runs the suite of its interface, and the adapter is one when it
// passes. They talk to it as the pipeline does, and look at the other end by a way
// of the test's own, never by the adapter's word. See docs/adapters.md.
//
// The package links no driver and no client.
package onewritetest

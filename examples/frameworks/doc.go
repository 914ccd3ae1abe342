// Package frameworks holds one folder for each library that Go applications
// write PostgreSQL or SQLite with. Each places an order and publishes its event
// in the transaction of that library, as short as it can be, to be copied. The
// tests beside this file run all of them against real databases, as a role that
// may do nothing with the outbox but INSERT.
//
// It is a module of its own, so that none of these libraries is a dependency of
// onewrite.
package frameworks

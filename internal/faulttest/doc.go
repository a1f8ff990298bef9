// Package faulttest proves natty's guarantees under faults: connections that break and
// freeze, servers that restart, leaders and processes that are killed. It holds tests
// only, which use natty through its public API and run for minutes. They are apart from
// the root's tests, so that each package can be run, raced and skipped by itself:
//
//	go test ./internal/faulttest
//
// NATTY_SEEDS says how often the tests of chance run, with another seed each time.
package faulttest

// Package incident decides which trouble is reported: each kind once, until it is over.
// It keeps no errors and writes no reports, and the caller says what a kind is.
package incident

import (
	"sync"

	"github.com/natty-go/natty/internal/mutant"
)

// Log knows which kinds of trouble are going on. The zero value knows of none.
// Goroutines may share it.
type Log struct {
	mu   sync.Mutex
	open map[string]struct{}
}

// Open notes that a kind of trouble is there. It reports whether that is news: true
// once, until the kind is resolved.
func (l *Log) Open(kind string) (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.open[kind]; known && !mutant.TellsAgain {
		return false
	}
	if l.open == nil {
		l.open = map[string]struct{}{}
	}
	l.open[kind] = struct{}{}
	return true
}

// Resolve notes that a kind of trouble is over. It reports whether the kind was there.
func (l *Log) Resolve(kind string) (was bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, was = l.open[kind]
	delete(l.open, kind)
	return was
}

// ResolveAll notes that all trouble is over. It reports whether there was any.
func (l *Log) ResolveAll() (was bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was = len(l.open) > 0
	clear(l.open)
	return was
}

package testkit

import (
	"context"
	"log/slog"
	"slices"
	"sync"
)

// Entry is one entry of a log: its level under "level", its text under "msg", and its
// keys, with those of a group as "group.key".
type Entry map[string]string

// Log records what is logged.
type Log struct {
	mu      *sync.Mutex // guards entries
	entries *[]Entry
	prefix  string
	attrs   []slog.Attr
}

// NewLog returns a Log, and the logger that writes to it.
func NewLog() (*Log, *slog.Logger) {
	l := &Log{mu: new(sync.Mutex), entries: new([]Entry)}
	return l, slog.New(l)
}

// Of returns the entries with a text, in their order.
func (l *Log) Of(text string) (found []Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range *l.entries {
		if e["msg"] == text {
			found = append(found, e)
		}
	}
	return found
}

// Texts returns the texts of all entries.
func (l *Log) Texts() (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range *l.entries {
		all = append(all, e["msg"])
	}
	return all
}

// Enabled implements slog.Handler.
func (l *Log) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (l *Log) Handle(_ context.Context, r slog.Record) error {
	e := Entry{"level": r.Level.String(), "msg": r.Message}
	for _, a := range l.attrs {
		e.add("", a)
	}
	r.Attrs(func(a slog.Attr) bool { e.add(l.prefix, a); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	*l.entries = append(*l.entries, e)
	return nil
}

func (e Entry) add(prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		e[prefix+a.Key] = v.String()
		return
	}
	for _, in := range v.Group() {
		e.add(prefix+a.Key+".", in)
	}
}

// WithAttrs implements slog.Handler.
func (l *Log) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *l
	with.attrs = slices.Clone(l.attrs)
	for _, a := range attrs {
		a.Key = l.prefix + a.Key
		with.attrs = append(with.attrs, a)
	}
	return &with
}

// WithGroup implements slog.Handler.
func (l *Log) WithGroup(name string) slog.Handler {
	with := *l
	with.prefix += name + "."
	return &with
}

package natty

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// handlerOf is the key of a ctx value: the Client whose handler has the ctx.
type handlerOf struct{}

// Close ends everything that runs on the Client. Consumers stop pulling and return what
// no handler has begun; handlers get DrainTimeout to finish. Then Close closes Writers,
// flushes the connection and closes it; a connection given by WithConn is flushed and
// left open. Publishing is possible until the handlers have ended. When ctx ends first,
// Close closes the connection all the same and returns ctx's error.
//
// Close may be called again, and from several goroutines: all calls wait for the one
// shutdown. Called with a handler's own ctx, or by the goroutine that runs the function
// of AsLeader or Lead, it returns an error at once and closes nothing, because it would
// wait for its caller. Call it from outside; from inside, "go c.Close(ctx)" does, if the
// function does not wait for it.
func (c *Client) Close(ctx context.Context) error {
	if ctx.Value(handlerOf{}) == c || c.inside.Here() {
		return errors.New("natty: Close called by a handler or by a leader's function, which it would wait for; " +
			"call it from outside")
	}
	c.closeOnce.Do(func() { go c.shutdown(ctx) })
	select {
	case <-c.closed:
		return c.closeErr
	case <-ctx.Done():
	}
	// The shutdown may belong to another call, whose ctx goes on.
	c.conn.Close()
	select {
	case <-c.closed:
		return c.closeErr
	default:
		return fmt.Errorf("natty: close: %w", ctx.Err())
	}
}

// shutdown ends things in the order of who needs whom: handlers and leaders first,
// which may still publish, then locks, caches and Writers, and the connection last.
func (c *Client) shutdown(ctx context.Context) {
	defer close(c.closed)
	c.mu.Lock()
	c.end() // under the lock, so that whileOpen sees it
	c.mu.Unlock()

	running, elections := c.awaitIdle(ctx)
	c.locking.Wait() // they end with life
	// A lock that the server does not hear of expires by itself.
	_ = each(c.locks.all(), func(l *Lease) error { return l.Release(ctx) })
	c.caches.Wait() // they end with life
	writersErr := each(c.writers.all(), func(w *Writer) error { return w.Close(ctx) })
	defer func() { c.closeErr = errors.Join(c.closeErr, writersErr) }() // before closed is closed

	switch {
	case running > 0:
		c.closeErr = fmt.Errorf("natty: close: %d consumers still had handlers running: %w", running, ctx.Err())
	case elections > 0:
		c.closeErr = fmt.Errorf("natty: close: %d elections still had their function running: %w", elections, ctx.Err())
	case ctx.Err() != nil:
		c.closeErr = fmt.Errorf("natty: close: %w", ctx.Err())
	case c.link.Up():
		// If the connection dropped by itself, every publish on it has already failed
		// visibly. If Close cut it, the last writes may be lost. nats.go knows of a
		// drop before link does.
		if err := c.flush(ctx); err != nil && (c.link.Up() && c.nc.IsConnected() || ctx.Err() != nil) {
			c.closeErr = fmt.Errorf("natty: close: what was sent last may not have reached the server: %w", err)
		}
	}
	c.conn.Close()
	c.acks.Close() // last: while there is a connection, nats.go's lock may be held for long
	c.events.Close()
}

// awaitIdle waits until no consumer and no election runs, or ctx ends. It returns how
// many are left.
func (c *Client) awaitIdle(ctx context.Context) (running, elections int) {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.idle.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.running.list)+len(c.elections.list) > 0 && ctx.Err() == nil {
		c.idle.Wait()
	}
	return len(c.running.list), len(c.elections.list)
}

// each calls f for all of list at the same time and joins the errors.
func each[T any](list []T, f func(T) error) error {
	errs := make([]error, len(list))
	var calls sync.WaitGroup
	for i, x := range list {
		calls.Go(func() { errs[i] = f(x) })
	}
	calls.Wait()
	return errors.Join(errs...)
}

// flushTimeout bounds the wait for the server to have received what was sent last.
const flushTimeout = 5 * time.Second

// flush waits until the server has received what was sent, or the connection is lost.
// Consumers have already made sure of their acks by then.
func (c *Client) flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if up, changed := c.link.Watch(); up {
		go func() {
			defer cancel()
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}()
	}
	return c.nc.FlushWithContext(ctx)
}

// registry lists what Close waits for or ends, oldest first. Client.mu guards it.
type registry[T comparable] struct {
	c    *Client
	list []T
}

// enter adds x, unless the Client is closing. Each begin is called before, under the
// lock: Close does not see an x that has not begun. It must not block.
func (r *registry[T]) enter(x T, begin ...func()) error {
	return r.c.whileOpen(func() {
		for _, f := range begin {
			f()
		}
		r.list = append(r.list, x)
	})
}

// leave removes x.
func (r *registry[T]) leave(x T) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.list = slices.DeleteFunc(r.list, func(y T) bool { return y == x })
	r.c.idle.Broadcast()
}

// all returns a copy of the list.
func (r *registry[T]) all() []T {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return slices.Clone(r.list)
}

// whileOpen calls join, which registers something for Close, unless the Client is
// closing. join must not block.
func (c *Client) whileOpen(join func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() != nil {
		return fmt.Errorf("natty: %w", ErrClosed)
	}
	join()
	return nil
}

// endedConsumers are the consumers that ended with an error, oldest first.
type endedConsumers struct {
	mu   sync.Mutex
	list []ConsumerHealth
}

// maxEnded bounds how many are kept, should each consumer have a durable of its own.
const maxEnded = 100

func (l *endedConsumers) add(h ConsumerHealth) {
	l.forget(h.Stream, h.Durable)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.list = append(l.list, h); len(l.list) > maxEnded {
		l.list = l.list[1:]
	}
}

// forget takes a durable off the list, which is consumed again. The stream may not be
// known.
func (l *endedConsumers) forget(stream, durable string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = slices.DeleteFunc(l.list, func(h ConsumerHealth) bool {
		return h.Durable == durable && (stream == "" || h.Stream == "" || h.Stream == stream)
	})
}

func (l *endedConsumers) all() []ConsumerHealth {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}

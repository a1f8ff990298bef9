package work

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/history"
)

// Buckets of elections and locks, and the Key of what is owned there.
const (
	Elections = "elections"
	Locks     = "locks"
	// TermKey is what a leader writes with its term: the token, and how often it wrote.
	TermKey = "state"
	// LeaseTTL is how long both survive their owner.
	LeaseTTL = 5 * time.Second
)

// The Op of ownerships.
const (
	Leading = "lead"
	Locking = "lock"
)

// Deposed is how a Term.Put ended that the server refused.
const Deposed = "deposed"

// owning writes down an ownership until its ctx ends.
func (w *worker) owning(ctx context.Context, op string, token uint64) (stop func() bool) {
	w.log.Add(history.Event{What: history.Own, Op: op, Seq: token})
	return context.AfterFunc(ctx, func() { w.log.Add(history.Event{What: history.Disow, Op: op, Seq: token}) })
}

// gaveUp writes down the end of an ownership before it is released.
func (w *worker) gaveUp(op string, token uint64) {
	w.log.Add(history.Event{What: history.Disow, Op: op, Seq: token})
}

func lead(ctx context.Context, w *worker) error {
	cfg := natty.AsLeaderConfig{Bucket: Elections, Key: "boss", NodeName: w.Name, BucketTTL: LeaseTTL}
	for ctx.Err() == nil {
		err := w.c.Lead(ctx, cfg, func(ctx context.Context, term *natty.Term) error {
			stop := w.owning(ctx, Leading, term.Token())
			resign := time.After(5*time.Second + rand.N(40*time.Second))
			for n := 1; ; n++ {
				select {
				case <-ctx.Done():
					return nil
				case <-resign:
					if stop() {
						w.gaveUp(Leading, term.Token())
					}
					return errors.New("resigns")
				case <-time.After(100 * time.Millisecond):
					w.put(ctx, term, n)
				}
			}
		})
		if err != nil && ctx.Err() == nil {
			pause(ctx, 500*time.Millisecond)
		}
	}
	return nil
}

// put writes with a term, also when its ctx has ended meanwhile.
func (w *worker) put(ctx context.Context, term *natty.Term, n int) {
	from := history.Now()
	brief, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	err := term.Put(brief, TermKey, fmt.Append(nil, term.Token(), " ", n))
	e := history.Event{What: history.Return, Op: Leading, From: from, Seq: term.Token(), N: int64(n), Text: OK}
	switch {
	case errors.Is(err, natty.ErrDeposed):
		e.Text = Deposed
	case err != nil:
		e.Text = InDoubt
	}
	w.log.Add(e)
}

func lock(ctx context.Context, w *worker) error {
	cfg := natty.LockConfig{Bucket: Locks, Key: "door", TTL: LeaseTTL}
	for ctx.Err() == nil {
		lease, err := w.c.Lock(ctx, cfg)
		if err != nil {
			if ctx.Err() == nil {
				w.report(Locking, err)
			}
			pause(ctx, time.Second)
			continue
		}
		stop := w.owning(lease.Context(), Locking, lease.Token())
		if rand.IntN(4) == 0 {
			pause(lease.Context(), 3*LeaseTTL) // it has to be renewed
		} else {
			pause(lease.Context(), 2*time.Second)
		}
		if stop() {
			w.gaveUp(Locking, lease.Token())
		}
		brief, cancel := context.WithTimeout(context.WithoutCancel(ctx), attempt)
		if err := lease.Release(brief); err != nil {
			w.report(Locking, err)
		}
		cancel()
		pause(ctx, 300*time.Millisecond)
	}
	return nil
}

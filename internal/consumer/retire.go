package consumer

import (
	"context"
	"time"
)

// An owner has to ask for messages every few seconds, or it loses the pin. An owner that
// has nothing to do for a while gives the pin back, and stands by like the others: a
// standby's request stays at the server for minutes. The next message makes one of them
// the owner.

// retire ends the worker if it waits for messages since a time at the latest. No
// message begins after that.
func (o *ownership) retire(since time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.asleep || len(o.queue) > 0 || o.since.After(since) {
		return false
	}
	o.stopping.Store(true)
	signal(o.signals)
	return true
}

// waiting returns since when the worker waits for messages.
func (o *ownership) waiting() (since time.Time, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.since, o.asleep && len(o.queue) == 0
}

// retire gives the pin back if there was nothing to do for a while. Before that it asks
// whether the server has all acknowledgements: the next owner begins behind the server's
// ack floor, and does not know what this one has handled.
func (x *exclusive) retire(ctx context.Context, o *ownership) (retired bool, err error) {
	since, ok := o.waiting()
	before := time.Now().Add(-x.times.idle)
	if !ok || since.After(before) {
		return false, nil
	}
	if x.s.checked != nil || !x.s.sampled.After(since) {
		x.look(ctx, nil)
		return false, nil
	}
	if x.c.durable.Unacked > 0 || !o.retire(before) {
		return false, nil
	}
	<-o.idle
	x.unsubscribe()
	if err := x.handOver(o, o.held()); err != nil {
		x.s.report(troubleDeposed, "give the pin back", err) // it lapses
	}
	o.lose(errRetired)
	return true, x.becomeStandby(o)
}

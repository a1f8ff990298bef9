package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
)

// packing is how long it takes to handle an order.
const packing = 10 * time.Millisecond

// account handles the orders, and keeps account of each: what is lost is found by looking for every order that was
// published, not by counting.
type account struct {
	published []order

	mu       sync.Mutex // guards what follows: four workers call handle
	handled  map[string]int
	failing  map[string]bool // fail once: true until they have
	half     int
	halfDone func()
}

// newAccount expects orders, of which every seventh fails once.
func newAccount(orders []order) *account {
	a := &account{published: orders, handled: map[string]int{}, failing: map[string]bool{}}
	for i := 6; i < len(orders); i += 7 {
		a.failing[orders[i].ID] = true
	}
	return a
}

// whenHandled calls f when n orders, at least one, have been handled.
func (a *account) whenHandled(n int, f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.half, a.halfDone = max(n, 1), f
}

// handle is the handler. Returning nil acknowledges the message. After an error the order is handled again, unless the error is
// Permanent.
func (a *account) handle(ctx context.Context, msg *nats.Msg) error {
	var o order
	if err := json.Unmarshal(msg.Data, &o); err != nil {
		return natty.Permanent(err) // it will not get better
	}
	if err := a.mayFail(o.ID); err != nil {
		return err
	}
	select { // the work
	case <-time.After(packing):
	case <-ctx.Done(): // the consumer has waited for us long enough
		return ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handled[o.ID]++
	if len(a.handled) == a.half {
		a.halfDone()
	}
	return nil
}

// mayFail fails once for each order that is meant to. Which those are is remembered here and not taken from
// natty.DeliveryFrom(ctx).Attempt: an order that was returned at the restart counts as delivered before, though it
// never failed.
func (a *account) mayFail(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failing[id] {
		a.failing[id] = false
		return errors.New("order " + id + ": the printer for labels is out of paper")
	}
	return nil
}

func (a *account) done() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.handled)
}

// print writes the account. Its error names what was lost.
func (a *account) print(out io.Writer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	retried, twice := 0, 0
	var lost []string
	for _, o := range a.published {
		n := a.handled[o.ID]
		stillFails, failed := a.failing[o.ID]
		switch {
		case n == 0:
			lost = append(lost, o.ID)
		case failed && !stillFails:
			retried++
		}
		if n > 1 {
			twice++
		}
	}
	fmt.Fprintf(out, "\npublished      %4d\nprocessed      %4d\nretried        %4d\nhandled twice  %4d\nlost           %4d\n",
		len(a.published), len(a.published)-len(lost), retried, twice, len(lost))
	if len(lost) == 0 {
		return nil
	}
	return fmt.Errorf("%d orders were not processed, the first of them: %s", len(lost), strings.Join(lost[:min(len(lost), 10)], ", "))
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
)

const (
	accounts = 20
	each     = 40 // events of an account
	failures = 20 // events that fail once
	workers  = 8
	// booking is how long it takes to handle an event.
	booking = 5 * time.Millisecond
)

// event is the body of one message.
type event struct {
	Account string `json:"account"`
	Number  int    `json:"number"` // 1, 2, 3… in each account
	Kind    string `json:"kind"`
	Cents   int    `json:"cents"`
}

// bank handles the events, and checks that those of each account come in order.
type bank struct {
	events []event
	took   time.Duration

	mu         sync.Mutex // guards what follows: eight workers call handle
	failing    map[string]bool
	busy       map[string]bool
	last       map[string]int // number of the last event handled, by account
	handled    int
	retried    int
	twice      int
	outOfOrder int
	half       int
	halfDone   func()
}

// newBank has a deposit and a withdrawal of each account in turn, of which some, picked at random, fail once.
func newBank() *bank {
	b := &bank{failing: map[string]bool{}, busy: map[string]bool{}, last: map[string]int{}}
	for n := range each {
		for a := range accounts {
			e := event{Account: fmt.Sprintf("A-%02d", a+1), Number: n + 1, Kind: "deposit", Cents: 1000}
			if n%2 == 1 {
				e.Kind, e.Cents = "withdrawal", 900 // without the deposit before it there is no money for it
			}
			b.events = append(b.events, e)
		}
	}
	for _, i := range rand.Perm(len(b.events))[:failures] {
		b.failing[b.events[i].id()] = true
	}
	return b
}

func (e event) id() string { return fmt.Sprintf("%s/%d", e.Account, e.Number) }

// whenHandled calls f when n events have been handled.
func (b *bank) whenHandled(n int, f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.half, b.halfDone = n, f
}

// handle is the handler. Returning nil acknowledges the message, after an error it is tried again in its place.
func (b *bank) handle(ctx context.Context, msg *nats.Msg) error {
	var e event
	if err := json.Unmarshal(msg.Data, &e); err != nil {
		return natty.Permanent(err) // it will not get better
	}
	if !b.begin(e) {
		return nil
	}
	done := false
	defer func() { b.end(e, done) }()
	select { // the work
	case <-time.After(booking):
	case <-ctx.Done(): // the consumer has waited for us long enough
		return ctx.Err()
	}
	if b.mayFail(e) {
		return errors.New("the ledger is locked")
	}
	done = true
	return nil
}

// begin checks the order. An event that was handled before came again because its acknowledgement was lost: that can
// happen with every broker, and its number tells.
func (b *bank) begin(e event) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.Number <= b.last[e.Account] {
		b.twice++
		return false
	}
	if b.busy[e.Account] || e.Number != b.last[e.Account]+1 {
		b.outOfOrder++
	}
	b.busy[e.Account] = true
	return true
}

// mayFail fails once for each event that is meant to.
func (b *bank) mayFail(e event) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.failing[e.id()] {
		return false
	}
	delete(b.failing, e.id())
	b.retried++
	return true
}

func (b *bank) end(e event, done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy[e.Account] = false
	if !done {
		return
	}
	b.last[e.Account] = e.Number
	b.handled++
	if b.handled == b.half {
		b.halfDone()
	}
}

func (b *bank) done() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.handled
}

// print writes the account. Its error says what was lost or out of order.
func (b *bank) print(out io.Writer) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	lost := len(b.events) - b.handled
	fmt.Fprintf(out, "\naccounts       %4d\nevents         %4d\nhandled        %4d\nretried        %4d\nhandled twice  %4d\nout of order   %4d\nlost           %4d\n",
		accounts, len(b.events), b.handled, b.retried, b.twice, b.outOfOrder, lost)
	if lost > 0 || b.outOfOrder > 0 {
		return fmt.Errorf("%d events were not handled, and %d were out of order", lost, b.outOfOrder)
	}
	// One at a time, the work alone takes this long, without what it takes to fetch and to acknowledge.
	serial := time.Duration(b.handled+b.retried) * booking
	fmt.Fprintf(out, "\nin %.2f s, with the restart; one at a time would take %.2f s at least, %.1f times as long\n",
		b.took.Seconds(), serial.Seconds(), serial.Seconds()/b.took.Seconds())
	return nil
}

package consumer

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/respmux"
)

// ackTrouble finds out that acknowledgements have no effect. The server may refuse them,
// which it says. Or they go nowhere, which nobody says: the account imports JetStream's
// API from another one, and not the subjects of acknowledgements. Then messages that were
// acked here come again and again.
type ackTrouble struct {
	full atomic.Bool // acked has no room: read without the lock for every message

	// mu guards what follows.
	mu    sync.Mutex
	acked map[uint64]*ackedMsg // some of the messages that were acked, by sequence
	made  time.Time            // when the durable was made
	text  string               // what was reported, until it is over
}

// ackedMsg is a message that was acked here.
type ackedMsg struct {
	at    time.Time
	again int // how often it came after that
}

const (
	// watchedAcks is how many acked messages are watched at a time.
	watchedAcks = 64
	// uselessAcks is how often an acked message comes again until that is reported. Once
	// is normal: the redelivery and the ack may cross.
	uselessAcks = 2
)

// sent notes that a message was acked.
func (a *ackTrouble) sent(sequence uint64) {
	if a.full.Load() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.acked == nil {
		a.acked = make(map[uint64]*ackedMsg, watchedAcks)
	}
	if a.acked[sequence] == nil {
		a.acked[sequence] = &ackedMsg{at: time.Now()}
	}
	a.full.Store(len(a.acked) >= watchedAcks)
}

// redelivered notes that a message came again. It reports whether its acknowledgements
// have no effect.
func (a *ackTrouble) redelivered(sequence uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.acked[sequence]
	if m == nil {
		return false
	}
	m.again++
	return m.again >= uselessAcks
}

// forget is for a new connection or subscription, since acknowledgements may be lost with
// the last one; and for a durable that was reset.
func (a *ackTrouble) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetLocked()
}

func (a *ackTrouble) forgetLocked() {
	clear(a.acked)
	a.full.Store(false)
}

// look compares the watched messages with what the server says. One at or below the ack
// floor has been acked in effect.
func (a *ackTrouble) look(d durable.Durable) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !d.Created.Equal(a.made) { // made again: it may begin anywhere
		a.made = d.Created
		a.forgetLocked()
		return
	}
	for sequence, m := range a.acked {
		switch {
		case sequence <= d.Floor:
			a.text = ""
			delete(a.acked, sequence)
		case m.again == 0 && time.Since(m.at) > 2*d.AckWait(): // it would have come again
			delete(a.acked, sequence)
		}
	}
	a.full.Store(len(a.acked) >= watchedAcks)
}

// open notes what is wrong, and reports whether that is news. Refused acknowledgements
// also come again, so that there is one trouble at a time.
func (a *ackTrouble) open(text string) (news bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.text != "" {
		return false
	}
	a.text = text
	return true
}

// warning says what is wrong with acknowledgements, if anything.
func (a *ackTrouble) warning() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.text
}

// cameAgain checks whether a redelivered message was acked here before.
func (c *Consumer) cameAgain(d dispatch.Delivery) {
	if !c.ackTrouble.redelivered(d.Sequence) {
		return
	}
	err := c.errorf("acknowledgements have no effect: message %d was acked and redelivered %d times; "+
		"do you import JetStream from another account? Then export and import %q as a service too",
		d.Sequence, uselessAcks, ackSubjects(d))
	if c.ackTrouble.open(err.Error()) {
		c.report(err)
	}
}

// ackSubjects is what a client of the durable has to be allowed to publish to.
func ackSubjects(d dispatch.Delivery) string { return "$JS.ACK." + d.Stream + "." + d.Durable + ".>" }

// watchRefusals reports acknowledgements that the server refuses, until stop is called.
func (c *Consumer) watchRefusals() (stop func()) {
	stream, name := c.durable.Stream, c.durable.Name
	return c.api.Link.OnRefusal(func(r conn.Refusal) {
		d, _, ok := dispatch.ParseReply(r.Subject)
		if !ok || r.Subscribe || d.Stream != stream || d.Durable != name {
			return
		}
		err := c.errorf("the server refuses acknowledgements, so it redelivers messages; "+
			"allow this user to publish to %q: %w", ackSubjects(d), r.Err)
		if c.ackTrouble.open(err.Error()) {
			c.report(err)
		}
	})
}

// onRefusedPull pauses after a request that could not be sent, or whose answers cannot
// arrive. It says why if the server refuses that; otherwise the connection was lost.
func (s *supervision) onRefusedPull(err error) {
	if errors.Is(err, nats.ErrPermissionViolation) || errors.Is(err, respmux.ErrInbox) {
		s.report(troubleRefused, "cannot pull", err)
		text := err.Error()
		s.c.pullTrouble.Store(&text)
	}
	s.pause()
}

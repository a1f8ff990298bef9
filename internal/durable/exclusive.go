package durable

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/mutant"
)

// PinGroup is the priority group of exclusive durables. The server pins one client of
// it.
const PinGroup = "natty"

// Notes in an exclusive durable's metadata, with which a message is found that kills
// every instance that handles it. The server has no count of deliveries that survives a
// reset.
const (
	metaFirst     = "natty-first"     // the stream sequence that the last owner began with
	metaTakeovers = "natty-takeovers" // how many owners in a row began with it
	metaOwner     = "natty-owner"     // the last of them
)

// pin returns the id of the pinned client.
func pin(info *jetstream.ConsumerInfo) string {
	for _, group := range info.PriorityGroups {
		if group.Group == PinGroup {
			return group.PinnedClientID
		}
	}
	return ""
}

// Pinned is what the server says about the pin of a durable.
type Pinned struct {
	Pin string // the id of the pinned client
	// Age is how long ago that client was pinned, by the clock of the server.
	Age time.Duration
	// Memory is how far back the server knows who was pinned: since it leads the
	// durable, because a new leader does not learn it from the last one. Known is false
	// if the server does not say so, as for a durable without replicas.
	Memory time.Duration
	Known  bool
}

func pinned(info *jetstream.ConsumerInfo) Pinned {
	p := Pinned{Pin: pin(info)}
	for _, group := range info.PriorityGroups {
		if group.Group == PinGroup && !group.PinnedTS.IsZero() {
			p.Age = max(info.TimeStamp.Sub(group.PinnedTS), 0)
		}
	}
	if info.Cluster != nil && info.Cluster.LeaderSince != nil {
		p.Memory, p.Known = max(info.TimeStamp.Sub(*info.Cluster.LeaderSince), 0), true
	}
	return p
}

// Pinned asks who is pinned.
func (c *Manager) Pinned(ctx context.Context, d Durable) (Pinned, error) {
	info, err := c.API.ConsumerInfo(ctx, d.Stream, d.Name)
	if err != nil {
		return Pinned{}, fmt.Errorf("ask who is pinned: %w", err)
	}
	return pinned(info), nil
}

// ResetDurable makes the server redeliver, in order, everything that is not acked. It
// returns the ack floor, and who is pinned.
func (c *Manager) ResetDurable(ctx context.Context, d Durable) (floor uint64, p Pinned, err error) {
	if mutant.NoReset {
		p, err = c.Pinned(ctx, d)
		return 0, p, err
	}
	var answer struct {
		jetstream.ConsumerInfo
		Next uint64 `json:"reset_seq"`
	}
	if err := c.API.Query(ctx, "CONSUMER.RESET."+d.Stream+"."+d.Name, nil, &answer); err != nil {
		return 0, Pinned{}, fmt.Errorf("reset the durable: %w", err)
	}
	return max(answer.Next, 1) - 1, pinned(&answer.ConsumerInfo), nil
}

// Unpin takes the pin from the client that has it.
func (c *Manager) Unpin(ctx context.Context, d Durable) error {
	group := map[string]string{"group": PinGroup}
	if err := c.API.Query(ctx, "CONSUMER.UNPIN."+d.Stream+"."+d.Name, group, &struct{}{}); err != nil {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}

// CountTakeover notes that an owner begins with a message, and returns how many owners
// in a row did. An owner that begins with it again does not count: it was cut off, not
// killed.
func (c *Manager) CountTakeover(ctx context.Context, d Durable, first uint64, owner string) (n int, err error) {
	sequence := strconv.FormatUint(first, 10)
	err = c.Note(ctx, d.Stream, d.Name, func(notes map[string]any) map[string]any {
		n = 0
		if notes[metaFirst] == sequence {
			n, _ = strconv.Atoi(fmt.Sprint(notes[metaTakeovers])) // not a number: somebody has changed it
			if notes[metaOwner] == owner {
				return nil
			}
		}
		n++
		return map[string]any{metaFirst: sequence, metaTakeovers: strconv.Itoa(n), metaOwner: owner}
	})
	return n, err
}

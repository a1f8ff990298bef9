package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/incident"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/pull"
)

// Nothing tells of a change that was before the supervision began to watch.
func TestConsumerThatLosesItsConnectionAsItBeginsSaysSo(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{{}, {Spec: durable.Spec{Exclusive: true}}} {
		c := New(&Client{Manager: durable.Manager{API: &jsapi.Client{Link: conn.NewLink()}}}, cfg, nil)
		c.puller = &pull.Puller{}
		s := c.supervision
		c.api.Link.SetUp("")
		c.setState(c.mode.role())
		c.api.Link.SetDown()
		assert.False(t, s.begin(t.Context()))
		assert.Equal(t, stateDisconnected, c.health.State)
		c.api.Link.SetUp("")
		<-s.changed

		c.setState(stateDisconnected)
		assert.True(t, s.begin(t.Context()))
		assert.Equal(t, c.mode.role(), c.health.State)
	}
}

// supervised returns a shared consumer that is not run.
func supervised() *Consumer {
	api := &jsapi.Client{Link: conn.NewLink()}
	c := New(&Client{Manager: durable.Manager{API: api}, Log: slog.New(slog.DiscardHandler)}, Config{}, nil)
	c.puller, c.pace = &pull.Puller{}, paceOf(context.Background())
	c.supervision.resume = time.NewTimer(time.Hour)
	return c
}

func TestTroubleIsOneReportUntilItIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := supervised()
		s := c.supervision
		var told []string
		c.cfg.Observe = func(_, _ string, _ State, err error) {
			if err != nil {
				told = append(told, err.Error())
			}
		}
		var longest time.Duration
		for n := range 100 {
			s.report(troubleRefused, "looking into", fmt.Errorf("text %d", n%2))
			s.pause()
			s.checkRecovery() // a sign of life is no progress
			before := time.Now()
			<-s.resume.C
			longest = max(longest, time.Since(before))
		}
		assert.Len(t, told, 1)
		assert.GreaterOrEqual(t, longest, retryPull.Max, "pauses grow")
		assert.Contains(t, c.Snapshot().LastError, "text 1", "Health has the latest")
		s.report(troubleTooSmall, "another", errors.New("kind"))
		assert.Len(t, told, 2)

		c.puller = &pull.Puller{}
		s.lastFailure = time.Unix(0, -1) // before the puller's last progress
		s.checkRecovery()
		assert.Zero(t, s.failures)
		assert.Empty(t, c.Snapshot().LastError, "it is over")
		assert.True(t, c.Snapshot().LastErrorAt.IsZero())
		s.report(troubleRefused, "looking into", errors.New("again"))
		assert.Len(t, told, 3)
	})
}

func TestPendingMessagesThatNobodyPullsAreAWarning(t *testing.T) {
	t.Parallel()
	c := supervised()
	s := c.supervision
	stuck := durable.Durable{Waiting: 5}
	s.watchPulls(stuck)
	assert.Empty(t, c.Snapshot().Warning, "it may be between two requests")
	s.failures = 1
	s.watchPulls(stuck)
	assert.Equal(t, "5 messages are pending, and no instance pulls: this one pauses after a failure", c.Snapshot().Warning)
	s.watchPulls(durable.Durable{Waiting: 5, Requests: 1})
	assert.Empty(t, c.Snapshot().Warning)
}

func TestLooksFollowWhatTheDurableDoes(t *testing.T) {
	t.Parallel()
	c := supervised()
	s := c.supervision
	s.sampled = time.Now().Add(-time.Second)
	assert.Equal(t, c.pace.idle, s.lookEvery())
	for name, d := range map[string]durable.Durable{"pending": {Waiting: 1}, "in flight elsewhere": {Unacked: 1}} {
		c.durable = d
		assert.Equal(t, c.pace.busy, s.lookEvery(), name)
	}
	c.durable = durable.Durable{}
	c.lastMessage.Store(time.Now().UnixNano())
	assert.Equal(t, c.pace.busy, s.lookEvery(), "a message came since the last look")
	s.sampled = time.Now().Add(time.Second)
	assert.Equal(t, c.pace.idle, s.lookEvery())
	// The budgets, in requests a minute.
	perMinute := func(d time.Duration) float64 { return float64(time.Minute) / float64(d) }
	assert.LessOrEqual(t, perMinute(c.pace.busy), 6.0)
	c.durable.Waiting, s.cost = 1, 3
	assert.Equal(t, 3*c.pace.busy, s.lookEvery(), "a look of three requests counts for three")
	assert.LessOrEqual(t, 2*perMinute(c.pace.idle)+perMinute(c.pace.expiry), 2.0)
}

// Otherwise what arrives last is returned by nobody, and comes again after AckWait.
func TestMessagesOnTheirWayAreAwaitedWithAShortDrainTimeoutToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := supervised()
		c.cfg.DrainTimeout = time.Millisecond
		idle, drained := make(chan struct{}), make(chan struct{})
		close(idle)
		begin := time.Now()
		time.AfterFunc(EndGrace/2, func() { close(drained) })
		assert.Zero(t, c.drain(idle, drained, func() int { return 0 }))
		assert.Equal(t, EndGrace/2, time.Since(begin))
		begin = time.Now()
		assert.Zero(t, c.drain(idle, make(chan struct{}), func() int { return 0 }))
		assert.Equal(t, EndGrace, time.Since(begin), "a dead connection brings nothing")
	})
}

func TestWhatKeepsAConsumerFromStartingIsReportedOnceEach(t *testing.T) {
	t.Parallel()
	c := supervised()
	var told []error
	c.cfg.Observe = func(_, _ string, _ State, err error) { told = append(told, err) }
	var reported incident.Log
	offline, busy := &jetstream.APIError{ErrorCode: 10118}, &jetstream.APIError{ErrorCode: 10167}
	for n := range 20 {
		err := []error{fmt.Errorf("try %d: %w", n, offline), busy, nats.ErrTimeout}[n%3]
		require.True(t, jsapi.Passing(err))
		c.reportStart(&reported, err)
		assert.Equal(t, err.Error(), c.Snapshot().LastError, "Health has the latest")
	}
	assert.Len(t, told, 3)
}

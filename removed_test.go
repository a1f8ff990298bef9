package natty_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// removed waits for the report of a removal.
func removed(t *testing.T, errs <-chan error) *natty.RemovedError {
	t.Helper()
	for {
		if err, ok := errors.AsType[*natty.RemovedError](receive(t, errs)); ok {
			return err
		}
	}
}

func TestMessagesThatLimitsRemoveBeforeTheyWereHandledAreReported(t *testing.T) {
	t.Parallel()
	for name, filter := range map[string]string{"of the whole stream": "s.>", "of some of its subjects": "s.a"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := connectTo(t, nattytest.Server(t).URL())
			_, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, MaxMsgs: 41})
			require.NoError(t, err)
			report, errs := onError()
			release := make(chan struct{})
			stop := process(t, c, natty.ConsumerConfig{Subjects: []string{filter}, Durable: "d", MaxPollRecords: 1, OnError: report},
				func(context.Context, *nats.Msg) error { <-release; return nil })
			fill(t, c, "s.a", 1) // is held
			for range 20 {
				fill(t, c, "s.a", 1)
				fill(t, c, "s.b", 1)
			}
			waiting := map[string]uint64{"s.>": 40, "s.a": 20}[filter]
			eventually(t, func() bool { h := only(c); return h.AckPending == 1 && h.Pending == waiting }, "the server was asked")
			fill(t, c, "s.b", 11) // pushes out the one that is held, and ten more
			first := removed(t, errs)
			assert.Equal(t, waiting/4, first.Count)
			assert.EqualValues(t, 12, first.First)
			assert.Equal(t, waiting/4, only(c).Removed)
			require.ErrorContains(t, first, "begins at sequence 12")
			close(release)
			require.NoError(t, stop())
			// While nobody was there.
			fill(t, c, "s.a", 100)
			process(t, c, natty.ConsumerConfig{Subjects: []string{filter}, Durable: "d", OnError: report},
				func(context.Context, *nats.Msg) error { return nil })
			if filter == "s.>" {
				assert.EqualValues(t, 112, removed(t, errs).First)
			}
		})
	}
}

func TestFailedMessageThatIsRemovedBeforeItsNextAttemptIsReported(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s")
	report, errs := onError()
	var seen tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report}, func(_ context.Context, msg *nats.Msg) error {
		seen.add(msg)
		return natty.RetryAfter(time.Hour, errHandler)
	})
	fill(t, c, "s", 3)
	for range 3 {
		require.ErrorIs(t, receive(t, errs), errHandler)
	}
	require.NoError(t, s.Purge(testCtx(t), jetstream.WithPurgeSequence(3)))
	err := removed(t, errs)
	assert.EqualValues(t, 2, err.Count)
	assert.True(t, err.Failed)
}

func TestDurableThatIsNearItsLimitOfUnacknowledgedMessagesIsReported(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s")
	_, err := s.CreateConsumer(testCtx(t), jetstream.ConsumerConfig{Durable: "test_s", MaxAckPending: 10, AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	report, errs := onError()
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report},
		func(context.Context, *nats.Msg) error { return natty.RetryAfter(time.Hour, errHandler) })
	eventually(t, func() bool { h := only(c); return h.State == natty.ConsumerRunning && h.Warning == "" }, "all is well")
	fill(t, c, "s", 8)
	eventually(t, func() bool { return strings.Contains(only(c).Warning, "8 messages") }, "80% is in Health")
	reported := false
	for !reported {
		reported = strings.Contains(receive(t, errs).Error(), "max_ack_pending")
	}
}

// The server says "filtered consumer not unique", and not what is in the way (nats-server#4957, nats.go#712).
func TestOverlapOnAWorkQueueNamesTheOtherConsumer(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "W", Subjects: []string{"w.>"}, Retention: jetstream.WorkQueuePolicy})
	require.NoError(t, err)
	for durable, filter := range map[string]string{"billing": "w.bill.>", "mail": "w.mail.*.de"} {
		_, err := s.CreateConsumer(testCtx(t), jetstream.ConsumerConfig{Durable: durable, FilterSubject: filter, AckPolicy: jetstream.AckExplicitPolicy})
		require.NoError(t, err)
	}
	for _, test := range []struct {
		subjects []string
		others   []string
	}{
		{[]string{"w.>"}, []string{`"billing" (w.bill.>)`, `"mail" (w.mail.*.de)`}},
		{[]string{"w.*.new.*"}, []string{`"billing"`, `"mail"`}},
		{[]string{"w.other", "w.mail.a.de"}, []string{`"mail"`}},
		{nil, []string{`"billing"`, `"mail"`}},
	} {
		t.Run(fmt.Sprint(test.subjects), func(t *testing.T) {
			err := c.Process(testCtx(t), natty.ConsumerConfig{Stream: "W", Subjects: test.subjects, Durable: "late"},
				func(context.Context, *nats.Msg) error { return nil })
			var config *natty.ConfigError
			require.ErrorAs(t, err, &config)
			for _, other := range test.others {
				assert.Contains(t, config.Reason, other)
			}
			assert.Equal(t, len(test.others), strings.Count(config.Reason, `consumer "`))
		})
	}
	// And when an existing durable is to receive more.
	_, err = s.CreateConsumer(testCtx(t), jetstream.ConsumerConfig{Durable: "grows", FilterSubject: "w.grows", AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	err = c.Process(testCtx(t), natty.ConsumerConfig{Stream: "W", Subjects: []string{"w.grows", "w.bill.x"}, Durable: "grows"},
		func(context.Context, *nats.Msg) error { return nil })
	require.ErrorContains(t, err, `"billing"`)
}

package natty_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

func TestVerdictOnAMessageOfADeletedStreamDoesNotSettleANewOne(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, direct := connectTo(t, server.URL()), connectTo(t, server.URL())
	ensure(t, direct, "S", "s")
	report, errs := onError()
	begun, release := make(chan struct{}), make(chan struct{})
	var seen tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report, Concurrency: 2, Heartbeat: 200 * time.Millisecond},
		func(_ context.Context, msg *nats.Msg) error {
			seen.add(msg)
			if string(msg.Data) == "old" {
				close(begun)
				<-release
			}
			return nil
		})
	require.NoError(t, direct.Publish(testCtx(t), "s", []byte("old")))
	receive(t, begun)
	require.NoError(t, direct.JetStream().DeleteStream(testCtx(t), "S"))
	<-time.After(50 * time.Millisecond) // see TestStreamThatIsDeletedAndMadeAgainIsBegunAnew
	ensure(t, direct, "S", "s")
	require.NoError(t, direct.Publish(testCtx(t), "s", []byte("new 1")))
	require.NoError(t, direct.Publish(testCtx(t), "s", []byte("new 2")))
	for err := receive(t, errs); !errors.Is(err, jetstream.ErrStreamNotFound) && !errors.Is(err, jetstream.ErrConsumerNotFound); {
		err = receive(t, errs)
	}
	eventually(t, func() bool { return seen.distinct() == 3 }, "the new ones are handled beside the old one")
	close(release)
	eventually(t, settled(direct, "S", "test_s"), "and acknowledged")
}

func TestRedriveForADurableThatIsGoneIsRefused(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	_, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: jetstream.WorkQueuePolicy})
	require.NoError(t, err)
	ensure(t, c, "DEAD", "dead")
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "v1", DeadLetter: "dead"},
		func(context.Context, *nats.Msg) error { return natty.Permanent(errHandler) })
	fill(t, c, "s", 1)
	eventually(t, func() bool { return len(letters(t, c, "dead")) == 1 }, "it is given up")
	require.NoError(t, stop())
	require.NoError(t, c.JetStream().DeleteConsumer(testCtx(t), "S", "v1"))
	n, err := c.Redrive(testCtx(t), "dead", nil)
	require.ErrorIs(t, err, jetstream.ErrConsumerNotFound)
	require.ErrorContains(t, err, `durable "v1"`)
	assert.Zero(t, n)
	assert.Len(t, letters(t, c, "dead"), 1)
}

func TestServersOwnDeliveryLimitIsReportedOrTakenOver(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s")
	ensure(t, c, "DEAD", "dead")
	_, err := s.CreateConsumer(testCtx(t), jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: 2})
	require.NoError(t, err)
	report, errs := onError()
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", OnError: report}, func(context.Context, *nats.Msg) error { return nil })
	require.ErrorContains(t, receive(t, errs), "max_deliver of 2")
	require.NoError(t, stop())
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", MaxDeliver: 3, DeadLetter: "dead", Backoff: natty.Backoff{Min: time.Millisecond}},
		func(context.Context, *nats.Msg) error { return errHandler })
	fill(t, c, "s", 1)
	eventually(t, func() bool { return len(letters(t, c, "dead")) == 1 }, "the third failure is final")
}

func TestHandlerMayChangeTheMessagesFields(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	ensure(t, c, "T", "t", "dead")
	var tries tally
	process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, OrderBy: keyOf, MaxDeliver: 2, DeadLetter: "dead", Backoff: natty.Backoff{Min: time.Millisecond},
	}, func(ctx context.Context, msg *nats.Msg) error {
		tries.add(msg)
		if string(msg.Data) == "forward" {
			msg.Subject, msg.Reply = "t", ""
			_, err := c.PublishMsg(ctx, msg)
			return err
		}
		*msg = nats.Msg{}
		return errHandler
	})
	require.NoError(t, c.Publish(testCtx(t), "s", []byte("forward")))
	require.NoError(t, c.Publish(testCtx(t), "s", []byte("hello")))
	eventually(t, func() bool { return len(letters(t, c, "dead")) == 1 }, "the second is given up")
	l := letters(t, c, "dead")[0]
	assert.Equal(t, "s", l.Subject)
	assert.Equal(t, "hello", string(l.Data))
	eventually(t, settled(c, "S", "test_s"), "all are settled")
	assert.Equal(t, 1, tries.n["forward"])
}

func TestMessageThatTheHandlerAcknowledgedIsNotDeadLettered(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	ensure(t, c, "DEAD", "dead")
	report, errs := onError()
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, DeadLetter: "dead", OnError: report},
		func(_ context.Context, msg *nats.Msg) error {
			if err := msg.Ack(); err != nil {
				return err
			}
			return natty.Permanent(errHandler)
		})
	fill(t, c, "s", 1)
	require.ErrorIs(t, receive(t, errs), errHandler)
	assert.Empty(t, letters(t, c, "dead"))
}

// nilError is an error that cannot be read when it is nil, and an error interface all the same.
type nilError struct{ err error }

func (e *nilError) Error() string { return e.err.Error() }
func (e *nilError) Unwrap() error { return e.err }

func TestErrorThatCannotBeReadDoesNotEndTheProcess(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	report, errs := onError()
	var tries tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report, Backoff: natty.Backoff{Min: time.Millisecond}},
		func(_ context.Context, msg *nats.Msg) error {
			if tries.add(msg) == 1 {
				var e *nilError
				return e
			}
			return nil
		})
	fill(t, c, "s", 1)
	require.ErrorContains(t, receive(t, errs), "*natty_test.nilError")
	eventually(t, func() bool { return tries.repeats() == 1 }, "it comes again")
}

func TestNilOptionsAreSkippedOrNamed(t *testing.T) {
	t.Parallel()
	url := nattytest.Server(t).URL()
	c := connect(t, natty.Config{Servers: []string{url}}, nil, natty.WithNATSOptions(nil))
	ensure(t, c, "S", "s")
	var bad *natty.ConfigError
	require.ErrorAs(t, c.Publish(testCtx(t), "s", nil, nil), &bad)
	assert.Equal(t, "opts", bad.Field)
}

func TestClosedErrorChannelDoesNotEndTheProcess(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 1)
	errs := make(chan error)
	close(errs)
	ctx, cancel := context.WithCancel(testCtx(t))
	defer cancel()
	done := make(chan error, 1)
	var tries tally
	go func() {
		done <- c.Consume(ctx, "s", errs, func(msg *nats.Msg) {
			if tries.add(msg) == 1 {
				panic("once")
			}
		})
	}()
	eventually(t, func() bool { return tries.repeats() == 1 }, "it comes again")
	cancel()
	require.NoError(t, receive(t, done))
}

func TestSettingsOutOfReasonAreRefused(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	for i, cfg := range []natty.ConsumerConfig{
		{Subjects: []string{"s"}, AckWait: 5 * time.Millisecond},
		{Subjects: []string{"s"}, Concurrency: 1_000_000},
	} {
		var bad *natty.ConfigError
		require.ErrorAs(t, c.Process(testCtx(t), cfg, func(context.Context, *nats.Msg) error { return nil }), &bad, fmt.Sprint(i))
	}
}

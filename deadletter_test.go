package natty_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestWhatIsGivenUpIsCopiedBeforeItIsTakenOff(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, AllowMsgTTL: true, AllowRollup: true})
	require.NoError(t, err)
	testkit.Ensure(t, c, "DEAD", "dead.>")
	report, errs := testkit.OnError()
	var tries testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s.>"}, MaxDeliver: 3, DeadLetter: "dead.s", OnError: report, Backoff: natty.Backoff{Min: time.Millisecond},
	}, func(ctx context.Context, msg *nats.Msg) error {
		tries.Add(msg)
		d, _ := natty.DeliveryFrom(ctx)
		assert.Equal(t, d.Attempt >= 3, d.Last)
		if string(msg.Data) == "hopeless" {
			return natty.Permanent(fmt.Errorf("no such\ncustomer: %w", testkit.ErrHandler))
		}
		return testkit.ErrHandler
	})
	_, err = c.PublishMsg(testkit.Ctx(t), &nats.Msg{Subject: "s.a", Data: []byte("unlucky"), Header: nats.Header{
		"Trace": {"1", "2"}, "Nats-TTL": {"1h"}, "Nats-Rollup": {"sub"}, "Nats-Msg-Id": {"mine"},
	}})
	require.NoError(t, err)
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.b", []byte("hopeless")))
	testkit.Eventually(t, func() bool { return tries.Distinct() == 2 && tries.Repeats() == 2 }, "both are tried")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s-all"), "and given up")
	assert.Equal(t, map[string]int{"unlucky": 3, "hopeless": 1}, tries.Counts())

	all := map[string]natty.DeadLetter{}
	for _, l := range testkit.Letters(t, c, "dead.>") {
		all[string(l.Data)] = l
	}
	require.Len(t, all, 2)
	l := all["unlucky"]
	assert.Equal(t, "s.a", l.Subject)
	assert.Equal(t, nats.Header{"Trace": {"1", "2"}, "Nats-TTL": {"1h"}, "Nats-Rollup": {"sub"}, "Nats-Msg-Id": {"mine"}}, l.Header)
	assert.Equal(t, "S", l.Stream)
	assert.Equal(t, "test_s-all", l.Durable)
	assert.EqualValues(t, 1, l.Sequence)
	assert.Equal(t, 3, l.Deliveries)
	assert.Equal(t, testkit.ErrHandler.Error(), l.Reason)
	assert.WithinDuration(t, time.Now(), l.Time, testkit.Patience)
	assert.Equal(t, "no such customer: "+testkit.ErrHandler.Error(), all["hopeless"].Reason)

	final := 0
	for len(errs) > 0 {
		var failed *natty.HandlerError
		require.ErrorAs(t, <-errs, &failed)
		if failed.Final {
			final++
		}
	}
	assert.Equal(t, 2, final)
	info, err := s.Info(testkit.Ctx(t))
	require.NoError(t, err)
	assert.EqualValues(t, 2, info.State.Msgs, "a limits stream keeps its messages")
}

func TestWhatCannotBeCopiedStaysOnTheConsumer(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	dead, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "DEAD", Subjects: []string{"dead"}, MaxMsgs: 1, Discard: jetstream.DiscardNew})
	require.NoError(t, err)
	report, errs := testkit.OnError()
	testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, DeadLetter: "dead", OnError: report, Backoff: natty.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond},
	}, func(context.Context, *nats.Msg) error { return natty.Permanent(testkit.ErrHandler) })
	testkit.Fill(t, c, "s", 2)
	for err := testkit.Receive(t, errs); ; err = testkit.Receive(t, errs) {
		require.ErrorIs(t, err, testkit.ErrHandler)
		if errors.Is(err, natty.ErrStreamFull) {
			break
		}
	}
	unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
	assert.Equal(t, 1, unacked+waiting)
	require.NoError(t, dead.Purge(testkit.Ctx(t)))
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "there is room now")
	assert.Len(t, testkit.Letters(t, c, "dead"), 1)
}

func TestMessageTooLargeForItsLetterStaysAndIsReported(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	report, errs := testkit.OnError()
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, DeadLetter: "dead", OnError: report, Backoff: natty.Backoff{Min: time.Hour}},
		func(context.Context, *nats.Msg) error {
			return natty.Permanent(errors.New(strings.Repeat("x", 10_000)))
		})
	big := bytes.Repeat([]byte("x"), int(c.Conn().MaxPayload())-100)
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", big))
	require.ErrorIs(t, testkit.Receive(t, errs), natty.ErrTooLarge)
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", big[:len(big)-2000])) // the reason is cut to fit a header
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "the smaller one is copied")
}

func TestHandBacksAloneNeverCondemnAMessage(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	testkit.Fill(t, c, "s", 20)
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, MaxDeliver: 3, DeadLetter: "dead", MaxPollRecords: 20}
	for range 10 { // deploys, with the buffer full each time
		begun, release := make(chan struct{}, 30), make(chan struct{})
		stop := testkit.Process(t, c, cfg, func(ctx context.Context, _ *nats.Msg) error {
			begun <- struct{}{}
			<-release
			return natty.RetryAfter(0, nil) // this one counts as a failure only when it is the last
		})
		testkit.Receive(t, begun)
		go func() { _ = stop() }()
		testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerStopping }, "it stops")
		close(release)
		require.NoError(t, stop())
	}
	var seen testkit.Tally
	testkit.Process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Eventually(t, func() bool { return seen.Distinct()+len(testkit.Letters(t, c, "dead")) == 20 }, "nothing is lost")
	for _, l := range testkit.Letters(t, c, "dead") {
		assert.NotContains(t, l.Reason, "kill")
	}
}

// handBackBeyondTheLimit makes a durable, and hands the message of S back as often as one is delivered with MaxDeliver 1
// that nobody says anything about; as if a process had died each time.
func handBackBeyondTheLimit(t *testing.T, c *natty.Client, s jetstream.Stream) {
	t.Helper()
	cons, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "test_s", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "s", MaxDeliver: -1})
	require.NoError(t, err)
	testkit.Fill(t, c, "s", 1)
	for range 2*1 + 5 {
		msg, err := cons.Next()
		require.NoError(t, err)
		require.NoError(t, msg.Nak())
	}
}

func TestMessageBeyondTheLimitIsTriedOnceMore(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	handBackBeyondTheLimit(t, c, s)
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, MaxDeliver: 1, DeadLetter: "dead", AckWait: 500 * time.Millisecond}
	link := nattytest.Proxy(t, server.URL())
	died := make(chan struct{})
	testkit.Process(t, testkit.ConnectTo(t, link.URL()), cfg, func(ctx context.Context, _ *nats.Msg) error {
		link.Refuse(true)
		link.Cut()
		close(died)
		return nil // nobody hears it
	})
	testkit.Receive(t, died)
	var seen testkit.Tally
	testkit.Process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "it is given up")
	assert.Contains(t, testkit.Letters(t, c, "dead")[0].Reason, "delivered 8 times")
	assert.Zero(t, seen.Distinct())
}

func TestMessageBeyondTheLimitIsHandledIfItIsInnocent(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	handBackBeyondTheLimit(t, c, s)
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, MaxDeliver: 1, DeadLetter: "dead"},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Eventually(t, func() bool { return seen.Distinct() == 1 }, "it is handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "and acknowledged")
	assert.Empty(t, testkit.Letters(t, c, "dead"))
}

func TestMessageBeyondTheLimitIsGivenUpUnseenWhereItsTrialCannotBeNoted(t *testing.T) {
	t.Parallel()
	server := testkit.Restrict(t, "$JS.API.STREAM.>", "$JS.API.CONSUMER.INFO.>", "$JS.API.CONSUMER.MSG.NEXT.>", "$JS.ACK.>", "dead")
	root := testkit.Login(t, server.URL(), "root")
	s := testkit.Ensure(t, root, "S", "s")
	testkit.Ensure(t, root, "DEAD", "dead")
	handBackBeyondTheLimit(t, root, s)
	report, errs := testkit.OnError()
	var seen testkit.Tally
	testkit.Process(t, testkit.Login(t, server.URL(), "app"), natty.ConsumerConfig{Subjects: []string{"s"}, MaxDeliver: 1, DeadLetter: "dead", OnError: report},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	require.ErrorContains(t, testkit.Receive(t, errs), "CONSUMER.CREATE")
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, root, "dead")) == 1 }, "it is given up")
	assert.Contains(t, testkit.Letters(t, root, "dead")[0].Reason, "delivered 7 times")
	assert.Zero(t, seen.Distinct())
}

func TestRedrivenLetterGoesToTheDurableThatFailedAlone(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	testkit.Ensure(t, c, "DEAD", "dead.>")
	var broken, other testkit.Tally
	fixed := make(chan struct{})
	handled := make(chan string, 10)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, Durable: "broken", DeadLetter: "dead.s"},
		func(_ context.Context, msg *nats.Msg) error {
			broken.Add(msg)
			select {
			case <-fixed:
				handled <- string(msg.Data) + msg.Header.Get("Trace")
				return nil
			default:
				return natty.Permanent(testkit.ErrHandler)
			}
		})
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, Durable: "other"},
		func(_ context.Context, msg *nats.Msg) error { other.Add(msg); return nil })
	for i := range 3 {
		_, err := c.PublishMsg(testkit.Ctx(t), &nats.Msg{Subject: "s.a", Data: fmt.Append(nil, i), Header: nats.Header{"Trace": {"x"}}})
		require.NoError(t, err)
	}
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead.>")) == 3 }, "all are given up")
	close(fixed)
	n, err := c.Redrive(testkit.Ctx(t), "dead.s", func(l natty.DeadLetter) bool { return string(l.Data) != "1" })
	require.NoError(t, err)
	assert.Equal(t, 2, n)
	assert.ElementsMatch(t, []string{"0x", "2x"}, []string{testkit.Receive(t, handled), testkit.Receive(t, handled)})
	testkit.Eventually(t, testkit.Settled(c, "S", "other"), "the other one acknowledges them")
	assert.Equal(t, 3, other.Distinct())
	assert.Zero(t, other.Repeats(), "and skips them")
	left := testkit.Letters(t, c, "dead.>")
	require.Len(t, left, 1)
	assert.Equal(t, "1", string(left[0].Data))
}

// As if the process died between the two.
func TestLetterThatCannotBeDeletedIsRedrivenFirstAndOnce(t *testing.T) {
	t.Parallel()
	c, root, _ := denied(t, server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.MSG.DELETE.>"}}})
	s := testkit.Ensure(t, root, "S", "s.>") // has one message
	testkit.Ensure(t, root, "DEAD", "dead")
	stop := testkit.Process(t, root, natty.ConsumerConfig{Subjects: []string{"s.>"}, DeadLetter: "dead"},
		func(context.Context, *nats.Msg) error { return natty.Permanent(testkit.ErrHandler) })
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, root, "dead")) == 1 }, "it is given up")
	require.NoError(t, stop())

	_, err := c.Redrive(testkit.Ctx(t), "dead", nil)
	require.ErrorContains(t, err, "it was put back, and is still among the dead letters")
	assert.EqualValues(t, 2, testkit.Stored(t, s), "it is published before its letter is deleted")
	assert.Len(t, testkit.Letters(t, root, "dead"), 1)

	n, err := root.Redrive(testkit.Ctx(t), "dead", nil)
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	assert.EqualValues(t, 2, testkit.Stored(t, s), "it has an id, so it is not stored a second time")
	assert.Empty(t, testkit.Letters(t, root, "dead"))
}

func TestRedriveThatIsCancelledFinishesTheLetterThatItHasPublished(t *testing.T) {
	t.Parallel()
	srv := nattytest.Server(t)
	link := nattytest.Proxy(t, srv.URL())
	root, c := testkit.ConnectTo(t, srv.URL()), testkit.ConnectTo(t, link.URL())
	s := testkit.Ensure(t, root, "S", "s.>")
	testkit.Ensure(t, root, "DEAD", "dead")
	stop := testkit.Process(t, root, natty.ConsumerConfig{Subjects: []string{"s.>"}, DeadLetter: "dead"},
		func(context.Context, *nats.Msg) error { return natty.Permanent(testkit.ErrHandler) })
	testkit.Fill(t, root, "s.a", 1)
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, root, "dead")) == 1 }, "it is given up")
	require.NoError(t, stop())

	ctx, cancel := context.WithCancel(testkit.Ctx(t))
	_, err := root.Conn().Subscribe("$JS.API.STREAM.MSG.DELETE.DEAD", func(*nats.Msg) { cancel() })
	require.NoError(t, err)
	require.NoError(t, root.Conn().Flush())
	link.Delay(50 * time.Millisecond) // the answer comes after the end of ctx
	n, err := c.Redrive(ctx, "dead", nil)
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	require.Error(t, ctx.Err())
	assert.EqualValues(t, 2, testkit.Stored(t, s))
	assert.Empty(t, testkit.Letters(t, root, "dead"))
}

func TestRedriveRefusesToPushOutNewerMessages(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, MaxMsgsPerSubject: 1})
	require.NoError(t, err)
	testkit.Ensure(t, c, "DEAD", "dead")
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, DeadLetter: "dead"},
		func(context.Context, *nats.Msg) error { return natty.Permanent(testkit.ErrHandler) })
	testkit.Fill(t, c, "s.a", 1)
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "it is given up")
	require.NoError(t, stop())
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.a", []byte("newer")))
	n, err := c.Redrive(testkit.Ctx(t), "dead", nil)
	require.ErrorIs(t, err, natty.ErrStreamFull)
	assert.Contains(t, err.Error(), "max_msgs_per_subject")
	assert.Zero(t, n)
	msg, err := s.GetLastMsgForSubject(testkit.Ctx(t), "s.a")
	require.NoError(t, err)
	assert.Equal(t, "newer", string(msg.Data))
	assert.Len(t, testkit.Letters(t, c, "dead"), 1, "the letter stays")

	require.NoError(t, c.Publish(testkit.Ctx(t), "dead", []byte("not natty's")))
	_, err = c.Redrive(testkit.Ctx(t), "dead", func(l natty.DeadLetter) bool { return l.Reason == "" })
	require.ErrorContains(t, err, "no dead letter of natty's")
}

func TestDeadLetterThatCannotWorkIsRefusedAtStart(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "I", Subjects: []string{"i.>"}, Retention: jetstream.InterestPolicy})
	require.NoError(t, err)
	_, err = c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "N", Subjects: []string{"n"}, NoAck: true})
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		cfg  natty.ConsumerConfig
		want []string
	}{
		"limit without letters": {natty.ConsumerConfig{Subjects: []string{"s.a"}, MaxDeliver: 3}, []string{"max_deliver", "dead_letter"}},
		"in no stream":          {natty.ConsumerConfig{Subjects: []string{"s.a"}, DeadLetter: "nowhere"}, []string{"dead_letter", `"nowhere"`, "no stream"}},
		"a wildcard":            {natty.ConsumerConfig{Subjects: []string{"s.a"}, DeadLetter: "s.*"}, []string{"dead_letter", "wildcard"}},
		"received by itself":    {natty.ConsumerConfig{Subjects: []string{"s.*"}, DeadLetter: "s.dead"}, []string{"dead_letter", `"s.dead"`, `"s.*"`}},
		"whole stream":          {natty.ConsumerConfig{Stream: "S", Durable: "w", DeadLetter: "s.dead"}, []string{"dead_letter", "itself"}},
		"not kept":              {natty.ConsumerConfig{Subjects: []string{"i.a"}, DeadLetter: "i.dead"}, []string{"dead_letter", `Interest stream "I"`}},
		"not acknowledged":      {natty.ConsumerConfig{Subjects: []string{"s.a"}, DeadLetter: "n"}, []string{"dead_letter", "no_ack"}},
		"negative limit":        {natty.ConsumerConfig{Subjects: []string{"s.a"}, MaxDeliver: -1, DeadLetter: "s.dead"}, []string{"max_deliver", "-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := c.Process(testkit.Ctx(t), tc.cfg, func(context.Context, *nats.Msg) error { return nil })
			var bad *natty.ConfigError
			require.ErrorAs(t, err, &bad)
			for _, want := range tc.want {
				assert.ErrorContains(t, err, want)
			}
		})
	}
	for _, err := range c.DeadLetters(testkit.Ctx(t), "nowhere") {
		require.ErrorIs(t, err, natty.ErrNoStream)
	}
}

func TestHandlerTimeoutEndsTheHandlersCtx(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 1)
	report, errs := testkit.OnError()
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, HandlerTimeout: 20 * time.Millisecond, OnError: report},
		func(ctx context.Context, _ *nats.Msg) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
	assert.ErrorContains(t, testkit.Receive(t, errs), "handler timeout")
}

func TestRedriveForADurableThatIsGoneIsRefused(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: jetstream.WorkQueuePolicy})
	require.NoError(t, err)
	testkit.Ensure(t, c, "DEAD", "dead")
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "v1", DeadLetter: "dead"},
		func(context.Context, *nats.Msg) error { return natty.Permanent(testkit.ErrHandler) })
	testkit.Fill(t, c, "s", 1)
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "it is given up")
	require.NoError(t, stop())
	require.NoError(t, c.JetStream().DeleteConsumer(testkit.Ctx(t), "S", "v1"))
	n, err := c.Redrive(testkit.Ctx(t), "dead", nil)
	require.ErrorIs(t, err, jetstream.ErrConsumerNotFound)
	require.ErrorContains(t, err, `durable "v1"`)
	assert.Zero(t, n)
	assert.Len(t, testkit.Letters(t, c, "dead"), 1)
}

func TestRedrivenMessageIsWhatItsPublisherSent(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	testkit.Ensure(t, c, "T", "t.>")
	testkit.Ensure(t, c, "DEAD", "dead.>")
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.first", nil)) // so that sequences differ from counts
	published := nats.Header{"Trace": {"x"}, "Nats-Msg-Id": {"order-1"}, "Nats-Mine": {"y"}}
	_, err := c.PublishMsg(testkit.Ctx(t), &nats.Msg{Subject: "s.a", Data: []byte("a"), Header: published})
	require.NoError(t, err)
	deliveries, arrived := make(chan natty.Delivery, 10), make(chan natty.Delivery, 10)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.a"}, Durable: "d", DeadLetter: "dead.s"},
		func(ctx context.Context, msg *nats.Msg) error {
			d, _ := natty.DeliveryFrom(ctx)
			deliveries <- d
			if d.Redrives < 2 {
				return natty.Permanent(testkit.ErrHandler)
			}
			own, _ := natty.ClientFrom(ctx)
			_, err := own.PublishMsg(ctx, &nats.Msg{Subject: "t.next", Header: msg.Header})
			return err
		})
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"t.>"}}, func(ctx context.Context, _ *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		arrived <- d
		return nil
	})
	for redrives := range 3 {
		d := testkit.Receive(t, deliveries)
		assert.Equal(t, "s.a", d.Subject)
		assert.Equal(t, published, d.Header)
		assert.Equal(t, "order-1", d.MsgID)
		assert.Equal(t, redrives, d.Redrives)
		assert.EqualValues(t, 2+redrives, d.Sequence)
		if redrives == 2 {
			break
		}
		testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead.s")) == 1 }, "it is dead-lettered")
		l := testkit.Letters(t, c, "dead.s")[0]
		assert.EqualValues(t, 2, l.Sequence, "where it failed first")
		assert.Equal(t, redrives, l.Redrives)
		assert.Equal(t, published, l.Header)
		n, err := c.Redrive(testkit.Ctx(t), "dead.s", nil)
		require.NoError(t, err)
		assert.Equal(t, 1, n)
	}
	assert.Equal(t, "order-1", testkit.Receive(t, arrived).MsgID, "it is handled at the next stage too")
}

func TestLetterThatItsDurableWouldNotReceiveStays(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.eu.>", "s.us.>", "old")
	testkit.Ensure(t, c, "DEAD", "dead")
	stop := testkit.Process(t, c, natty.ConsumerConfig{Stream: "S", Durable: "d", DeadLetter: "dead"},
		func(context.Context, *nats.Msg) error { return natty.Permanent(testkit.ErrHandler) })
	for _, subject := range []string{"s.eu.1", "old", "s.us.1"} {
		require.NoError(t, c.Publish(testkit.Ctx(t), subject, []byte(subject)))
	}
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 3 }, "all are dead-lettered")
	require.NoError(t, stop())
	_, err := c.JetStream().UpdateConsumer(testkit.Ctx(t), "S", jetstream.ConsumerConfig{
		Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, FilterSubjects: []string{"s.us.>", "old"}, MaxDeliver: -1,
	})
	require.NoError(t, err)
	_, err = c.JetStream().UpdateStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	require.NoError(t, err)
	testkit.Ensure(t, c, "OTHER", "old")

	n, err := c.Redrive(testkit.Ctx(t), "dead", nil)
	assert.Equal(t, 1, n, "the others do not hold it up")
	require.ErrorContains(t, err, `does not receive "s.eu.1"`)
	require.ErrorContains(t, err, `stream "S", where it comes from, does not store "old"`)
	left := testkit.Letters(t, c, "dead")
	require.Len(t, left, 2)
	assert.Equal(t, "s.eu.1", left[0].Subject)
	assert.Equal(t, "old", left[1].Subject)
}

func TestForgedLetterDoesNotBorrowTheRightsOfTheRedriver(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "OTHER", "other")
	testkit.Ensure(t, c, "DEAD", "dead")
	require.NoError(t, c.Put(testkit.Ctx(t), "b", "seen", []byte("x")))
	for stream, durable := range map[string]string{"S": "test_s", "KV_b": "audit"} {
		_, err := c.JetStream().CreateConsumer(testkit.Ctx(t), stream, jetstream.ConsumerConfig{Durable: durable, AckPolicy: jetstream.AckExplicitPolicy})
		require.NoError(t, err)
	}
	forged := func(stream, durable, subject string, more ...string) {
		h := nats.Header{"Natty-Stream": {stream}, "Natty-Durable": {durable}, "Natty-Subject": {subject}}
		for _, name := range more {
			h[name] = []string{"all"}
		}
		_, err := c.PublishMsg(testkit.Ctx(t), &nats.Msg{Subject: "dead", Header: h, Data: []byte("forged")})
		require.NoError(t, err)
	}
	long := strings.Repeat("a", 5000)
	forged("KV_b", "audit", "$KV.b.k")
	forged("S", "test_s", "$JS.API.STREAM.DELETE.S")
	forged("S", "test_s", "other")
	forged("S", "test_s", long)
	forged(long, "test_s", "s")
	forged("S", long, "s")
	forged("S.test_s", ">", "s")
	forged("S", "test_s", "s", "Natty-Original-Rollup") // this one might be natty's
	closed := c.Conn().Stats().Reconnects
	n, err := c.Redrive(testkit.Ctx(t), "dead", nil)
	require.Error(t, err)
	assert.Equal(t, 1, n)
	assert.Less(t, len(err.Error()), 5000)
	assert.Len(t, testkit.Letters(t, c, "dead"), 7)
	assert.Equal(t, closed, c.Conn().Stats().Reconnects)
	_, err = c.Get(testkit.Ctx(t), "b", "k")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	for name, want := range map[string]uint64{"S": 1, "OTHER": 0} {
		s, err := c.JetStream().Stream(testkit.Ctx(t), name)
		require.NoError(t, err)
		assert.Equal(t, want, testkit.Stored(t, s), name)
	}
}

func TestLetterThatCannotBeReadDoesNotHideTheOthers(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	rawPublish(t, server.URL(), "dead", "NATS/1.0\r\nno header\r\n\r\n", "x")
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, DeadLetter: "dead"},
		func(ctx context.Context, _ *nats.Msg) error {
			if d, _ := natty.DeliveryFrom(ctx); d.Redrives > 0 {
				return nil
			}
			return natty.Permanent(testkit.ErrHandler)
		})
	testkit.Fill(t, c, "s", 2)
	read := func() (bodies []string, errs []error) {
		for l, err := range c.DeadLetters(testkit.Ctx(t), "dead") {
			if err != nil {
				errs = append(errs, err)
				continue
			}
			bodies = append(bodies, string(l.Data))
		}
		return bodies, errs
	}
	testkit.Eventually(t, func() bool { bodies, _ := read(); return len(bodies) == 2 }, "the others are read")
	_, errs := read()
	require.Len(t, errs, 1)
	require.ErrorContains(t, errs[0], `letter 1 in stream "DEAD"`)
	n, err := c.Redrive(testkit.Ctx(t), "dead", nil)
	require.ErrorContains(t, err, `letter 1 in stream "DEAD"`)
	assert.Equal(t, 2, n)
}

func TestLettersInAStreamThatRenamesSubjectsAreFound(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{
		Name: "DEAD", Subjects: []string{"dead.>", "other"},
		SubjectTransform: &jetstream.SubjectTransformConfig{Source: "dead.>", Destination: "archive.>"},
	})
	require.NoError(t, err)
	var tries testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, MaxDeliver: 1, DeadLetter: "dead.s"},
		func(_ context.Context, msg *nats.Msg) error {
			if tries.Add(msg) == 1 {
				return testkit.ErrHandler
			}
			return nil
		})
	testkit.Fill(t, c, "s", 1)
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead.s")) == 1 }, "it is found as it was published")
	assert.Len(t, testkit.Letters(t, c, "dead.>"), 1)
	assert.Len(t, testkit.Letters(t, c, "dead.*"), 1)
	assert.Empty(t, testkit.Letters(t, c, "dead.t"))
	assert.Empty(t, testkit.Letters(t, c, "other"))
	n, err := c.Redrive(testkit.Ctx(t), "dead.s", nil)
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	testkit.Eventually(t, func() bool { return tries.Repeats() == 1 }, "it comes again")
}

func TestHeaderThatCannotBeSentDoesNotKeepALetterFromBeingStored(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	rawPublish(t, server.URL(), "s", "NATS/1.0\r\nX Trace: 1\r\n\r\n", "x")
	headers := make(chan nats.Header, 10)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, DeadLetter: "dead"},
		func(ctx context.Context, msg *nats.Msg) error {
			headers <- msg.Header
			if d, _ := natty.DeliveryFrom(ctx); d.Redrives > 0 {
				return nil
			}
			return natty.Permanent(testkit.ErrHandler)
		})
	want := nats.Header{"X Trace": {"1"}}
	assert.Equal(t, want, testkit.Receive(t, headers))
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "it is stored")
	assert.Equal(t, want, testkit.Letters(t, c, "dead")[0].Header)
	_, err := c.Redrive(testkit.Ctx(t), "dead", nil)
	require.NoError(t, err)
	assert.Equal(t, want, testkit.Receive(t, headers))
}

// rawPublish publishes headers that nats.go does not send.
func rawPublish(t *testing.T, url, subject, header, data string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "nats://"))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "CONNECT {\"headers\":true,\"verbose\":false}\r\nHPUB %s %d %d\r\n%s%s\r\nPING\r\n",
		subject, len(header), len(header)+len(data), header, data)
	require.NoError(t, err)
	lines := bufio.NewScanner(conn)
	for lines.Scan() && lines.Text() != "PONG" {
		require.NotContains(t, lines.Text(), "-ERR")
	}
}

func TestMessageThatTheHandlerAcknowledgedIsNotDeadLettered(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	report, errs := testkit.OnError()
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, DeadLetter: "dead", OnError: report},
		func(_ context.Context, msg *nats.Msg) error {
			if err := msg.Ack(); err != nil {
				return err
			}
			return natty.Permanent(testkit.ErrHandler)
		})
	testkit.Fill(t, c, "s", 1)
	require.ErrorIs(t, testkit.Receive(t, errs), testkit.ErrHandler)
	assert.Empty(t, testkit.Letters(t, c, "dead"))
}

func TestMessageThatItsHandlerReturnsIsNotCondemned(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	calls := make(chan struct{}, 1000)
	// Each of these instances sees some of the deliveries only.
	for range 4 {
		testkit.Process(t, testkit.ConnectTo(t, c.Conn().ConnectedUrl()), natty.ConsumerConfig{Subjects: []string{"s"}, MaxDeliver: 1, DeadLetter: "dead"},
			func(_ context.Context, msg *nats.Msg) error {
				calls <- struct{}{}
				return msg.NakWithDelay(5 * time.Millisecond)
			})
	}
	testkit.Fill(t, c, "s", 1)
	for range 60 {
		testkit.Receive(t, calls)
	}
	assert.Empty(t, testkit.Letters(t, c, "dead"))
}

func TestReasonIsKeptHoweverLongItsLetterCannotBeStored(t *testing.T) {
	t.Parallel()
	for _, exclusive := range []bool{false, true} {
		t.Run(fmt.Sprintf("exclusive %v", exclusive), func(t *testing.T) {
			t.Parallel()
			c := testkit.ConnectTo(t, nattytest.Server(t).URL())
			testkit.Ensure(t, c, "S", "s")
			dead, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "DEAD", Subjects: []string{"dead"}, MaxMsgs: 1, Discard: jetstream.DiscardNew})
			require.NoError(t, err)
			require.NoError(t, c.Publish(testkit.Ctx(t), "dead", nil)) // it is full
			report, errs := testkit.OnError()
			var calls atomic.Int64
			testkit.Process(t, c, natty.ConsumerConfig{
				Subjects: []string{"s"}, MaxDeliver: 1, DeadLetter: "dead", OnError: report, Exclusive: exclusive,
				Backoff: natty.Backoff{Min: time.Millisecond, Max: time.Millisecond},
			}, func(context.Context, *nats.Msg) error { return fmt.Errorf("failure %d", calls.Add(1)) })
			testkit.Fill(t, c, "s", 1)
			for range 20 {
				require.ErrorIs(t, testkit.Receive(t, errs), natty.ErrStreamFull)
			}
			require.NoError(t, dead.Purge(testkit.Ctx(t)))
			testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "there is room now")
			assert.Equal(t, fmt.Sprint("failure ", calls.Load()), testkit.Letters(t, c, "dead")[0].Reason, "the latest")
			assert.GreaterOrEqual(t, calls.Load(), int64(20), "it ran again after each pause")
		})
	}
}

func TestLetterThatAnInterestStreamWouldNotKeepStaysOnTheConsumer(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	dead, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "DEAD", Subjects: []string{"dead"}, Retention: jetstream.InterestPolicy})
	require.NoError(t, err)
	reader := jetstream.ConsumerConfig{Durable: "reader", AckPolicy: jetstream.AckExplicitPolicy}
	_, err = dead.CreateConsumer(testkit.Ctx(t), reader)
	require.NoError(t, err)
	report, errs := testkit.OnError()
	testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, DeadLetter: "dead", OnError: report, Backoff: natty.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond},
	}, func(context.Context, *nats.Msg) error { return natty.Permanent(testkit.ErrHandler) })
	testkit.Fill(t, c, "s", 1)
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "it is kept for the reader")
	_ = testkit.Receive(t, errs)
	require.NoError(t, dead.DeleteConsumer(testkit.Ctx(t), "reader"))
	testkit.Fill(t, c, "s", 1)
	require.ErrorContains(t, testkit.Receive(t, errs), "Interest stream")
	unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
	assert.Equal(t, 1, unacked+waiting)
	_, err = dead.CreateConsumer(testkit.Ctx(t), reader)
	require.NoError(t, err)
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "somebody reads again")
}

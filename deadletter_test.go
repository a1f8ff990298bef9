package natty_test

import (
	"bytes"
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

// letters returns what is in a dead-letter subject.
func letters(t testing.TB, c *natty.Client, subject string) []natty.DeadLetter {
	t.Helper()
	var all []natty.DeadLetter
	for l, err := range c.DeadLetters(testCtx(t), subject) {
		require.NoError(t, err)
		all = append(all, l)
	}
	return all
}

func TestWhatIsGivenUpIsCopiedBeforeItIsTakenOff(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, AllowMsgTTL: true, AllowRollup: true})
	require.NoError(t, err)
	ensure(t, c, "DEAD", "dead.>")
	report, errs := onError()
	var tries tally
	process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s.>"}, MaxDeliver: 3, DeadLetter: "dead.s", OnError: report, Backoff: natty.Backoff{Min: time.Millisecond},
	}, func(ctx context.Context, msg *nats.Msg) error {
		tries.add(msg)
		d, _ := natty.DeliveryFrom(ctx)
		assert.Equal(t, d.Attempt >= 3, d.Last)
		if string(msg.Data) == "hopeless" {
			return natty.Permanent(fmt.Errorf("no such\ncustomer: %w", errHandler))
		}
		return errHandler
	})
	_, err = c.PublishMsg(testCtx(t), &nats.Msg{Subject: "s.a", Data: []byte("unlucky"), Header: nats.Header{
		"Trace": {"1", "2"}, "Nats-TTL": {"1h"}, "Nats-Rollup": {"sub"}, "Nats-Msg-Id": {"mine"},
	}})
	require.NoError(t, err)
	require.NoError(t, c.Publish(testCtx(t), "s.b", []byte("hopeless")))
	eventually(t, func() bool { return tries.distinct() == 2 && tries.repeats() == 2 }, "both are tried")
	eventually(t, settled(c, "S", "test_s-all"), "and given up")
	assert.Equal(t, map[string]int{"unlucky": 3, "hopeless": 1}, tries.n)

	all := map[string]natty.DeadLetter{}
	for _, l := range letters(t, c, "dead.>") {
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
	assert.Equal(t, errHandler.Error(), l.Reason)
	assert.WithinDuration(t, time.Now(), l.Time, patience)
	assert.Equal(t, "no such customer: "+errHandler.Error(), all["hopeless"].Reason)

	final := 0
	for len(errs) > 0 {
		var failed *natty.HandlerError
		require.ErrorAs(t, <-errs, &failed)
		if failed.Final {
			final++
		}
	}
	assert.Equal(t, 2, final)
	info, err := s.Info(testCtx(t))
	require.NoError(t, err)
	assert.EqualValues(t, 2, info.State.Msgs, "a limits stream keeps its messages")
}

func TestWhatCannotBeCopiedStaysOnTheConsumer(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	dead, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "DEAD", Subjects: []string{"dead"}, MaxMsgs: 1, Discard: jetstream.DiscardNew})
	require.NoError(t, err)
	report, errs := onError()
	process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, DeadLetter: "dead", OnError: report, Backoff: natty.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond},
	}, func(context.Context, *nats.Msg) error { return natty.Permanent(errHandler) })
	fill(t, c, "s", 2)
	for err := receive(t, errs); ; err = receive(t, errs) {
		require.ErrorIs(t, err, errHandler)
		if errors.Is(err, natty.ErrStreamFull) {
			break
		}
	}
	unacked, waiting := ackPending(t, c, "S", "test_s")
	assert.Equal(t, 1, unacked+waiting)
	require.NoError(t, dead.Purge(testCtx(t)))
	eventually(t, settled(c, "S", "test_s"), "there is room now")
	assert.Len(t, letters(t, c, "dead"), 1)
}

func TestMessageTooLargeForItsLetterStaysAndIsReported(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	ensure(t, c, "DEAD", "dead")
	report, errs := onError()
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, DeadLetter: "dead", OnError: report, Backoff: natty.Backoff{Min: time.Hour}},
		func(context.Context, *nats.Msg) error {
			return natty.Permanent(errors.New(strings.Repeat("x", 10_000)))
		})
	big := bytes.Repeat([]byte("x"), int(c.Conn().MaxPayload())-100)
	require.NoError(t, c.Publish(testCtx(t), "s", big))
	require.ErrorIs(t, receive(t, errs), natty.ErrTooLarge)
	require.NoError(t, c.Publish(testCtx(t), "s", big[:len(big)-2000])) // the reason is cut to fit a header
	eventually(t, func() bool { return len(letters(t, c, "dead")) == 1 }, "the smaller one is copied")
}

func TestHandBacksAloneNeverCondemnAMessage(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	ensure(t, c, "DEAD", "dead")
	fill(t, c, "s", 20)
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, MaxDeliver: 3, DeadLetter: "dead", MaxPollRecords: 20}
	for range 10 { // deploys, with the buffer full each time
		begun, release := make(chan struct{}, 30), make(chan struct{})
		stop := process(t, c, cfg, func(ctx context.Context, _ *nats.Msg) error {
			begun <- struct{}{}
			<-release
			return natty.RetryAfter(0, nil) // this one counts as a failure only when it is the last
		})
		receive(t, begun)
		go func() { _ = stop() }()
		eventually(t, func() bool { return only(c).State == natty.ConsumerStopping }, "it stops")
		close(release)
		require.NoError(t, stop())
	}
	var seen tally
	process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	eventually(t, func() bool { return seen.distinct()+len(letters(t, c, "dead")) == 20 }, "nothing is lost")
	for _, l := range letters(t, c, "dead") {
		assert.NotContains(t, l.Reason, "kill")
	}
}

// handBackBeyondTheLimit makes a durable, and hands the message of S back as often as one is delivered with MaxDeliver 1
// that nobody says anything about; as if a process had died each time.
func handBackBeyondTheLimit(t *testing.T, c *natty.Client, s jetstream.Stream) {
	t.Helper()
	cons, err := s.CreateConsumer(testCtx(t), jetstream.ConsumerConfig{Durable: "test_s", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "s", MaxDeliver: -1})
	require.NoError(t, err)
	fill(t, c, "s", 1)
	for range 2*1 + 5 {
		msg, err := cons.Next()
		require.NoError(t, err)
		require.NoError(t, msg.Nak())
	}
}

func TestMessageBeyondTheLimitIsTriedOnceMore(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := connectTo(t, server.URL())
	s := ensure(t, c, "S", "s")
	ensure(t, c, "DEAD", "dead")
	handBackBeyondTheLimit(t, c, s)
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, MaxDeliver: 1, DeadLetter: "dead", AckWait: 500 * time.Millisecond}
	link := nattytest.Proxy(t, server.URL())
	died := make(chan struct{})
	process(t, connectTo(t, link.URL()), cfg, func(ctx context.Context, _ *nats.Msg) error {
		link.Refuse(true)
		link.Cut()
		close(died)
		return nil // nobody hears it
	})
	receive(t, died)
	var seen tally
	process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	eventually(t, func() bool { return len(letters(t, c, "dead")) == 1 }, "it is given up")
	assert.Contains(t, letters(t, c, "dead")[0].Reason, "delivered 8 times")
	assert.Zero(t, seen.distinct())
}

func TestMessageBeyondTheLimitIsHandledIfItIsInnocent(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s")
	ensure(t, c, "DEAD", "dead")
	handBackBeyondTheLimit(t, c, s)
	var seen tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, MaxDeliver: 1, DeadLetter: "dead"},
		func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	eventually(t, func() bool { return seen.distinct() == 1 }, "it is handled")
	eventually(t, settled(c, "S", "test_s"), "and acknowledged")
	assert.Empty(t, letters(t, c, "dead"))
}

func TestMessageBeyondTheLimitIsGivenUpUnseenWhereItsTrialCannotBeNoted(t *testing.T) {
	t.Parallel()
	server := restrict(t, "$JS.API.STREAM.>", "$JS.API.CONSUMER.INFO.>", "$JS.API.CONSUMER.MSG.NEXT.>", "$JS.ACK.>", "dead")
	root := login(t, server.URL(), "root")
	s := ensure(t, root, "S", "s")
	ensure(t, root, "DEAD", "dead")
	handBackBeyondTheLimit(t, root, s)
	report, errs := onError()
	var seen tally
	process(t, login(t, server.URL(), "app"), natty.ConsumerConfig{Subjects: []string{"s"}, MaxDeliver: 1, DeadLetter: "dead", OnError: report},
		func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	require.ErrorContains(t, receive(t, errs), "CONSUMER.CREATE")
	eventually(t, func() bool { return len(letters(t, root, "dead")) == 1 }, "it is given up")
	assert.Contains(t, letters(t, root, "dead")[0].Reason, "delivered 7 times")
	assert.Zero(t, seen.distinct())
}

func TestRedrivenLetterGoesToTheDurableThatFailedAlone(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s.>")
	ensure(t, c, "DEAD", "dead.>")
	var broken, other tally
	fixed := make(chan struct{})
	handled := make(chan string, 10)
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, Durable: "broken", DeadLetter: "dead.s"},
		func(_ context.Context, msg *nats.Msg) error {
			broken.add(msg)
			select {
			case <-fixed:
				handled <- string(msg.Data) + msg.Header.Get("Trace")
				return nil
			default:
				return natty.Permanent(errHandler)
			}
		})
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, Durable: "other"},
		func(_ context.Context, msg *nats.Msg) error { other.add(msg); return nil })
	for i := range 3 {
		_, err := c.PublishMsg(testCtx(t), &nats.Msg{Subject: "s.a", Data: fmt.Append(nil, i), Header: nats.Header{"Trace": {"x"}}})
		require.NoError(t, err)
	}
	eventually(t, func() bool { return len(letters(t, c, "dead.>")) == 3 }, "all are given up")
	close(fixed)
	n, err := c.Redrive(testCtx(t), "dead.s", func(l natty.DeadLetter) bool { return string(l.Data) != "1" })
	require.NoError(t, err)
	assert.Equal(t, 2, n)
	assert.ElementsMatch(t, []string{"0x", "2x"}, []string{receive(t, handled), receive(t, handled)})
	eventually(t, settled(c, "S", "other"), "the other one acknowledges them")
	assert.Equal(t, 3, other.distinct())
	assert.Zero(t, other.repeats(), "and skips them")
	left := letters(t, c, "dead.>")
	require.Len(t, left, 1)
	assert.Equal(t, "1", string(left[0].Data))
}

func TestRedriveRefusesToPushOutNewerMessages(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, MaxMsgsPerSubject: 1})
	require.NoError(t, err)
	ensure(t, c, "DEAD", "dead")
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, DeadLetter: "dead"},
		func(context.Context, *nats.Msg) error { return natty.Permanent(errHandler) })
	fill(t, c, "s.a", 1)
	eventually(t, func() bool { return len(letters(t, c, "dead")) == 1 }, "it is given up")
	require.NoError(t, stop())
	require.NoError(t, c.Publish(testCtx(t), "s.a", []byte("newer")))
	n, err := c.Redrive(testCtx(t), "dead", nil)
	require.ErrorIs(t, err, natty.ErrStreamFull)
	assert.Contains(t, err.Error(), "max_msgs_per_subject")
	assert.Zero(t, n)
	msg, err := s.GetLastMsgForSubject(testCtx(t), "s.a")
	require.NoError(t, err)
	assert.Equal(t, "newer", string(msg.Data))
	assert.Len(t, letters(t, c, "dead"), 1, "the letter stays")

	require.NoError(t, c.Publish(testCtx(t), "dead", []byte("not natty's")))
	_, err = c.Redrive(testCtx(t), "dead", func(l natty.DeadLetter) bool { return l.Reason == "" })
	require.ErrorContains(t, err, "no dead letter of natty's")
}

func TestDeadLetterThatCannotWorkIsRefusedAtStart(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s.>")
	for name, tc := range map[string]struct {
		cfg  natty.ConsumerConfig
		want []string
	}{
		"limit without letters": {natty.ConsumerConfig{Subjects: []string{"s.a"}, MaxDeliver: 3}, []string{"max_deliver", "dead_letter"}},
		"in no stream":          {natty.ConsumerConfig{Subjects: []string{"s.a"}, DeadLetter: "nowhere"}, []string{"dead_letter", `"nowhere"`, "no stream"}},
		"a wildcard":            {natty.ConsumerConfig{Subjects: []string{"s.a"}, DeadLetter: "s.*"}, []string{"dead_letter", "wildcard"}},
		"received by itself":    {natty.ConsumerConfig{Subjects: []string{"s.*"}, DeadLetter: "s.dead"}, []string{"dead_letter", `"s.dead"`, `"s.*"`}},
		"whole stream":          {natty.ConsumerConfig{Stream: "S", Durable: "w", DeadLetter: "s.dead"}, []string{"dead_letter", "itself"}},
		"negative limit":        {natty.ConsumerConfig{Subjects: []string{"s.a"}, MaxDeliver: -1, DeadLetter: "s.dead"}, []string{"max_deliver", "-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := c.Process(testCtx(t), tc.cfg, func(context.Context, *nats.Msg) error { return nil })
			var bad *natty.ConfigError
			require.ErrorAs(t, err, &bad)
			for _, want := range tc.want {
				assert.ErrorContains(t, err, want)
			}
		})
	}
	for _, err := range c.DeadLetters(testCtx(t), "nowhere") {
		require.ErrorIs(t, err, natty.ErrNoStream)
	}
}

func TestHandlerTimeoutEndsTheHandlersCtx(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 1)
	report, errs := onError()
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, HandlerTimeout: 20 * time.Millisecond, OnError: report},
		func(ctx context.Context, _ *nats.Msg) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
	assert.ErrorContains(t, receive(t, errs), "handler timeout")
}

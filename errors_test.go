package natty_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestPublishErrorPrintsItsCauseOnce(t *testing.T) {
	t.Parallel()
	cause := &natty.ConfigError{Field: "f", Reason: "r"}
	err := &natty.PublishError{Subject: "s", MsgID: "id", Unknown: true, Err: cause}
	assert.Equal(t, `natty: publish to "s" (message id id): outcome unknown: the message may be stored: f: r`, err.Error())
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
	require.ErrorIs(t, err, cause)
	err.Unknown = false
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Equal(t, `natty: publish to "s": f: r`, err.Error())
}

func TestDriftErrorSaysWhatItWouldCostToDeleteWhatIsThere(t *testing.T) {
	t.Parallel()
	for kind, cost := range map[string]string{
		"stream":   "deleting this one deletes them",
		"bucket":   "deleting this one deletes them",
		"consumer": "deleting the consumer deletes its position",
	} {
		err := &natty.DriftError{Kind: kind, Name: "x", Differences: []natty.Difference{
			{Field: "f", Have: "1", Want: "2"}, {Field: "max_age", Have: "60000000000", Want: "1000000"},
		}}
		assert.Contains(t, err.Error(),
			"cannot be changed: f is 1, wanted 2; max_age is 1m0s, wanted 1ms; ask for what is there, or ")
		assert.Contains(t, err.Error(), cost)
	}
}

// removed waits for the report of a removal.
func removed(t *testing.T, errs <-chan error) *natty.RemovedError {
	t.Helper()
	for {
		if err, ok := errors.AsType[*natty.RemovedError](testkit.Receive(t, errs)); ok {
			return err
		}
	}
}

func TestMessagesThatLimitsRemoveBeforeTheyWereHandledAreReported(t *testing.T) {
	t.Parallel()
	for name, filter := range map[string]string{"of the whole stream": "s.>", "of some of its subjects": "s.a"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.ConnectTo(t, nattytest.Server(t).URL())
			_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, MaxMsgs: 41})
			require.NoError(t, err)
			report, errs := testkit.OnError()
			release := make(chan struct{})
			stop := testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Subjects: []string{filter}, Durable: "d", MaxPollRecords: 1, OnError: report},
				func(context.Context, *nats.Msg) error { <-release; return nil })
			testkit.Fill(t, c, "s.a", 1) // is held
			for range 20 {
				testkit.Fill(t, c, "s.a", 1)
				testkit.Fill(t, c, "s.b", 1)
			}
			waiting := map[string]uint64{"s.>": 40, "s.a": 20}[filter]
			testkit.Eventually(t, func() bool { h := testkit.Only(c); return h.AckPending == 1 && h.Pending == waiting }, "the server was asked")
			testkit.Fill(t, c, "s.b", 11) // pushes out the one that is held, and ten more
			first := removed(t, errs)
			assert.Equal(t, waiting/4, first.Count)
			assert.EqualValues(t, 12, first.First)
			assert.Equal(t, waiting/4, testkit.Only(c).Removed)
			require.ErrorContains(t, first, "begins at sequence 12")
			close(release)
			require.NoError(t, stop())
			// While nobody was there.
			testkit.Fill(t, c, "s.a", 100)
			testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Subjects: []string{filter}, Durable: "d", OnError: report},
				func(context.Context, *nats.Msg) error { return nil })
			if filter == "s.>" {
				assert.EqualValues(t, 112, removed(t, errs).First)
			}
		})
	}
}

// A mirror that is made before its origin begins with the sequence that the origin has then.
func TestMirrorThatBeginsWhereItsOriginDoesHasLostNothing(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "M", MaxMsgs: 5, Mirror: &jetstream.StreamSource{Name: "S"}})
	require.NoError(t, err)
	report, errs := testkit.OnError()
	var seen testkit.Tally
	hold := make(chan struct{})
	testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Stream: "M", Durable: "d", MaxPollRecords: 1, OnError: report},
		func(_ context.Context, msg *nats.Msg) error {
			if seen.Add(msg); seen.Distinct() == 3 {
				<-hold
			}
			return nil
		})
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerRunning }, "it waits")
	_, err = c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, FirstSeq: 4000})
	require.NoError(t, err)
	testkit.Fill(t, c, "s", 5)
	testkit.Eventually(t, func() bool { h := testkit.Only(c); return h.AckFloor == 4001 && h.Pending == 2 }, "the server was asked")
	assert.Zero(t, testkit.Only(c).Removed)
	assert.Empty(t, errs)
	testkit.Fill(t, c, "s", 5) // pushes out two that nobody has had, and the one that is held
	assert.EqualValues(t, 4005, removed(t, errs).First, "what it loses from then on is told")
	close(hold)
}

func TestFailedMessageThatIsRemovedBeforeItsNextAttemptIsReported(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	report, errs := testkit.OnError()
	var seen testkit.Tally
	testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report}, func(_ context.Context, msg *nats.Msg) error {
		seen.Add(msg)
		return natty.RetryAfter(time.Hour, testkit.ErrHandler)
	})
	testkit.Fill(t, c, "s", 3)
	for range 3 {
		require.ErrorIs(t, testkit.Receive(t, errs), testkit.ErrHandler)
	}
	require.NoError(t, s.Purge(testkit.Ctx(t), jetstream.WithPurgeSequence(3)))
	err := removed(t, errs)
	assert.EqualValues(t, 2, err.Count)
	assert.True(t, err.Failed)
}

// nilError is an error that cannot be read when it is nil, and an error interface all the same.
type nilError struct{ err error }

func (e *nilError) Error() string { return e.err.Error() }

func (e *nilError) Unwrap() error { return e.err }

// selfishError takes each error that it is compared with for one of its own.
type selfishError struct{ code int }

func (e selfishError) Error() string { return "no such customer" }

func (e selfishError) Is(target error) bool { return target.(selfishError).code == e.code } //nolint:forcetypeassert // on purpose

func TestErrorThatCannotBeComparedDoesNotEndTheProcess(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	fail := map[string]func(msg *nats.Msg, first bool) error{
		"returned": func(_ *nats.Msg, first bool) error {
			if first {
				return selfishError{}
			}
			return nil
		},
		"in a panic": func(_ *nats.Msg, first bool) error {
			if first {
				panic(selfishError{})
			}
			return nil
		},
	}
	report, errs := testkit.OnError()
	var tries testkit.Tally
	cfg := natty.ConsumerConfig{Subjects: []string{"s.one"}, OnError: report, Backoff: natty.Backoff{Min: time.Millisecond}}
	for what, f := range fail {
		cfg.Durable, cfg.Subjects = "one", []string{"s.one"}
		stop := testkit.Process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { return f(msg, tries.Add(msg) == 1) })
		require.NoError(t, c.Publish(testkit.Ctx(t), "s.one", []byte(what)))
		require.ErrorContains(t, testkit.Receive(t, errs), "no such customer", what)
		testkit.Eventually(t, func() bool { return tries.Counts()[what] == 2 }, "it comes again: %s", what)
		require.NoError(t, stop())

		cfg.Durable, cfg.Subjects = "batch", []string{"s.batch"}
		stop = testkit.RunConsumer(t, c, func(ctx context.Context) error {
			return c.ProcessBatch(ctx, natty.BatchConfig{ConsumerConfig: cfg, MaxWait: time.Millisecond},
				func(_ context.Context, msgs []*nats.Msg) error { return f(msgs[0], tries.Add(msgs[0]) == 1) })
		})
		require.NoError(t, c.Publish(testkit.Ctx(t), "s.batch", []byte("batch "+what)))
		require.ErrorContains(t, testkit.Receive(t, errs), "no such customer", what)
		testkit.Eventually(t, func() bool { return tries.Counts()["batch "+what] == 2 }, "the batch comes again: %s", what)
		require.NoError(t, stop())
	}
}

func TestErrorThatCannotBeReadDoesNotEndTheProcess(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	report, errs := testkit.OnError()
	var tries testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report, Backoff: natty.Backoff{Min: time.Millisecond}},
		func(_ context.Context, msg *nats.Msg) error {
			if tries.Add(msg) == 1 {
				var e *nilError
				return e
			}
			return nil
		})
	testkit.Fill(t, c, "s", 1)
	require.ErrorContains(t, testkit.Receive(t, errs), "*natty_test.nilError")
	testkit.Eventually(t, func() bool { return tries.Repeats() == 1 }, "it comes again")
}

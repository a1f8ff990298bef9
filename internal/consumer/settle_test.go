package consumer

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
)

func TestHandlersErrorSaysWhetherAndWhenAMessageRunsAgain(t *testing.T) {
	t.Parallel()
	const pause = time.Second
	c := Consumer{cfg: Config{Spec: durable.Spec{MaxDeliver: 3}, Backoff: backoff.Exp{Min: pause, Max: pause}}}
	failed := errors.New("no")
	for name, test := range map[string]struct {
		attempt int
		err     error
		final   bool
		after   time.Duration // at least; at most a quarter more
	}{
		"a plain error waits for the backoff":     {1, failed, false, pause},
		"RetryAfter has its own pause":            {1, dispatch.RetryAfter(time.Hour, failed), false, time.Hour},
		"RetryAfter may mean at once":             {1, dispatch.RetryAfter(-1, failed), false, 0},
		"Permanent is final":                      {1, dispatch.Permanent(failed), true, pause},
		"the last attempt is final":               {3, failed, true, pause},
		"RetryAfter is final on the last attempt": {4, dispatch.RetryAfter(time.Hour, failed), true, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := dispatch.Delivery{Attempt: test.attempt}
			d.Last = c.isLast(d)
			final, after := c.judge(d, test.err)
			assert.Equal(t, test.final, final)
			assert.GreaterOrEqual(t, after, test.after)
			assert.LessOrEqual(t, after, test.after+test.after/4)
		})
	}
}

type unreadable struct{ text string }

func (e *unreadable) Error() string { return e.text }

func TestErrorThatCannotBeReadIsReplaced(t *testing.T) {
	t.Parallel()
	var none *unreadable
	require.ErrorContains(t, readable(none), "*consumer.unreadable that cannot be read")
	fine := errors.New("no")
	assert.Same(t, fine, readable(fine))
	assert.NoError(t, readable(nil))
}

// selfish takes each error that it is compared with for one of its own.
type selfish struct{ code int }

func (e selfish) Error() string { return "no such customer" }

func (e selfish) Is(target error) bool { return target.(selfish).code == e.code } //nolint:forcetypeassert // on purpose

func TestErrorThatCannotBeComparedIsReplacedAndItsVerdictStays(t *testing.T) {
	t.Parallel()
	for err, permanent := range map[error]bool{
		selfish{}: false, dispatch.Permanent(selfish{}): true, fmt.Errorf("panic: %w", selfish{}): false,
	} {
		safe := readable(err)
		require.ErrorContains(t, safe, "no such customer")
		require.NotErrorIs(t, safe, errKept)
		v, ok := dispatch.VerdictOf(safe)
		assert.Equal(t, permanent, ok && v.Permanent)
	}
}

func TestPinIsTheLastOfItsHeader(t *testing.T) {
	t.Parallel()
	assert.Empty(t, pinOf(&nats.Msg{}))
	m := &nats.Msg{Header: nats.Header{headerPin: {"of the publisher", "of the server"}}}
	assert.Equal(t, "of the server", pinOf(m))
}

func TestRetriesKeepAMinimumAboveTheDefaultMaximum(t *testing.T) {
	t.Parallel()
	assert.Equal(t, backoff.Exp{Min: time.Hour, Max: time.Hour}, RetryBackoff(backoff.Exp{Min: time.Hour}))
}

// The doc of natty.ConsumerConfig.MaxDeliver has this table, and the README's example
// builds on it.
func TestMaxDeliverLastsAsLongAsItsDocSays(t *testing.T) {
	t.Parallel()
	b := RetryBackoff(backoff.Exp{})
	for maxDeliver, want := range map[int]time.Duration{
		2: 250 * time.Millisecond, 3: 750 * time.Millisecond, 5: 3750 * time.Millisecond, 8: 32 * time.Second, 10: 2 * time.Minute,
		15: 7 * time.Minute, 18: 10 * time.Minute, 20: 12 * time.Minute, 30: 22 * time.Minute, 70: time.Hour,
	} {
		lasts := time.Duration(0)
		for failure := 1; failure < maxDeliver; failure++ {
			lasts += b.Base(failure)
		}
		assert.InEpsilon(t, want, lasts, 0.04, "max_deliver %d", maxDeliver)
	}
}

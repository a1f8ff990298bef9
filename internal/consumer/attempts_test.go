package consumer

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
)

func TestReturnsOfOtherInstancesAreNoFailures(t *testing.T) {
	t.Parallel()
	c := New(quiet(), Config{Spec: durable.Spec{MaxDeliver: 2}}, nil)
	returned := []string{"s.b"}
	c.foreign.returned.Store(&returned)
	c.foreign.noted.Store(time.Now().Add(time.Hour).UnixNano()) // nothing is asked
	fails := func(subject string, sequence uint64, attempt int) dispatch.Delivery {
		m := message(sequence, attempt)
		m.Delivery.Subject = subject
		m.Delivery.Last = c.isLastOf(m)
		judged := c.failed(m, errors.New("x"))
		assert.Equal(t, m.Delivery.Last, judged.Last, "the handler is told")
		return judged
	}
	d := fails("s.b", 1, 9)
	assert.False(t, d.Last, "eight deliveries were no failures")
	assert.Equal(t, 1, d.Attempt, "nor do they prolong the pause")
	other := message(2, 9)
	other.Delivery.Subject = "s.b"
	assert.False(t, c.isLastOf(other))
	d = fails("s.b", 1, 10)
	assert.True(t, d.Last, "two failures here")
	d = fails("s.a", 3, 2)
	assert.True(t, d.Last, "nobody returns it")
}

func TestMessageThatWasNotHandledHasNotFailed(t *testing.T) {
	t.Parallel()
	c := New(quiet(), Config{Spec: durable.Spec{MaxDeliver: 2}}, nil)
	m := message(1, 10)
	m.Quarantined = true
	c.failed(m, dispatch.Permanent(poisonError{errors.New("poison")}))
	assert.Zero(t, c.answers.of(m).failures)
}

func TestAnswersToFewMessagesAreRemembered(t *testing.T) {
	t.Parallel()
	var a answers
	for i := range uint64(maxAnswers + 1) {
		assert.Equal(t, 1, a.fail(message(i, 1)))
	}
	assert.Len(t, a.last, maxAnswers)
	last := message(maxAnswers, 1)
	assert.Equal(t, 2, a.fail(last))
	a.record(last, 7, "no such customer")
	assert.Equal(t, answer{attempt: 7, reason: "no such customer", failures: 2}, a.of(last))
	last.Epoch = 1
	assert.Zero(t, a.of(last), "of another stream of this name")
}

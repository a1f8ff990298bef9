package consumer

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
)

func withAttempt(attempt int) *dispatch.Message {
	m := &dispatch.Message{}
	m.Delivery = dispatch.Delivery{Sequence: 7, Attempt: attempt}
	return m
}

func TestMessageIsSuspectedOnlyFarBeyondItsLimit(t *testing.T) {
	t.Parallel()
	c := Consumer{cfg: Config{Spec: durable.Spec{MaxDeliver: 3}}}
	assert.False(t, c.mayBePoison(withAttempt(2*3+5)))
	assert.True(t, c.mayBePoison(withAttempt(2*3+6)))
	c.cfg.MaxDeliver = 0
	assert.False(t, c.mayBePoison(withAttempt(1000)), "without a limit there is nowhere to put it")
}

func TestOnlyDeliveriesWithoutAnAnswerMakeASuspect(t *testing.T) {
	t.Parallel()
	c := Consumer{cfg: Config{Spec: durable.Spec{MaxDeliver: 3, Exclusive: true}}}
	failed := errors.New("column too short" + strings.Repeat("!", 2*maxReason))
	c.answered(withAttempt(20), failed)
	assert.False(t, c.mayBePoison(withAttempt(20+2*3+5)))
	require.NoError(t, c.poisoned(withAttempt(20+2*3+5)))
	assert.True(t, c.mayBePoison(withAttempt(20+2*3+6)), "it dies since then")
	c.answered(withAttempt(21), nil) // its handler returned it to the server
	err := c.poisoned(withAttempt(40))
	require.ErrorContains(t, err, "delivered 39 times")
	require.ErrorContains(t, err, "column too short!", "the last error is kept")

	for i := range uint64(2 * maxAnswers) {
		m := withAttempt(2)
		m.Delivery.Sequence = i
		c.answered(m, failed)
	}
	assert.LessOrEqual(t, len(c.answers.last), maxAnswers)
}

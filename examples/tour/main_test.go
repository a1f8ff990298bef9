package main

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty/examples/internal/check"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryPartOfTheTourWorks(t *testing.T) {
	nothingLeft := check.ServerInside(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	for _, line := range []string{
		"one at a time, up to sequence 50",
		"50 at a time, all acknowledged",
		`"what the tour shows" holds 100 messages: 50 new, 50 paid`,
		"the one with new ones has 2 subjects",
		"its name is among all names: true",
		"shipping has 50 before it",
		"listed: shipping, AckWait 1m0s",
		"ten, waiting for them for up to a second: 10",
		"ten of those that are there now: 10",
		"50 came, and the server knows that they were handled",
		"read up to sequence 100",
		"the first is 0, the last one paid 49",
		"the first is deleted",
		"without what comes before sequence 11: 90 messages",
		"without all that are new but ten: 60 messages",
		"without everything: 0 messages",
	} {
		require.Contains(t, printed, "   "+line+"\n")
	}
	require.Regexp(t, `   what fits into a kilobyte: [1-9]`, printed)
	nothingLeft()
}

func TestAnInterruptLeavesNothingOnTheServer(t *testing.T) {
	for _, text := range []string{"connected", "streams\n", "fetching\n", "iterating\n", "in order"} {
		t.Run(text, func(t *testing.T) {
			noStreams := check.Server(t)
			ctx, cancel := context.WithCancel(t.Context())
			require.ErrorIs(t, run(ctx, nil, &check.CancelOn{Text: text, Cancel: cancel}), context.Canceled)
			noStreams()
		})
	}
}

func TestUnreachableServerIsReported(t *testing.T) {
	t.Setenv("NATS_URL", "nats://127.0.0.1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, run(ctx, nil, &bytes.Buffer{}), "nats://127.0.0.1:1")
}

func TestAnArgumentIsRefused(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run(t.Context(), []string{"a"}, &bytes.Buffer{}), "unexpected argument a")
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, io.Discard) })
}

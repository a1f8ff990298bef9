package main

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/examples/internal/check"
)

func TestMain(m *testing.M) { check.Main(m) }

func TestTheJobIsDoneOnceWheneverItIsDue(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	by := check.Number(t, printed, "done by A") + check.Number(t, printed, "done by B")
	require.GreaterOrEqual(t, by, ticks)
	require.Equal(t, by, check.Number(t, printed, "ticks"))
	require.Equal(t, 0, check.Number(t, printed, "done twice"))
	require.Equal(t, 0, check.Number(t, printed, "missed"))
	require.Equal(t, 0, check.Number(t, printed, "at the same time"))
	require.Equal(t, 1, check.Number(t, printed, "changed hands"))
}

func TestAnInterruptLeavesNothingOnTheServer(t *testing.T) {
	for _, text := range []string{"connected", "does the job", "leaves"} {
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

func TestAccountFindsWhatWasDoneTwiceMissedOrTogether(t *testing.T) {
	t.Parallel()
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	a := &account{out: io.Discard, changed: make(chan struct{}, 1)}
	a.note(work{"A", 1, at(0), at(10)})
	a.note(work{"B", 1, at(5), at(15)})
	a.note(work{"B", 4, at(20), at(30)})
	require.EqualError(t, a.print(), "1 ticks were done twice, 2 were missed, and 1 overlapped")

	a = &account{out: io.Discard, changed: make(chan struct{}, 1)}
	for tick, name := range []string{"A", "B", "A"} {
		a.note(work{name, tick + 1, at(tick), at(tick)})
	}
	require.EqualError(t, a.print(), "the job changed hands 2 times, and not once, when its node left")
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, io.Discard) })
}

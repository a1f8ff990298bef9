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

func TestOnlyAStreamKeepsWhatNobodyListensTo(t *testing.T) {
	nothingLeft := check.ServerInside(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, 100, check.Number(t, printed, "plain subscriber got"))
	require.Equal(t, 200, check.Number(t, printed, "natty's consumer got"))
	require.Contains(t, printed, "a request to .stored.greeting was answered by the stream:")
	require.Contains(t, printed, "a request to .rpc.greeting was answered by the service: good day")
	nothingLeft()
}

func TestAnInterruptLeavesNothingOnTheServer(t *testing.T) {
	for _, text := range []string{"connected", "published", "answered by the stream"} {
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

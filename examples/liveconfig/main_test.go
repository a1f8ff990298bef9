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

func TestServicesSeeEveryChangeAndGoOnWithoutTheServer(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, changes+1, check.Number(t, printed, "changes seen by all"))
	require.Equal(t, 0, check.Number(t, printed, "reads of nothing, or wrong"))
	require.Greater(t, check.Number(t, printed, "reads"), changes)
	require.Greater(t, check.Number(t, printed, "oldest copy, in ms"), 1500, "without the server")
	require.Contains(t, printed, "not connected")
	require.Contains(t, printed, "{Version:21 Rate:210}, ", "what the copy has while the server has 22")
}

func TestAnInterruptLeavesNothingOnTheServer(t *testing.T) {
	for _, text := range []string{"connected", "services run", "lost the server", "mended"} {
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

func TestAccountFindsAChangeThatWasNotSeen(t *testing.T) {
	t.Parallel()
	a := &account{changes: changes, services: []*service{{reads: 3, missing: 1}, {reads: 4, oldest: time.Second}}}
	var out bytes.Buffer
	require.EqualError(t, a.print(&out), "1 reads had no configuration or a wrong one, and 20 changes of 21 were seen")
	require.Equal(t, 7, check.Number(t, out.String(), "reads"))
	require.Equal(t, 1000, check.Number(t, out.String(), "oldest copy, in ms"))
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, io.Discard) })
}

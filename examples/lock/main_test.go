package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/check"
	"github.com/natty-go/natty/examples/internal/instances"
)

func TestMain(m *testing.M) {
	if instances.Name() != "" { // the test's binary is the process that dies too
		main()
		return
	}
	check.Main(m)
}

func TestTheCountIsExactThoughOneDiesWithTheLock(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, 80, check.Number(t, printed, "count in the file"))
	require.Equal(t, 80, check.Number(t, printed, "counted"))
	require.Equal(t, 0, check.Number(t, printed, "at the same time"))
	require.Equal(t, 0, check.Number(t, printed, "under a smaller token"))
	require.Contains(t, printed, "(D)", "who has it")
	waited := check.Number(t, printed, "wait for the dead, in ms")
	require.Greater(t, waited, 100, "the lock has to expire")
	require.Less(t, waited, 20000, "2500, on a machine that is not busy")
}

func TestAnInterruptLeavesNothingOnTheServer(t *testing.T) {
	for _, text := range []string{"connected", "have counted", "D is process", "killing"} {
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

func TestTheFileRefusesASmallerToken(t *testing.T) {
	t.Parallel()
	c := counter{file: filepath.Join(t.TempDir(), "count")}
	require.NoError(t, c.add(t.Context(), 7))
	require.ErrorIs(t, c.add(t.Context(), 6), natty.ErrDeposed)
	require.NoError(t, c.add(t.Context(), 7))
	data, err := os.ReadFile(c.file)
	require.NoError(t, err)
	require.Equal(t, "2 7\n", string(data))
}

func TestAccountFindsALostCountAndTwoAtATime(t *testing.T) {
	t.Parallel()
	a := &account{counter: counter{file: filepath.Join(t.TempDir(), "count")}}
	require.NoError(t, a.counter.add(t.Context(), 1))
	at := time.Now()
	a.note(held{token: 2, began: at, end: at.Add(2)}, true)
	a.note(held{token: 1, began: at.Add(1), end: at.Add(3)}, true)
	var out bytes.Buffer
	require.EqualError(t, a.print(&out), "the lock was had 1 times by two, and 1 times under a smaller token\nthe count is 1, and not 80")
	require.Equal(t, 2, check.Number(t, out.String(), "locked"))
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, io.Discard) })
}

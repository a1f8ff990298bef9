package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/examples/internal/check"
	"github.com/natty-go/natty/examples/internal/instances"
)

func TestMain(m *testing.M) {
	if instances.Name() != "" { // the test's binary is an instance too
		main()
		return
	}
	check.Main(m)
}

// requireOneAtATime returns how long the two hand-overs took, in milliseconds.
func requireOneAtATime(t *testing.T, kill bool) (first, second int) {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, kill, &out))
	printed := out.String()
	t.Log(printed)
	for _, name := range names {
		require.GreaterOrEqual(t, check.Number(t, printed, "steps of "+name), enough)
	}
	require.Equal(t, 0, check.Number(t, printed, "at the same time"))
	require.Equal(t, 0, check.Number(t, printed, "under a smaller token"))
	return check.Number(t, printed, "hand-over 1, in ms"), check.Number(t, printed, "hand-over 2, in ms")
}

func TestALeaderThatIsStoppedIsFollowedAtOnce(t *testing.T) {
	t.Parallel()
	first, second := requireOneAtATime(t, false)
	require.Less(t, max(first, second), 1500, "nobody waits for the lease to expire")
}

func TestALeaderThatIsKilledIsFollowedWithinTheTTL(t *testing.T) {
	t.Parallel()
	first, second := requireOneAtATime(t, true)
	require.Greater(t, min(first, second), 100, "the lease has to expire")
	require.Less(t, max(first, second), 20000, "2500, on a machine that is not busy")
}

func TestAnInterruptLeavesNothingOnTheServer(t *testing.T) {
	for _, text := range []string{"C is process", "leads", "stopping"} {
		t.Run(text, func(t *testing.T) {
			noStreams := check.Server(t)
			ctx, cancel := context.WithCancel(t.Context())
			require.ErrorIs(t, run(ctx, nil, false, &check.CancelOn{Text: text, Cancel: cancel}), context.Canceled)
			noStreams()
		})
	}
}

func TestAnArgumentIsRefused(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run(t.Context(), []string{"a"}, false, &bytes.Buffer{}), "unexpected argument a")
}

func TestAccountFindsTwoAtATimeAndTokensThatShrink(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := &account{out: &out, terms: map[uint64]int{}}
	for _, line := range []string{
		"A ready", "A worked 7 10 20", "A worked 7 20 50", "B worked 9 40 45", "B worked 9 46 60", "C worked 8 70 80", "C what",
	} {
		name, what, _ := strings.Cut(line, " ")
		a.note(name, what)
	}
	require.EqualError(t, a.print(), "2 steps were done while another one was\n1 steps were done under a smaller token than one before")
	require.Equal(t, 2, check.Number(t, out.String(), "steps of A"))
	require.Equal(t, 2, check.Number(t, out.String(), "at the same time"))
	require.Contains(t, out.String(), `C says "what"`)
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, false, io.Discard) })
}

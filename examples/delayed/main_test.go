package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/check"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryJobRunsOnceAndNoneEarlyThoughTheServerIsRestarted(t *testing.T) {
	nothingLeft := check.ServerInside(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, 10, check.Number(t, printed, "with a time"))
	require.Equal(t, 10, check.Number(t, printed, "ran once"))
	require.Equal(t, 0, check.Number(t, printed, "ran early"))
	require.GreaterOrEqual(t, check.Number(t, printed, "every second, ran"), 2)
	require.Equal(t, 0, check.Number(t, printed, "put off, ran"))
	require.Equal(t, 0, check.Number(t, printed, "cancelled, ran"))
	require.Equal(t, 0, check.Number(t, printed, "lost"))
	require.Contains(t, printed, "restarting the consumer and the server\n")

	list, _, _ := strings.Cut(printed, "running them")
	require.Equal(t, 1, strings.Count(list, "   backup      every 1s\n"))
	require.Equal(t, 1, strings.Count(list, "* * * in Asia/Kolkata\n"))
	require.Equal(t, 8, strings.Count(list, "   reminder-"))
	require.Equal(t, 1, strings.Count(list, "   offer "), "it was replaced")
	require.NotContains(t, list, newsletter, "it was cancelled")
	nothingLeft()
}

func TestAnInterruptSaysWhatDidNotRunAndLeavesNothingOnTheServer(t *testing.T) {
	for text, want := range map[string]string{"scheduled": "", "restarting the consumer\n": "jobs did not run"} {
		t.Run(strings.TrimSpace(text), func(t *testing.T) {
			noStreams := check.Server(t)
			ctx, cancel := context.WithCancel(t.Context())
			err := run(ctx, nil, &check.CancelOn{Text: text, Cancel: cancel})
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorContains(t, err, want)
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

func TestTheDailyJobIsWrittenInTheTimeOfItsZone(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, time.July, 1, 20, 59, 58, 1, time.UTC)
	plan, a, err := newPlan(start, "jobs", &bytes.Buffer{})
	require.NoError(t, err)
	require.Equal(t, "2 30 2 * * *", plan[0].Cron)
	require.True(t, a.due[report].Equal(time.Date(2026, time.July, 1, 21, 0, 2, 0, time.UTC)))
}

func TestAccountFindsWhatWasLostAndWhatRanWrongly(t *testing.T) {
	t.Parallel()
	start := time.Now()
	sequence := uint64(0)
	// after lets everything run at its time, but for what is wrong.
	after := func(wrong func(a *account, ran func(name string, at time.Time))) (printed string, _ error) {
		var out bytes.Buffer
		_, a, err := newPlan(start, "jobs", &out)
		require.NoError(t, err)
		a.whenHalf(func() {})
		ran := func(name string, at time.Time) {
			sequence++
			ctx := natty.WithDelivery(t.Context(), natty.Delivery{Sequence: sequence, Time: at})
			require.NoError(t, a.handle(ctx, &nats.Msg{Data: []byte(name)}))
		}
		wrong(a, ran)
		for name, due := range a.due {
			if a.ran[name] == nil {
				ran(name, due)
			}
		}
		ran(backup, start)
		ran(backup, start.Add(time.Second))
		err = a.print()
		return out.String(), err
	}

	printed, err := after(func(*account, func(string, time.Time)) {})
	require.NoError(t, err)
	require.Equal(t, 10, check.Number(t, printed, "ran once"))
	require.Equal(t, 0, check.Number(t, printed, "late at most, ms"))

	printed, err = after(func(a *account, ran func(string, time.Time)) { ran(offer, a.due[offer].Add(30*time.Millisecond)) })
	require.NoError(t, err)
	require.Equal(t, 30, check.Number(t, printed, "late at most, ms"))

	printed, err = after(func(a *account, ran func(string, time.Time)) { ran(offer, a.due[offer].Add(-time.Nanosecond)) })
	require.EqualError(t, err, "1 jobs went wrong: offer ran early")
	require.Equal(t, 1, check.Number(t, printed, "ran early"))

	printed, err = after(func(a *account, ran func(string, time.Time)) {
		ran(offer, a.due[offer])
		ran(offer, a.due[offer])
	})
	require.EqualError(t, err, "1 jobs went wrong: offer ran again")
	require.Equal(t, 9, check.Number(t, printed, "ran once"))

	printed, err = after(func(_ *account, ran func(string, time.Time)) { ran(newsletter, start) })
	require.EqualError(t, err, "1 jobs went wrong: newsletter ran")
	require.Equal(t, 1, check.Number(t, printed, "cancelled, ran"))

	printed, err = after(func(a *account, _ func(string, time.Time)) { a.ran[report] = map[uint64]time.Time{} })
	require.EqualError(t, err, "1 jobs did not run: report")
	require.Equal(t, 1, check.Number(t, printed, "lost"))
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, io.Discard) })
}

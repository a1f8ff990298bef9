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

func TestEveryJobIsDoneOrADeadLetter(t *testing.T) {
	nothingLeft := check.ServerInside(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, 60, check.Number(t, printed, "submitted"))
	require.Equal(t, 57, check.Number(t, printed, "done"))
	require.Equal(t, 9, check.Number(t, printed, "dead-lettered"))
	require.Equal(t, 6, check.Number(t, printed, "redriven"))
	require.Equal(t, 3, check.Number(t, printed, "still dead"))
	require.Equal(t, 0, check.Number(t, printed, "lost"))
	require.Equal(t, 3, strings.Count(printed, `.jobs.scan {"id":"J-`))
	require.Equal(t, 3, strings.Count(printed, "attempts 1: the scan has no page"))
	require.Equal(t, 6, strings.Count(printed, "attempts 3: the mail server does not answer"))
	nothingLeft()
}

func TestAnInterruptLeavesNothingOnTheServer(t *testing.T) {
	for _, text := range []string{"submitted", "gave up these", "put back"} {
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

func TestAccountFindsAJobThatIsNeitherDoneNorDead(t *testing.T) {
	t.Parallel()
	o := newOffice()
	var still []natty.DeadLetter
	for _, j := range o.submitted[2:] {
		data := []byte(`{"id":"` + j.ID + `","kind":"` + j.Kind + `"}`)
		if o.handle(t.Context(), &nats.Msg{Data: data}) != nil {
			still = append(still, natty.DeadLetter{Data: data})
		}
	}
	var out bytes.Buffer
	require.EqualError(t, o.print(&out, 9, 0, still), "2 jobs were lost: J-01, J-02")
	require.Equal(t, 49, check.Number(t, out.String(), "done"))
	require.Equal(t, 2, check.Number(t, out.String(), "lost"))
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, io.Discard) })
}

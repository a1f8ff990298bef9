package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty/examples/internal/check"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryEventIsHandledInTheOrderOfItsAccount(t *testing.T) {
	nothingLeft := check.ServerInside(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, 20, check.Number(t, printed, "accounts"))
	require.Equal(t, 800, check.Number(t, printed, "events"))
	require.Equal(t, 800, check.Number(t, printed, "handled"))
	require.Equal(t, 20, check.Number(t, printed, "retried"))
	require.Equal(t, 0, check.Number(t, printed, "handled twice"))
	require.Equal(t, 0, check.Number(t, printed, "out of order"))
	require.Equal(t, 0, check.Number(t, printed, "lost"))
	require.Contains(t, printed, "one at a time would take 4.10 s at least")
	nothingLeft()
}

func TestAnInterruptHalfWayLeavesNothingOnTheServer(t *testing.T) {
	noStreams := check.Server(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := check.CancelOn{Text: "restarting", Cancel: cancel}
	require.ErrorIs(t, run(ctx, nil, &out), context.Canceled)
	require.Equal(t, 800, check.Number(t, out.String(), "handled")+check.Number(t, out.String(), "lost"))
	require.Positive(t, check.Number(t, out.String(), "lost"))
	noStreams()
}

func TestAnArgumentIsRefused(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run(t.Context(), []string{"a"}, &bytes.Buffer{}), "unexpected argument a")
}

func TestAccountFindsWhatWasSkippedAndWhatCameTwice(t *testing.T) {
	t.Parallel()
	b := newBank()
	b.failing = nil
	for _, number := range []int{1, 2, 2, 4} {
		data, err := json.Marshal(event{Account: "A-01", Number: number})
		require.NoError(t, err)
		require.NoError(t, b.handle(t.Context(), &nats.Msg{Data: data}))
	}
	var out bytes.Buffer
	require.EqualError(t, b.print(&out), "797 events were not handled, and 1 were out of order")
	require.Equal(t, 3, check.Number(t, out.String(), "handled"))
	require.Equal(t, 1, check.Number(t, out.String(), "handled twice"))
	require.Equal(t, 1, check.Number(t, out.String(), "out of order"))
}

func TestTwoEventsOfAnAccountAtOnceAreOutOfOrder(t *testing.T) {
	t.Parallel()
	b := newBank()
	require.True(t, b.begin(event{Account: "A-01", Number: 1}))
	require.True(t, b.begin(event{Account: "A-02", Number: 1}))
	require.Zero(t, b.outOfOrder)
	require.True(t, b.begin(event{Account: "A-01", Number: 1}))
	require.Equal(t, 1, b.outOfOrder)
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, io.Discard) })
}

package main

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/check"
	"github.com/natty-go/natty/examples/internal/instances"
)

func TestMain(m *testing.M) {
	if instances.Name() != "" { // the test's binary is an instance too
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestNoRequestIsLostWhenAnInstanceIsKilled(t *testing.T) {
	nothingLeft := check.ServerInside(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	require.Positive(t, check.Number(t, printed, "answered by A"))
	require.Positive(t, check.Number(t, printed, "answered by B"))
	require.Equal(t, 400, check.Number(t, printed, "answered by A")+check.Number(t, printed, "answered by B"))
	require.Equal(t, 400, check.Number(t, printed, "squares in stream"))
	require.Equal(t, 0, check.Number(t, printed, "lost"))
	nothingLeft()
}

func TestAnInterruptEndsTheInstancesAndLeavesNothing(t *testing.T) {
	for _, text := range []string{"A is process", "B is process", "killing"} {
		t.Run(text, func(t *testing.T) {
			noStreams := check.Server(t)
			ctx, cancel := context.WithCancel(t.Context())
			require.ErrorIs(t, run(ctx, nil, &check.CancelOn{Text: text, Cancel: cancel}), context.Canceled)
			noStreams()
		})
	}
}

func TestInstancesThatCannotWorkAreReported(t *testing.T) {
	t.Setenv("NATS_URL", "nats://user:secret@127.0.0.1:1\n")
	services, err := instances.Start(t.Context(), natty.Config{}, io.Discard, []string{"A"}, instanceSubject+"=a")
	require.NoError(t, err)
	require.EqualError(t, services.Follow(nil, func() bool { return false }), "all instances have ended")
	require.EqualError(t, services.Close(), "instance A: exit status 1")
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

func TestTheCodecRefusesOtherTypes(t *testing.T) {
	t.Parallel()
	codec := protobuf[*wrapperspb.Int64Value]{}
	_, err := codec.Marshal(wrapperspb.String("x"))
	require.EqualError(t, err, "expected a *wrapperspb.Int64Value")
	require.EqualError(t, codec.Unmarshal(nil, wrapperspb.Int64(1)), "expected a **wrapperspb.Int64Value")
	var got *wrapperspb.Int64Value
	require.Error(t, codec.Unmarshal([]byte{0xff}, &got))
	data, err := codec.Marshal(wrapperspb.Int64(7))
	require.NoError(t, err)
	require.NoError(t, codec.Unmarshal(data, &got))
	require.EqualValues(t, 7, got.GetValue())
}

func TestAccountFindsARequestThatWasLost(t *testing.T) {
	t.Parallel()
	a := &account{by: map[string]int{}}
	for n := int64(3); n <= requests; n++ {
		a.note(answer{square: wrapperspb.Int64(n * n), by: "B", tries: 2})
		a.store(n * n)
	}
	require.EqualError(t, a.print(io.Discard), "2 requests were lost")
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, io.Discard) })
}

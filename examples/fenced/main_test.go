//go:build unix

package main

import (
	"bytes"
	"context"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
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

func TestAPausedLeaderIsRefusedEverything(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	first, second := "A", "B"
	if strings.Contains(printed, "pausing B") {
		first, second = "B", "A"
	}
	for _, place := range []string{"NATS", "the storage"} {
		require.GreaterOrEqual(t, check.Number(t, printed, first+": refused by "+place), stubborn)
		require.GreaterOrEqual(t, check.Number(t, printed, first+": written to "+place)+1, enough)
		require.GreaterOrEqual(t, check.Number(t, printed, second+": written to "+place)+1, 2*enough)
	}
	require.Equal(t, 0, check.Number(t, printed, first+": written after the pause"))
}

func TestAnInterruptLeavesNothingOnTheServer(t *testing.T) {
	for _, text := range []string{"B is process", "leads", "pausing", "goes on"} {
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

func TestTheStorageRefusesASmallerToken(t *testing.T) {
	t.Parallel()
	s := &storage{}
	server := httptest.NewServer(s)
	defer server.Close()
	require.NoError(t, store(t.Context(), server.URL, 7, "a"))
	require.NoError(t, store(t.Context(), server.URL, 9, "b"))
	err := store(t.Context(), server.URL, 7, "c")
	require.ErrorIs(t, err, natty.ErrDeposed)
	require.ErrorContains(t, err, "there is a later leader, with token 9")
	require.Equal(t, "b", s.read())
}

func TestAccountFindsALateWrite(t *testing.T) {
	t.Parallel()
	a := &account{out: &bytes.Buffer{}, stored: &storage{state: "3 of token 1"}, inNATS: []byte("2 of token 5")}
	for _, line := range []string{"A leads 1", "A nats written 1 1 10", "A storage written 1 1 10"} {
		name, what, _ := strings.Cut(line, " ")
		a.note(name, what)
	}
	a.first, a.second, a.resumed = "A", "B", time.Unix(0, 20)
	for _, line := range []string{
		"B leads 5", "B nats written 5 2 15", "B storage written 5 2 15", "A nats refused 1 3 25", "A storage written 1 3 25", "A gave up", "B what",
	} {
		name, what, _ := strings.Cut(line, " ")
		a.note(name, what)
	}
	var out bytes.Buffer
	a.out = &out
	require.EqualError(t, a.print(), "the storage has refused nothing\nthe storage has 3 of token 1, and not 2 of token 5\nA has written 1 times after the pause")
	require.Equal(t, 1, check.Number(t, out.String(), "A: refused by NATS"))
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, io.Discard) })
}

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty/examples/internal/check"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func writeFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "orders.csv")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	return file
}

func TestBadOrdersAreRefusedWithTheLineAndARemedy(t *testing.T) {
	t.Parallel()
	const header = columns + "\n"
	for name, test := range map[string]struct{ content, want string }{
		"empty":            {"", "orders.csv: there are no orders in it; write the line"},
		"header only":      {header, "there are no orders in it"},
		"other header":     {"id,name\nA-1,Ada\n", `orders.csv:1: the header is "id,name"; make it "id,customer,`},
		"too few fields":   {header + "A-1,Ada,Cup,1,100\nA-2,Ada,Cup\n", "orders.csv:3: 3 fields; write 5: id,customer"},
		"no id":            {header + ",Ada,Cup,1,100\n", "orders.csv:2: the id is empty; give"},
		"same id":          {header + "A-1,Ada,Cup,1,100\nA-2,Ada,Cup,1,100\nA-1,Bo,Cup,1,100\n", `orders.csv:4: the id "A-1" is taken by line 2; give`},
		"quantity in text": {header + "A-1,Ada,Cup,two,100\n", `orders.csv:2: the quantity is "two"; write a whole number`},
		"quantity of zero": {header + "A-1,Ada,Cup,0,100\n", `the quantity is "0"; write`},
		"price with point": {header + "A-1,Ada,Cup,1,1.50\n", `the cents are "1.50"; write`},
		"open quote":       {header + "A-1,Ada,\"Cup,1,100\n", "orders.csv:2: extraneous or missing \" in quoted-field; put"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := run(t.Context(), []string{writeFile(t, test.content)}, &bytes.Buffer{})
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestMissingFileIsReportedWithTheColumnsExpected(t *testing.T) {
	t.Parallel()
	err := run(t.Context(), []string{filepath.Join(t.TempDir(), "none.csv")}, &bytes.Buffer{})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, columns)
}

func TestMoreThanOneArgumentIsRefused(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run(t.Context(), []string{"a", "b"}, &bytes.Buffer{}), "usage: quickstart")
}

func TestUnreachableServerIsReported(t *testing.T) {
	t.Setenv("NATS_URL", "nats://127.0.0.1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, run(ctx, nil, &bytes.Buffer{}), "nats://127.0.0.1:1")
}

func TestEveryOrderIsProcessedWithTheServerInside(t *testing.T) {
	nothingLeft := check.ServerInside(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, 70, check.Number(t, printed, "published"))
	require.Equal(t, 70, check.Number(t, printed, "processed"))
	require.Equal(t, 10, check.Number(t, printed, "retried"))
	require.Equal(t, 0, check.Number(t, printed, "handled twice"))
	require.Equal(t, 0, check.Number(t, printed, "lost"))
	require.Equal(t, 10, strings.Count(printed, "out of paper"))
	nothingLeft()
}

func TestOneOrderFromAFileOnAnotherServerLeavesNothingThere(t *testing.T) {
	noStreams := check.Server(t)
	file := writeFile(t, "\ufeff"+columns+"\nA-1,\"Lovelace, Ada\",Cup,1,100\n")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{file}, &out))
	require.Equal(t, 1, check.Number(t, out.String(), "processed"))
	require.Equal(t, 0, check.Number(t, out.String(), "lost"))
	noStreams()
}

func TestAnInterruptHalfWaySaysWhatWasNotProcessedAndCleansUp(t *testing.T) {
	noStreams := check.Server(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := check.CancelOn{Text: "restarting", Cancel: cancel}
	err := run(ctx, nil, &out)
	require.ErrorIs(t, err, context.Canceled)
	lost := check.Number(t, out.String(), "lost")
	require.Positive(t, lost)
	require.Equal(t, 70-lost, check.Number(t, out.String(), "processed"))
	require.ErrorContains(t, err, fmt.Sprintf("%d orders were not processed", lost))
	noStreams()
}

func TestAccountFindsWhatWasLostAndWhatWasHandledTwice(t *testing.T) {
	t.Parallel()
	orders := []order{{ID: "A"}, {ID: "B"}, {ID: "C"}}
	a := newAccount(orders)
	message := func(id string) *nats.Msg { return &nats.Msg{Data: []byte(`{"id":"` + id + `"}`)} }
	for _, id := range []string{"A", "C", "C"} {
		require.NoError(t, a.handle(t.Context(), message(id)))
	}
	var out bytes.Buffer
	require.ErrorContains(t, a.print(&out), "1 orders were not processed, the first of them: B")
	require.Equal(t, 2, check.Number(t, out.String(), "processed"))
	require.Equal(t, 1, check.Number(t, out.String(), "handled twice"))
	require.Equal(t, 1, check.Number(t, out.String(), "lost"))
}

func TestHandlerStopsWorkingWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := newAccount([]order{{ID: "A"}})
	require.ErrorIs(t, a.handle(ctx, &nats.Msg{Data: []byte(`{"id":"A"}`)}), context.Canceled)
	require.Zero(t, a.done())
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, io.Discard) })
}

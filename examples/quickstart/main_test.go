package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty/nattytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func writeFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "orders.csv")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	return file
}

// number returns what the printed account says about something.
func number(t *testing.T, printed, what string) int {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + what + ` +(\d+)$`).FindStringSubmatch(printed)
	require.NotNil(t, found, "no %q in:\n%s", what, printed)
	n, err := strconv.Atoi(found[1])
	require.NoError(t, err)
	return n
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
	t.Setenv("NATS_URL", "")
	t.Setenv("TMPDIR", t.TempDir()) // where the server keeps its store
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, 70, number(t, printed, "published"))
	require.Equal(t, 70, number(t, printed, "processed"))
	require.Equal(t, 10, number(t, printed, "retried"))
	require.Equal(t, 0, number(t, printed, "handled twice"))
	require.Equal(t, 0, number(t, printed, "lost"))
	require.Equal(t, 10, strings.Count(printed, "out of paper"))
	left, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	require.Empty(t, left, "the server's store is removed")
}

// useServer starts a server beside run's own and points the environment at it.
func useServer(t *testing.T) jetstream.JetStream {
	t.Helper()
	server := nattytest.Server(t, nattytest.ClientCerts())
	files := server.Files()
	t.Setenv("NATS_URL", server.URL())
	t.Setenv("NATTY_CA", files.CA)
	t.Setenv("NATTY_CERT", files.Cert)
	t.Setenv("NATTY_KEY", files.Key)
	nc, err := nats.Connect(server.URL(), nats.RootCAs(files.CA), nats.ClientCert(files.Cert, files.Key))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	return js
}

func requireNoStreams(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	info, err := js.AccountInfo(t.Context())
	require.NoError(t, err)
	require.Zero(t, info.Streams, "the stream is deleted at the end")
}

func TestOneOrderFromAFileOnAnotherServerLeavesNothingThere(t *testing.T) {
	js := useServer(t)
	file := writeFile(t, "\ufeff"+columns+"\nA-1,\"Lovelace, Ada\",Cup,1,100\n")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{file}, &out))
	require.Equal(t, 1, number(t, out.String(), "processed"))
	require.Equal(t, 0, number(t, out.String(), "lost"))
	requireNoStreams(t, js)
}

// cancelOn cancels when something is printed.
type cancelOn struct {
	bytes.Buffer
	text   string
	cancel context.CancelFunc
}

func (w *cancelOn) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(w.text)) {
		w.cancel()
	}
	return w.Buffer.Write(p)
}

func TestAnInterruptHalfWaySaysWhatWasNotProcessedAndCleansUp(t *testing.T) {
	js := useServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := cancelOn{text: "restarting", cancel: cancel}
	err := run(ctx, nil, &out)
	require.ErrorIs(t, err, context.Canceled)
	lost := number(t, out.String(), "lost")
	require.Positive(t, lost)
	require.Equal(t, 70-lost, number(t, out.String(), "processed"))
	require.ErrorContains(t, err, fmt.Sprintf("%d orders were not processed", lost))
	requireNoStreams(t, js)
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
	require.Equal(t, 2, number(t, out.String(), "processed"))
	require.Equal(t, 1, number(t, out.String(), "handled twice"))
	require.Equal(t, 1, number(t, out.String(), "lost"))
}

func TestHandlerStopsWorkingWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := newAccount([]order{{ID: "A"}})
	require.ErrorIs(t, a.handle(ctx, &nats.Msg{Data: []byte(`{"id":"A"}`)}), context.Canceled)
	require.Zero(t, a.done())
}

// Package check is what the tests of the examples share.
package check

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/natty-go/natty/nattytest"
)

// Number returns what a printed account says about something.
func Number(t *testing.T, printed, what string) int {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + what + ` +(\d+)$`).FindStringSubmatch(printed)
	if found == nil {
		t.Fatalf("no %q in:\n%s", what, printed)
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Main runs the tests of a program of which several may run at a time: each starts its own server, in a folder in which nothing
// must be left at the end.
func Main(m *testing.M) {
	dir, err := os.MkdirTemp("", "examples-")
	if err != nil {
		fail(err)
	}
	for name, value := range map[string]string{"TMPDIR": dir, "NATS_URL": ""} {
		if err := os.Setenv(name, value); err != nil {
			fail(err)
		}
	}
	// A server that stops while it creates a stream leaves the goroutines of the stream's store behind, seen with 2.15.2 when a
	// program is told to stop while it sets itself up. The leak is the server's.
	const natsServer = "github.com/nats-io/nats-server/v2/server"
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction(natsServer+".(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction(natsServer+"/ats.Register.func1"),
		goleak.Cleanup(func(code int) {
			if err := os.Remove(dir); err != nil { // fails if it is not empty
				fail(err)
			}
			os.Exit(code)
		}))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// ServerInside lets the program start its own server, in a folder of its own. The function it returns fails the test if
// anything is left in that.
func ServerInside(t *testing.T) (nothingLeft func()) {
	t.Helper()
	t.Setenv("NATS_URL", "")
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	return func() {
		t.Helper()
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Fatalf("left in the folder for temporary files: %v, %v", left, err)
		}
	}
}

// Server starts a server beside the program's own and points the environment at it. The function it returns fails the
// test if there is a stream.
func Server(t *testing.T) (noStreams func()) {
	t.Helper()
	_, noStreams = connected(t)
	return noStreams
}

// Interrupted runs a program on a server beside it, and interrupts it while the server makes its first stream. It fails the test
// if there is a stream afterwards.
func Interrupted(t *testing.T, program func(ctx context.Context) error) {
	t.Helper()
	nc, noStreams := connected(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	if _, err := nc.Subscribe("$JS.API.STREAM.CREATE.>", func(*nats.Msg) { interrupt() }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := program(ctx); ctx.Err() == nil {
		t.Fatalf("it has made no stream: %v", err)
	}
	noStreams()
}

func connected(t *testing.T) (nc *nats.Conn, noStreams func()) {
	t.Helper()
	server := nattytest.Server(t, nattytest.ClientCerts())
	files := server.Files()
	t.Setenv("NATS_URL", server.URL())
	t.Setenv("NATTY_CA", files.CA)
	t.Setenv("NATTY_CERT", files.Cert)
	t.Setenv("NATTY_KEY", files.Key)
	nc, err := nats.Connect(server.URL(), nats.RootCAs(files.CA), nats.ClientCert(files.Cert, files.Key))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, func() {
		t.Helper()
		info, err := js.AccountInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.Streams > 0 {
			t.Fatalf("%d streams are left on the server", info.Streams)
		}
	}
}

// CancelOn is an output that calls Cancel when Text is printed.
type CancelOn struct {
	bytes.Buffer
	Text   string
	Cancel context.CancelFunc
}

// Write is called by one goroutine at a time.
func (w *CancelOn) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(w.Text)) {
		w.Cancel()
	}
	return w.Buffer.Write(p)
}

package nattywatermill_test

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty/nattytest"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == restartArg {
		os.Exit(askForRestart(os.Args[2]))
	}
	// The tests wait more than they compute: run more of them at once than there are
	// CPUs.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = flag.Set(f.Name, strconv.Itoa(4*runtime.GOMAXPROCS(0)))
	}
	const (
		suite      = "github.com/ThreeDotsLabs/watermill"
		natsServer = "github.com/nats-io/nats-server/v2/server"
	)
	goleak.VerifyTestMain(m,
		// The suite's own: it never closes a channel that it ranges over, and leaves
		// messages that it has taken to nobody.
		goleak.IgnoreTopFunction(suite+"/pubsub/tests.TestReconnect.func2"),
		goleak.IgnoreAnyFunction(suite+"/internal/subscriber.(*multiplier).Subscribe.func2"),
		goleak.IgnoreAnyFunction(suite+"/internal/subscriber.(*multiplier).Subscribe.func3"),
		// nats-server's own; see internal/testkit.
		goleak.IgnoreAnyFunction(natsServer+".(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction(natsServer+"/ats.Register.func1"),
	)
}

// Watermill's suite restarts the server with a command. This program is the command: it
// asks the test process, in which the server runs.
const restartArg = "restart-the-server-at"

// restartCommand returns a command that restarts node and ends when that is done.
func restartCommand(t *testing.T, node *nattytest.Node) []string {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if err := node.Restart(); err != nil {
				fmt.Fprint(conn, err)
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return []string{self, restartArg, listener.Addr().String()}
}

// askForRestart is the command. It returns the exit code.
func askForRestart(addr string) int {
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer conn.Close()
	answer, err := io.ReadAll(conn)
	if err != nil || len(answer) > 0 {
		fmt.Fprintln(os.Stderr, string(answer), err)
		return 1
	}
	return 0
}

//go:build unix

package faulttest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// What a process of its own does is said in its environment: a role, and the server's URL.
const (
	envRole = "NATTY_TEST_ROLE"
	envURL  = "NATTY_TEST_SERVER"
)

// child is another process of this test's program. It reports lines on its standard output.
type child struct {
	t     testing.TB
	cmd   *exec.Cmd
	lines chan string // closed with its output
}

// spawn starts a process that runs TestChildProcess in a role. It ends with the test, at the latest.
func spawn(t testing.TB, role, url string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildProcess$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), envRole+"="+role, envURL+"="+url)
	cmd.Stderr = os.Stderr
	_, err := cmd.StdinPipe() // its end is how the child learns of this process's
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	c := &child{t: t, cmd: cmd, lines: make(chan string, 1<<16)}
	var read sync.WaitGroup
	read.Go(func() {
		defer close(c.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			if line, ok := strings.CutPrefix(in.Text(), "@"); ok {
				c.lines <- line
			}
		}
	})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		read.Wait()
		_ = cmd.Wait()
	})
	return c
}

// signal returns when it began.
func (c *child) signal(s syscall.Signal) time.Time {
	c.t.Helper()
	at := time.Now()
	require.NoError(c.t, c.cmd.Process.Signal(s))
	return at
}

// expect waits for a line that begins with a word and returns the numbers in it, and all lines before.
func (c *child) expect(word string) (numbers []int64, before []string) {
	c.t.Helper()
	for began := time.Now(); ; {
		line := testkit.Receive(c.t, c.lines)
		require.Less(c.t, time.Since(began), testkit.Patience, "no %s, but %s", word, line)
		if first, _, _ := strings.Cut(line, " "); first == word {
			return numbersOf(c.t, line), before
		}
		before = append(before, line)
	}
}

func numbersOf(t testing.TB, line string) (numbers []int64) {
	t.Helper()
	for _, field := range strings.Fields(line)[1:] {
		var n int64
		_, err := fmt.Sscan(field, &n)
		require.NoError(t, err, line)
		numbers = append(numbers, n)
	}
	return numbers
}

// report is for the parent.
func report(word string, numbers ...int64) {
	_, _ = fmt.Println("@"+word, strings.Trim(fmt.Sprint(numbers), "[]")) //nolint:forbidigo // to the parent
}

// TestChildProcess is what the other processes run.
func TestChildProcess(t *testing.T) {
	role := os.Getenv(envRole)
	if role == "" {
		t.Skip("for the processes that other tests start")
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	switch role {
	case "leader":
		c := testkit.ConnectTo(t, os.Getenv(envURL))
		require.NoError(t, c.Lead(context.Background(), testkit.Electing("child"), writeAlways))
	case "standbys":
		beIdle(t, os.Getenv(envURL))
	}
}

// writeAlways puts, whatever its ctx says, until it was refused often.
func writeAlways(ctx context.Context, term *natty.Term) error {
	report("leads", int64(term.Token()), time.Now().UnixNano())
	ended := make(chan int64, 1)
	context.AfterFunc(ctx, func() { ended <- time.Now().UnixNano() })
	refused := 0
	for n := 0; refused < 20; n++ {
		began := time.Now().UnixNano()
		err := term.Put(context.Background(), "state", fmt.Append(nil, term.Token(), " ", n))
		outcome := "put"
		if err != nil {
			outcome = "failed"
		}
		if errors.Is(err, natty.ErrDeposed) {
			outcome = "refused"
			refused++
		}
		report(outcome, began, time.Now().UnixNano())
	}
	report("done", <-ended)
	return nil
}

func TestCrashedLeaderIsFollowedAfterTheTTL(t *testing.T) {
	t.Parallel()
	for round := range seeds(t, 1) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			first := spawn(t, "leader", server.URL())
			first.expect("leads")
			r := &testkit.Reign{T: t}
			testkit.Lead(t, testkit.ConnectTo(t, server.URL()), testkit.Electing("next"), r.Lead("next", nil))
			<-time.After(testkit.LeaseTTL/2 + time.Duration(round%8)*testkit.LeaseTTL/24) // at different times after a renewal
			at := first.signal(syscall.SIGKILL)
			testkit.Eventually(t, func() bool { return r.Count() == 1 }, "the next one leads")
			r.Mu.Lock()
			took := r.Began[0].Sub(at)
			r.Mu.Unlock()
			t.Logf("followed after %v", took)
			assert.Greater(t, took, testkit.LeaseTTL/3, "not before it could have expired")
			assert.Less(t, took, testkit.LeaseTTL+2*time.Second, "TTL + 0.5s, on a machine that is not busy")
		})
	}
}

func TestPausedLeaderWritesNothingWhenItGoesOn(t *testing.T) {
	t.Parallel()
	for round := range seeds(t, 1) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			direct := testkit.ConnectTo(t, server.URL())
			paused := spawn(t, "leader", server.URL())
			leads, _ := paused.expect("leads")
			history := watchState(t, direct)
			terms := make(chan *natty.Term, 1)
			testkit.Lead(t, testkit.ConnectTo(t, server.URL()), testkit.Electing("second"), func(ctx context.Context, term *natty.Term) error {
				if err := term.Put(ctx, "state", fmt.Append(nil, term.Token(), " 0")); err != nil {
					t.Error(err)
				}
				terms <- term
				<-ctx.Done()
				return nil
			})
			paused.expect("put")
			<-time.After(100*time.Millisecond + time.Duration(round)*777*time.Microsecond) // at different times in a Put
			stopped := paused.signal(syscall.SIGSTOP)
			second := testkit.Receive(t, terms)
			<-time.After(2*testkit.LeaseTTL - time.Since(stopped))
			went := paused.signal(syscall.SIGCONT)

			ended, before := paused.expect("done")
			for _, line := range before {
				if n := numbersOf(t, line); n[0] > went.UnixNano() {
					assert.NotRegexp(t, "^put", line, "a write that began when it went on")
				}
			}
			late := time.Duration(ended[0] - went.UnixNano())
			t.Logf("its ctx ended %v after it went on", late)
			assert.Positive(t, late)
			assert.Less(t, late, time.Second)
			require.NoError(t, second.Put(testkit.Ctx(t), "state", fmt.Append(nil, second.Token(), " 1")))
			assertValid(t, history, leads[0], int64(second.Token()))
		})
	}
}

// watchState returns what is written to the key "state", in the server's order.
func watchState(t testing.TB, c *natty.Client) <-chan string {
	t.Helper()
	kv, err := c.JetStream().KeyValue(testkit.Ctx(t), "elections")
	require.NoError(t, err)
	w, err := kv.Watch(testkit.Ctx(t), "state", jetstream.IncludeHistory())
	require.NoError(t, err)
	values := make(chan string, 1<<16)
	var read sync.WaitGroup
	read.Go(func() {
		for entry := range w.Updates() {
			if entry != nil {
				values <- string(entry.Value())
			}
		}
	})
	t.Cleanup(func() { _ = w.Stop(); read.Wait() })
	return values
}

// assertValid reads what was written until the second leader's last value: first the one's alone, then the other's.
func assertValid(t testing.TB, values <-chan string, first, second int64) {
	t.Helper()
	now, writes := first, 0
	for {
		value := testkit.Receive(t, values)
		var token, n int64
		_, err := fmt.Sscan(value, &token, &n)
		require.NoError(t, err, value)
		if token == second {
			now = second
		}
		require.Equal(t, now, token, "only the leader's writes are kept")
		writes++
		if token == second && n == 1 {
			t.Logf("%d writes", writes)
			return
		}
	}
}

const standbys = 10

// beIdle stands by ten times, and reports what 5 s of that cost.
func beIdle(t *testing.T, url string) {
	t.Helper()
	var clients []*natty.Client
	sent := func() (n uint64) {
		for _, c := range clients {
			n += c.Conn().Stats().OutMsgs
		}
		return n
	}
	for i := range standbys {
		c := testkit.ConnectTo(t, url)
		clients = append(clients, c)
		testkit.Lead(t, c, testkit.Electing(fmt.Sprint(i)), func(ctx context.Context, _ *natty.Term) error { <-ctx.Done(); return nil })
	}
	<-time.After(time.Second)
	before, used := sent(), cpu(t)
	<-time.After(5 * time.Second)
	report("idle", int64(cpu(t)-used), int64(sent()-before))
	<-t.Context().Done()
}

// cpu is how long this process has computed.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestStandbysCostNothing(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	r := &testkit.Reign{T: t}
	testkit.Lead(t, testkit.ConnectTo(t, server.URL()), testkit.Electing("leader"), r.Lead("leader", nil))
	testkit.Eventually(t, func() bool { return r.Count() == 1 }, "there is a leader")
	idle, _ := spawn(t, "standbys", server.URL()).expect("idle")
	used := time.Duration(idle[0])
	t.Logf("%d standbys: %v of CPU in 5s, %.2f %% of a core; %d messages sent", standbys, used, used.Seconds()/5*100, idle[1])
	assert.Zero(t, idle[1], "they sent nothing")
	assert.Less(t, used, 250*time.Millisecond, "0.5 % of a core is 25ms, without the race detector")
}

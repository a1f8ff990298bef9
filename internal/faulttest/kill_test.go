//go:build unix

package faulttest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/consumer"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// The tests of this file kill processes: the test binary starts itself as a worker that consumes from the test's server.

// workerJob is the environment variable that holds a worker's job.
const workerJob = "NATTY_TEST_WORKER"

// job is what a worker does.
type job struct {
	URL       string
	Consumer  natty.ConsumerConfig
	PinnedTTL time.Duration
	Work      time.Duration // a handler takes up to twice as long,
	Long      time.Duration // and one of two thousand so much longer
	Poison    []string      // the bodies of messages that end the process
}

// event is what a worker tells of a message.
type event struct {
	who      int
	what     string // begun, done or failed
	sequence uint64
	attempt  int
	at       time.Time
	floor    int64 // the acknowledgement floor; see the two below
	paused   bool  // see crew.markPaused
}

const (
	notAsked = -1
	noAnswer = -2
)

// TestWorkerProcess is no test, but what workers run.
func TestWorkerProcess(t *testing.T) {
	text, is := os.LookupEnv(workerJob)
	if !is {
		t.Skip("it is for processes that other tests start")
	}
	var j job
	require.NoError(t, json.Unmarshal([]byte(text), &j))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends when the test says so, or is gone
		cancel()
		<-time.After(testkit.Patience)
		os.Exit(1)
	}()
	if err := consumeAs(ctx, j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func consumeAs(ctx context.Context, j job) error {
	c, err := natty.Connect(ctx, natty.Config{Name: "test", Servers: []string{j.URL}}, testkit.Quiet)
	if ctx.Err() != nil {
		return nil // it was stopped
	}
	if err != nil {
		return err
	}
	defer func() {
		brief, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.Close(brief) // it may be cut off
	}()
	cfg := j.Consumer
	cfg.Backoff = natty.Backoff{Min: time.Millisecond}
	return c.Process(consumer.WithPinnedTTL(ctx, j.PinnedTTL), cfg, j.handler(c))
}

// handler returns a Handler that tells what it does.
func (j job) handler(c *natty.Client) natty.Handler {
	var last natty.Delivery // these two are for Exclusive, where there is one handler at a time
	var at time.Time
	return func(ctx context.Context, msg *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		floor := int64(notAsked)
		if j.Consumer.Exclusive {
			if d.Sequence != last.Sequence+1 || time.Since(at) > j.PinnedTTL/4 { // it may have become the active one
				floor = askFloor(ctx, c, d)
			}
			last, at = d, time.Now()
		}
		tell("begun", d, floor)
		if slices.Contains(j.Poison, string(msg.Data)) {
			if d.Attempt%2 == 0 {
				os.Exit(0)
			}
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		work := rand.N(2*j.Work + 1)
		if d.Sequence%2000 == 700 {
			work += j.Long
		}
		err := works(work)(ctx, msg)
		if err != nil {
			tell("failed", d, notAsked)
			return err
		}
		tell("done", d, notAsked) // before it is acknowledged
		return nil
	}
}

// tell writes an event to the test: what is in the pipe outlives this process.
func tell(what string, d natty.Delivery, floor int64) {
	if _, err := fmt.Fprintln(os.Stdout, what, d.Sequence, d.Attempt, time.Now().UnixNano(), floor); err != nil {
		os.Exit(1) // the test is gone
	}
}

func askFloor(ctx context.Context, c *natty.Client, d natty.Delivery) int64 {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	cons, err := c.JetStream().Consumer(ctx, d.Stream, d.Durable)
	if err != nil {
		return noAnswer
	}
	return int64(cons.CachedInfo().AckFloor.Stream)
}

// worker is such a process.
type worker struct {
	id     int
	cmd    *exec.Cmd
	stdin  io.Closer
	stderr bytes.Buffer
	ended  chan struct{} // closed when it has, and everything it told was heard
	died   time.Time     // before that
	killed bool          // the test's

	mu     sync.Mutex
	pauses []pause
}

// pause is a time for which a process was stopped.
type pause struct{ from, to time.Time }

// crew starts workers, and keeps what they tell.
type crew struct {
	t   testing.TB
	job job

	mu      sync.Mutex
	workers []*worker
	events  []event
	done    map[uint64]bool
}

func newCrew(t testing.TB, j job) *crew { return &crew{t: t, job: j, done: map[uint64]bool{}} }

// start starts a worker that connects to url.
func (c *crew) start(url string) *worker {
	c.t.Helper()
	j := c.job
	j.URL = url
	text, err := json.Marshal(j)
	require.NoError(c.t, err)
	w := &worker{id: len(c.workers), ended: make(chan struct{})}
	w.cmd = exec.Command(os.Args[0], "-test.run=^TestWorkerProcess$")
	w.cmd.Env = append(os.Environ(), workerJob+"="+string(text), "GORACE=atexit_sleep_ms=0")
	w.cmd.Stderr = &w.stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{}
	if f := reflect.ValueOf(w.cmd.SysProcAttr).Elem().FieldByName("Pdeathsig"); f.IsValid() { // on Linux: it dies with the test
		f.SetInt(int64(syscall.SIGKILL))
	}
	w.stdin, err = w.cmd.StdinPipe()
	require.NoError(c.t, err)
	stdout, err := w.cmd.StdoutPipe()
	require.NoError(c.t, err)
	require.NoError(c.t, w.cmd.Start())
	c.mu.Lock()
	c.workers = append(c.workers, w)
	c.mu.Unlock()
	go func() {
		defer close(w.ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			c.hear(w, lines.Text())
		}
		w.died = time.Now()
		_ = w.cmd.Wait() // killed, most of the time
		// A panic, or what the race detector says.
		assert.Empty(c.t, w.stderr.String())
	}()
	c.t.Cleanup(w.kill)
	return w
}

func (c *crew) hear(w *worker, line string) {
	e := event{who: w.id}
	var at int64
	if _, err := fmt.Sscan(line, &e.what, &e.sequence, &e.attempt, &at, &e.floor); !assert.NoError(c.t, err, "%q", line) {
		return
	}
	e.at = time.Unix(0, at)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
	if e.what == "done" {
		c.done[e.sequence] = true
	}
}

// handled returns how many messages were.
func (c *crew) handled() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.done)
}

// active returns who handled a message last.
func (c *crew) active() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.events) == 0 {
		return -1
	}
	return c.events[len(c.events)-1].who
}

// told returns what all workers told, in the order in which it happened.
func (c *crew) told() []event {
	c.mu.Lock()
	defer c.mu.Unlock()
	events := slices.Clone(c.events)
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })
	return events
}

// kill ends the process without a warning, if it still runs.
func (w *worker) kill() {
	select {
	case <-w.ended:
		return
	default:
	}
	w.killed = true
	_ = w.cmd.Process.Kill()
	<-w.ended
}

// pause stops the process for a while.
func (w *worker) pause(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resumeLocked()
	w.pauses = append(w.pauses, pause{from: time.Now()})
	_ = w.cmd.Process.Signal(syscall.SIGSTOP)
	time.AfterFunc(d, w.resume)
}

func (w *worker) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resumeLocked()
}

func (w *worker) resumeLocked() {
	if n := len(w.pauses); n > 0 && w.pauses[n-1].to.IsZero() {
		w.pauses[n-1].to = time.Now()
		_ = w.cmd.Process.Signal(syscall.SIGCONT)
	}
}

// stop lets the process end by itself.
func (w *worker) stop(t testing.TB) {
	t.Helper()
	w.resume()
	require.NoError(t, w.stdin.Close())
	testkit.Receive(t, w.ended)
	assert.Zero(t, w.cmd.ProcessState.ExitCode())
}

func TestProcessesThatAreKilledLoseNothing(t *testing.T) {
	t.Parallel()
	kills := number(t, "NATTY_KILLS", 10)
	n := 2000 * kills
	const held = 200
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	fillAsync(t, c, "s", n)
	crew := newCrew(t, job{Work: time.Millisecond, Consumer: natty.ConsumerConfig{
		Subjects: []string{"s"}, Concurrency: 4, MaxPollRecords: held, AckWait: 5 * time.Second,
	}})
	var workers [3]*worker
	for i := range workers {
		workers[i] = crew.start(server.URL())
	}
	for i := range kills {
		testkit.Eventually(t, func() bool { return crew.handled() >= (i+1)*n/(kills+1) }, "%d are handled", (i+1)*n/(kills+1))
		victim := rand.IntN(len(workers))
		workers[victim].kill()
		workers[victim] = crew.start(server.URL())
	}
	testkit.Eventually(t, func() bool { return crew.handled() == n }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "and acknowledged")
	for _, w := range workers {
		w.stop(t)
	}
	repeats, oldest := crew.checkRepeats()
	assert.LessOrEqual(t, repeats, kills*held)
	t.Logf("%d messages, %d kills, %d handled again, at most the last %d of a process that was killed", n, kills, repeats, oldest)
}

// checkRepeats checks that what was handled again was handled before by processes that were killed, and returns how many
// those were, and how long before its end such a process had handled them at most: it told of so many messages since.
func (c *crew) checkRepeats() (repeats, oldest int) {
	c.t.Helper()
	events := slices.DeleteFunc(c.told(), func(e event) bool { return e.what != "done" })
	slices.Reverse(events)
	last := map[uint64]int{} // who handled a message last
	since := make([]int, len(c.workers))
	for _, e := range events {
		since[e.who]++
		later, again := last[e.sequence]
		last[e.sequence] = e.who
		if !again {
			continue
		}
		repeats++
		oldest = max(oldest, since[e.who])
		assert.NotEqual(c.t, e.who, later, "message %d twice in one process", e.sequence)
		assert.True(c.t, c.workers[e.who].killed, "message %d, which was handled again by process %d", e.sequence, later)
	}
	return repeats, oldest
}

// A process that dies adds a delivery to all that it held, and not to the message alone that killed it.
func TestMessagesThatKillTheirProcessesGoToTheDeadLettersAndAllOthersAreHandled(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		n           int
		poison      []string
		concurrency int
		work        time.Duration
	}{
		"beside others that take longer":          {n: 40, poison: []string{"20"}, concurrency: 4, work: 50 * time.Millisecond},
		"several, before others that are waiting": {n: 4000, poison: []string{"500", "501", "505"}, concurrency: 1, work: 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			c := testkit.ConnectTo(t, server.URL())
			testkit.Ensure(t, c, "S", "s")
			testkit.Ensure(t, c, "DEAD", "dead")
			fillAsync(t, c, "s", tc.n)
			crew := newCrew(t, job{Poison: tc.poison, Work: tc.work, Consumer: natty.ConsumerConfig{
				Subjects: []string{"s"}, Concurrency: tc.concurrency, AckWait: 500 * time.Millisecond, MaxDeliver: 1, DeadLetter: "dead",
			}})
			deaths := crew.restart(server.URL(), func() bool {
				return testkit.Settled(c, "S", "test_s")() && len(testkit.Letters(t, c, "dead"))+crew.handled() >= tc.n
			})
			all := testkit.Letters(t, c, "dead")
			var given []string
			for _, l := range all {
				given = append(given, string(l.Data))
				assert.Contains(t, l.Reason, "it may kill the process")
				assert.Greater(t, l.Deliveries, 2*1+5+1)
			}
			assert.ElementsMatch(t, tc.poison, given)
			assert.Equal(t, tc.n-len(tc.poison), crew.handled())
			assert.Greater(t, deaths, 5, "or nearly as many: a slow machine lets AckWait pass")
			t.Logf("%d deaths", deaths)
		})
	}
}

// restart keeps a worker running until done holds, and returns how many ended by themselves.
func (c *crew) restart(url string, done func() bool) (deaths int) {
	c.t.Helper()
	w := c.start(url)
	testkit.Eventually(c.t, func() bool {
		select {
		case <-w.ended:
			deaths++
			w = c.start(url)
		default:
		}
		return done()
	}, "it comes to an end")
	w.stop(c.t)
	return deaths
}

func TestExclusiveMessageThatKillsItsProcessesGoesToTheDeadLetters(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	const n = 40
	testkit.Fill(t, c, "s", n)
	cfg := exclusively("s")
	cfg.AckWait, cfg.MaxDeliver, cfg.DeadLetter = 500*time.Millisecond, 1, "dead"
	crew := newCrew(t, job{Poison: []string{"30"}, PinnedTTL: time.Second, Consumer: cfg})
	deaths := crew.restart(server.URL(), func() bool { return crew.handled() == n-1 && testkit.Settled(c, "S", "test_s")() })
	all := testkit.Letters(t, c, "dead")
	require.Len(t, all, 1, "the innocent ones before it are not given up")
	assert.EqualValues(t, 31, all[0].Sequence)
	assert.Contains(t, all[0].Reason, "it may kill the process")
	assert.GreaterOrEqual(t, deaths, 2*cfg.MaxDeliver+5)
	crew.events = append(crew.events, event{who: len(crew.workers) - 1, what: "done", sequence: 31, at: all[0].Time})
	crew.checkOrder()
}

// lives returns what each worker told, and its end.
func (c *crew) lives() [][]event {
	lives := make([][]event, len(c.workers))
	for _, e := range c.told() {
		lives[e.who] = append(lives[e.who], e)
	}
	for _, w := range c.workers {
		lives[w.id] = append(lives[w.id], event{who: w.id, what: "dead", at: w.died})
	}
	return lives
}

// markPaused finds the turns that a process may have been paused in: with a message that it had begun, or was just about to.
func (w *worker) markPaused(life []event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.pauses {
		for i, e := range life {
			if e.what != "begun" {
				continue
			}
			if life[i+1].at.After(p.from) {
				life[i].paused = true
			}
			if e.at.After(p.to) && !p.to.IsZero() {
				break
			}
		}
	}
}

// checkOrder checks that Exclusive workers handled in order and one at a time, skipped nothing, and began again only behind
// what was acknowledged. A process that was paused may go on beside the next active one with the message in hand, and with
// no other. It returns how many turns were not the first of their message.
func (c *crew) checkOrder() (repeats int) {
	c.t.Helper()
	lives := c.lives()
	for _, w := range c.workers {
		w.markPaused(lives[w.id])
	}
	events := slices.Concat(lives...)
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })
	var top, last uint64 // handled, begun
	running, excused := map[int]event{}, map[int]uint64{}
	for _, e := range events {
		if e.what != "begun" {
			if e.what == "done" {
				top = max(top, e.sequence)
			}
			delete(running, e.who)
			continue
		}
		assert.LessOrEqual(c.t, e.sequence, top+1, "nothing is skipped")
		if e.sequence <= top {
			repeats++
		}
		if e.paused && (len(running) > 0 || e.sequence != last+1) {
			excused[e.who] = e.sequence
			continue
		}
		assert.Empty(c.t, running, "one at a time; %v", e)
		// Where it begins again. After that a late acknowledgement may overtake it.
		if e.sequence != last+1 && e.sequence != excused[e.who]+1 && e.floor != noAnswer {
			assert.NotEqual(c.t, int64(notAsked), e.floor, "in order; %v after %d", e, last)
			assert.Less(c.t, e.floor, int64(e.sequence), "nothing that was acknowledged comes again")
		}
		if !e.paused {
			running[e.who] = e
		}
		last = e.sequence
	}
	return repeats
}

// TestExclusiveProcessesSurviveChaos kills, pauses, stops, cuts off and freezes three processes at random. NATTY_SEEDS says
// how many times, with other seeds each.
func TestExclusiveProcessesSurviveChaos(t *testing.T) {
	t.Parallel()
	for seed := range number(t, "NATTY_SEEDS", 2) {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			t.Parallel()
			chaosOfProcesses(t, rand.New(rand.NewPCG(uint64(seed), 0)))
		})
	}
}

func chaosOfProcesses(t *testing.T, random *rand.Rand) {
	const steps, backlog = 20, 500 // so that there is always something that a former owner could go on with
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	retention := []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy, jetstream.InterestPolicy}[random.IntN(3)]
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: retention})
	require.NoError(t, err)
	cfg := exclusively("s")
	cfg.AckWait = time.Second
	crew := newCrew(t, job{PinnedTTL: pinnedTTL, Work: time.Millisecond, Long: pinnedTTL + pinnedTTL/2, Consumer: cfg})
	var links [3]*nattytest.Link
	var workers [3]*worker
	for i := range links {
		links[i] = nattytest.Proxy(t, server.URL())
		workers[i] = crew.start(links[i].URL())
	}
	t.Cleanup(func() {
		for _, l := range links {
			l.Thaw()
		}
	})
	testkit.Eventually(t, func() bool { _, err := s.Consumer(testkit.Ctx(t), "test_s"); return err == nil }, "the durable is there")
	fillAsync(t, c, "s", backlog)
	endPublishing := publishSteadily(t, c)
	done := map[string]int{}
	for range steps {
		i := random.IntN(3)
		if random.IntN(2) == 0 {
			i = max(0, slices.IndexFunc(workers[:], func(w *worker) bool { return w.id == crew.active() }))
		}
		what := []string{"kill", "stop", "cut", "freeze", "pause"}[random.IntN(5)]
		done[what]++
		switch what {
		case "kill":
			workers[i].kill()
			workers[i] = crew.start(links[i].URL())
		case "stop":
			workers[i].stop(t)
			workers[i] = crew.start(links[i].URL())
		case "cut":
			links[i].Cut()
		case "freeze":
			links[i].Freeze()
			time.AfterFunc(time.Duration(random.Int64N(int64(2*pinnedTTL))), links[i].Thaw)
		case "pause":
			workers[i].pause(time.Duration(random.Int64N(int64(2 * pinnedTTL))))
		}
		<-time.After(time.Duration(random.Int64N(int64(500 * time.Millisecond))))
	}
	n := backlog + endPublishing()
	for i, w := range workers {
		links[i].Thaw()
		w.resume()
	}
	testkit.Eventually(t, func() bool { return crew.handled() == n }, "all %d are handled", n)
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
	for _, w := range workers {
		w.stop(t)
	}
	t.Logf("%d messages, %d repeated, %v retention, %v", n, crew.checkOrder(), retention, done)
}

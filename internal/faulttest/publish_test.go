package faulttest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// storm publishes n messages from 16 goroutines, and goes on until end is closed. Every tenth has so little time that some
// fail.
func storm(t *testing.T, c *natty.Client, n int, hurry time.Duration, end <-chan struct{}) *results {
	t.Helper()
	var r results
	var next atomic.Int64
	var publishers sync.WaitGroup
	for range 16 {
		publishers.Go(func() {
			for i := next.Add(1); i <= int64(n) || !testkit.IsClosed(end); i = next.Add(1) {
				limit := testkit.Patience
				if i%10 == 0 {
					limit = rand.N(hurry)
				}
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				body := fmt.Sprint(i)
				ack, err := c.PublishMsg(ctx, &nats.Msg{Subject: "s", Data: []byte(body)})
				cancel()
				assert.True(t, err == nil || i%10 == 0, "%v", err)
				r.add(body, ack, err)
			}
		})
	}
	publishers.Wait()
	return &r
}

// during runs f again and again, with pauses of least to most, until stop is called.
func during(least, most time.Duration, f func()) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(least + rand.N(most-least)):
				f()
			}
		}
	}()
	return func() { close(end); <-done }
}

func TestPublishThroughAConnectionThatKeepsBreakingLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	s := testkit.Ensure(t, testkit.ConnectTo(t, node.URL()), "S", "s")
	proxy := nattytest.Proxy(t, node.URL())
	c := testkit.ConnectTo(t, proxy.URL())
	cuts, end := 0, make(chan struct{})
	stop := during(50*time.Millisecond, 200*time.Millisecond, func() {
		proxy.Cut()
		if cuts++; cuts == 10 {
			close(end)
		}
	})
	r := storm(t, c, 20_000, 5*time.Millisecond, end)
	stop()
	t.Logf("%d cuts, %d acknowledged, %d failed", cuts, len(r.acks), len(r.errs))
	assert.GreaterOrEqual(t, cuts, 10)
	r.verify(t, s)
}

func TestPublishWhileLeadersAreKilledLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
	require.NoError(t, err)
	done, end := make(chan *results, 1), make(chan struct{})
	go func() { done <- storm(t, c, 5000, 20*time.Millisecond, end) }()
	stop := sync.OnceFunc(func() { close(end) })
	defer stop()
	for range 3 {
		leader := cluster.StreamLeader("S")
		leader.Stop()
		require.NoError(t, leader.Restart())
		cluster.WaitReady()
	}
	stop()
	r := testkit.Receive(t, done)
	t.Logf("%d acknowledged, %d failed", len(r.acks), len(r.errs))
	r.verify(t, s)
}

// wire is a client behind a proxy, a stream, and a client that goes around the proxy.
type wire struct {
	c, direct *natty.Client
	proxy     *nattytest.Link
	s         jetstream.Stream
}

// newWire makes a wire with a stream of cfg for the subject "s".
func newWire(t *testing.T, cfg jetstream.StreamConfig) *wire {
	t.Helper()
	node := nattytest.Server(t)
	w := &wire{direct: testkit.ConnectTo(t, node.URL()), proxy: nattytest.Proxy(t, node.URL())}
	cfg.Name, cfg.Subjects = "S", []string{"s"}
	var err error
	w.s, err = w.direct.EnsureStream(testkit.Ctx(t), cfg)
	require.NoError(t, err)
	w.c = testkit.ConnectTo(t, w.proxy.URL())
	return w
}

// loseAck publishes while answers are held, and drops the connection with them when the message is stored. Before the client
// connects again, meanwhile is called.
func (w *wire) loseAck(t *testing.T, meanwhile func(), opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	t.Helper()
	before := testkit.Stored(t, w.s)
	w.proxy.FreezeReplies()
	return w.lose(t, func() {
		testkit.Eventually(t, func() bool { return testkit.Stored(t, w.s) > before }, "it is stored")
	}, meanwhile, opts...)
}

// loseMessage publishes, and drops the connection before the message reaches the server.
func (w *wire) loseMessage(t *testing.T, meanwhile func(), opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	t.Helper()
	w.proxy.Freeze()
	before := w.c.Conn().Stats().OutMsgs
	return w.lose(t, func() {
		testkit.Eventually(t, func() bool { return w.c.Conn().Stats().OutMsgs > before }, "it is sent")
	}, meanwhile, opts...)
}

func (w *wire) lose(t *testing.T, sent, meanwhile func(), opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	t.Helper()
	var ack *jetstream.PubAck
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		ack, err = w.c.PublishMsg(testkit.Ctx(t), nats.NewMsg("s"), opts...)
	}()
	sent()
	w.proxy.Refuse(true)
	w.proxy.Cut()
	w.proxy.Thaw()
	meanwhile()
	w.proxy.Refuse(false)
	testkit.Receive(t, done)
	return ack, err
}

func nothing() {}

func TestPublishWhoseAcknowledgementIsLostIsSentAgainAndStoredOnce(t *testing.T) {
	t.Parallel()
	w := newWire(t, jetstream.StreamConfig{})
	ack, err := w.loseAck(t, nothing)
	require.NoError(t, err)
	assert.Equal(t, &jetstream.PubAck{Stream: "S", Sequence: 1}, ack)

	ack, err = w.loseAck(t, nothing, jetstream.WithMsgID("mine"))
	require.NoError(t, err)
	assert.EqualValues(t, 2, ack.Sequence)
	assert.True(t, ack.Duplicate, "who stored it before cannot be known")
	assert.EqualValues(t, 2, testkit.Stored(t, w.s))
}

func TestPublishIsNotSentAgainBeyondTheDuplicateWindow(t *testing.T) {
	t.Parallel()
	w := newWire(t, jetstream.StreamConfig{Duplicates: time.Second})
	_, err := w.loseAck(t, func() {
		over := time.NewTimer(1100 * time.Millisecond)
		defer over.Stop()
		testkit.Receive(t, over.C)
	})
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Contains(t, err.Error(), `beyond the duplicate window (1s) of stream "S"`)
	var failed *natty.PublishError
	require.ErrorAs(t, err, &failed)
	first, err := w.s.GetMsg(testkit.Ctx(t), 1)
	require.NoError(t, err)
	assert.Equal(t, first.Header.Get(nats.MsgIdHdr), failed.MsgID)
	require.NoError(t, w.c.Publish(testkit.Ctx(t), "s", nil))
	assert.EqualValues(t, 2, testkit.Stored(t, w.s), "this one and the first, which was stored once")
}

func TestPublishIsNotSentAgainWithoutThePermissionToAskForTheWindow(t *testing.T) {
	t.Parallel()
	node := testkit.Restrict(t, "s")
	root := testkit.Login(t, node.URL(), "root")
	w := &wire{direct: root, s: testkit.Ensure(t, root, "S", "s"), proxy: nattytest.Proxy(t, node.URL())}
	w.c = testkit.Login(t, w.proxy.URL(), "app")
	begin := time.Now()
	_, err := w.loseAck(t, nothing)
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
	require.ErrorContains(t, err, "$JS.API.STREAM.NAMES")
	assert.Less(t, time.Since(begin), 5*time.Second)
	assert.EqualValues(t, 1, testkit.Stored(t, w.s))
}

var expectations = map[string]jetstream.PublishOpt{
	"stream":          jetstream.WithExpectLastSequence(3),
	"subject":         jetstream.WithExpectLastSequencePerSubject(3),
	"another subject": jetstream.WithExpectLastSequenceForSubject(3, "s"),
}

func TestConditionalPublishWhoseAcknowledgementIsLostFindsItself(t *testing.T) {
	t.Parallel()
	for name, opt := range expectations {
		for later := range 2 {
			t.Run(fmt.Sprintf("%s, %d later", name, later), func(t *testing.T) {
				t.Parallel()
				w := newWire(t, jetstream.StreamConfig{})
				testkit.Fill(t, w.c, "s", 3)
				ack, err := w.loseAck(t, func() { testkit.Fill(t, w.direct, "s", later) }, opt)
				require.NoError(t, err)
				assert.Equal(t, &jetstream.PubAck{Stream: "S", Sequence: 4}, ack)
				assert.EqualValues(t, 4+later, testkit.Stored(t, w.s))
			})
		}
	}
}

// nats.go sends no blanks around a header's value, and spaces for its line breaks.
func TestAnIDIsKnownAgainAsTheServerGotIt(t *testing.T) {
	t.Parallel()
	for _, id := range []string{" ", "job ", "\tjob\n", "a\nb"} {
		t.Run(fmt.Sprintf("%q", id), func(t *testing.T) {
			t.Parallel()
			w := newWire(t, jetstream.StreamConfig{})
			_, err := w.loseAck(t, nothing, jetstream.WithMsgID(id))
			require.NoError(t, err)
			assert.EqualValues(t, 1, testkit.Stored(t, w.s), "with a blank id, as without one, natty gives it another")
			if strings.TrimSpace(id) != "" {
				id = "another " + id
			}
			ack, err := w.loseAck(t, nothing, jetstream.WithMsgID(id), jetstream.WithExpectLastSequence(1))
			require.NoError(t, err)
			assert.EqualValues(t, 2, ack.Sequence)
			assert.EqualValues(t, 2, testkit.Stored(t, w.s))
		})
	}
}

func TestConditionalPublishThatIsLostSeesAConflict(t *testing.T) {
	t.Parallel()
	for name, opt := range expectations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, jetstream.StreamConfig{})
			testkit.Fill(t, w.c, "s", 3)
			_, err := w.loseMessage(t, func() { testkit.Fill(t, w.direct, "s", 1) }, opt)
			var refused *jetstream.APIError
			require.ErrorAs(t, err, &refused)
			assert.EqualValues(t, 10071, refused.ErrorCode)
			assert.Equal(t, name != "stream", errors.Is(err, natty.ErrOutcomeUnknown),
				"another message has the one sequence that this one could have; in a subject it could have been removed since")
			assert.EqualValues(t, 4, testkit.Stored(t, w.s))
		})
	}
}

func TestConditionalPublishWhoseMessageIsRemovedMeanwhileIsUnknown(t *testing.T) {
	t.Parallel()
	for name, opt := range expectations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, jetstream.StreamConfig{})
			testkit.Fill(t, w.c, "s", 3)
			_, err := w.loseAck(t, func() {
				testkit.Fill(t, w.direct, "s", 1)
				require.NoError(t, w.s.DeleteMsg(testkit.Ctx(t), 4))
			}, opt)
			require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
		})
	}
}

func TestConditionalPublishIsNotTakenForAnOlderMessageWithItsID(t *testing.T) {
	t.Parallel()
	w := newWire(t, jetstream.StreamConfig{Duplicates: 200 * time.Millisecond})
	_, err := w.c.PublishMsg(testkit.Ctx(t), nats.NewMsg("s"), jetstream.WithMsgID("job"))
	require.NoError(t, err)
	<-time.After(500 * time.Millisecond) // longer than it takes to ask the server for its time
	_, err = w.loseMessage(t, nothing, jetstream.WithMsgID("job"), jetstream.WithExpectLastSequencePerSubject(0))
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown, "the one that is stored is older")
	assert.EqualValues(t, 1, testkit.Stored(t, w.s))
}

func TestPublishWaitsForARestartedServer(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.ConnectTo(t, node.URL())
	testkit.Ensure(t, c, "S", "s")
	node.Stop()
	done := make(chan error, 1)
	go func() { done <- c.Publish(testkit.Ctx(t), "s", nil) }()
	require.NoError(t, node.Restart())
	require.NoError(t, testkit.Receive(t, done))
}

func TestPublishWaitsForALeader(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	var down, kept *nattytest.Node
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	require.NoError(t, err)
	down = cluster.StreamLeader("S") // the only replica
	for _, n := range cluster.Nodes() {
		if n != down {
			kept = n
		}
	}
	elsewhere := testkit.ConnectTo(t, kept.URL())
	down.Stop()
	testkit.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		err = elsewhere.Publish(ctx, "s", nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, natty.ErrNoStream)
		if errors.Is(err, natty.ErrOutcomeUnknown) {
			return false // the server's end is not noticed
		}
		return strings.Contains(err.Error(), `stream "S" has no leader`) // while the cluster has one, to ask
	}, "the error says that nobody takes it")

	done := make(chan error, 1)
	go func() { done <- elsewhere.Publish(testkit.Ctx(t), "s", nil) }()
	require.NoError(t, down.Restart())
	require.NoError(t, testkit.Receive(t, done))
}

func TestPublishWithoutADeadlineGivesUpAfterPublishTimeout(t *testing.T) {
	t.Parallel()
	const timeout = 300 * time.Millisecond
	node := nattytest.Server(t)
	testkit.Ensure(t, testkit.ConnectTo(t, node.URL()), "S", "s")
	for name, fault := range map[string]func(*nattytest.Link){
		"frozen":  (*nattytest.Link).Freeze,
		"refused": func(l *nattytest.Link) { l.Refuse(true); l.Cut() },
	} {
		proxy := nattytest.Proxy(t, node.URL())
		c := testkit.Connect(t, natty.Config{Servers: []string{proxy.URL()}, PublishTimeout: timeout})
		fault(proxy)
		testkit.Eventually(t, func() bool { return name == "frozen" || !c.Health().Connected }, "the loss is noticed")
		begin := time.Now()
		err := c.Publish(t.Context(), "s", nil)
		took := time.Since(begin)
		require.ErrorIs(t, err, context.DeadlineExceeded, name)
		assert.Equal(t, name == "frozen", errors.Is(err, natty.ErrOutcomeUnknown), name)
		assert.GreaterOrEqual(t, took, timeout, name)
		assert.Less(t, took, timeout+testkit.AtOnce, name)

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(timeout/2, cancel)
		begin = time.Now()
		require.ErrorIs(t, c.Publish(ctx, "s", nil), context.Canceled, name)
		assert.Less(t, time.Since(begin), timeout/2+testkit.AtOnce, name)
		proxy.Refuse(false)
		proxy.Thaw()
	}
}

func TestPublishOfMuchThroughAFrozenConnectionEndsWithinTheWriteTimeout(t *testing.T) {
	t.Parallel()
	w := newWire(t, jetstream.StreamConfig{})
	w.proxy.Freeze()
	data := make([]byte, 1<<20-1000)
	const n = 90 // more than the proxy and the operating system hold
	begin := time.Now()
	var publishers sync.WaitGroup
	for range n {
		publishers.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			assert.Error(t, w.c.Publish(ctx, "s", data))
		})
	}
	publishers.Wait()
	assert.Less(t, time.Since(begin), 15*time.Second, "the ctx, the write timeout of 5s, and much slack for 90 MB of copying")
	w.proxy.Thaw()
	require.NoError(t, w.c.Publish(testkit.Ctx(t), "s", data))
}

func TestPublishUnderOneIDFromSeveralGoroutinesIsStoredOnce(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s", "counter"}, Replicas: 3})
	require.NoError(t, err)
	const ids, each = 50, 8
	for i := range ids {
		var publishers sync.WaitGroup
		for range each { // the server answers most of them "in flight"
			publishers.Go(func() {
				ack, err := c.PublishMsg(testkit.Ctx(t), nats.NewMsg("s"), jetstream.WithMsgID(fmt.Sprint(i)))
				if assert.NoError(t, err) {
					assert.EqualValues(t, i+1, ack.Sequence)
				}
			})
		}
		publishers.Wait()
	}
	assert.EqualValues(t, ids, testkit.Stored(t, s))

	var won atomic.Int64
	var publishers sync.WaitGroup
	for range each { // conditional: one wins, the others see the conflict and not the collision
		publishers.Go(func() {
			err := c.Publish(testkit.Ctx(t), "counter", nil, jetstream.WithExpectLastSequencePerSubject(0))
			if err == nil {
				won.Add(1)
				return
			}
			var refused *jetstream.APIError
			if assert.ErrorAs(t, err, &refused) {
				assert.EqualValues(t, 10071, refused.ErrorCode)
			}
			assert.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
		})
	}
	publishers.Wait()
	assert.EqualValues(t, 1, won.Load())
}

// script is a service that stands in for JetStream under the API prefix "FAKE" and for a stream "S" that holds "s".
type script struct {
	mu      sync.Mutex
	answers []string // to publishes, one after the other; the last one stays; "" is silence
	info    jetstream.StreamInfo
	ids     []string // of the messages that came
	lookUps int
}

// play connects a client whose JetStream is s.
func (s *script) play(t *testing.T) *natty.Client {
	t.Helper()
	url := nattytest.Server(t).URL()
	service := testkit.ConnectTo(t, url).Conn()
	for subject, answer := range map[string]func(m *nats.Msg) string{
		"s":                  s.publish,
		"FAKE.STREAM.NAMES":  func(*nats.Msg) string { return `{"streams":["S"]}` },
		"FAKE.STREAM.INFO.S": func(*nats.Msg) string { return s.describe(t) },
	} {
		_, err := service.Subscribe(subject, func(m *nats.Msg) {
			if a := answer(m); a != "" {
				assert.NoError(t, m.Respond([]byte(a)))
			}
		})
		require.NoError(t, err)
	}
	require.NoError(t, service.Flush())
	return testkit.Connect(t, natty.Config{Servers: []string{url}, APIPrefix: "FAKE"})
}

func (s *script) publish(m *nats.Msg) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids = append(s.ids, m.Header.Get(nats.MsgIdHdr))
	answer := s.answers[0]
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
	}
	return answer
}

func (s *script) describe(t *testing.T) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookUps++
	s.info.Config.Name = "S"
	data, err := json.Marshal(s.info)
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

func refusal(code int) string {
	return fmt.Sprintf(`{"error":{"code":400,"err_code":%d,"description":"no"},"stream":"S","seq":0}`, code)
}

const accepted = `{"stream":"S","seq":7}`

func TestPublishIsSentAgainAfterWhatPasses(t *testing.T) {
	t.Parallel()
	for _, code := range []int{10158, 10164, 10008, 10009, 10063, 10077, 10167} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			s := &script{answers: []string{refusal(code), refusal(code), accepted}}
			s.info.Config.Duplicates = time.Minute
			s.info.Config.Discard = jetstream.DiscardNew
			ack, err := s.play(t).PublishMsg(testkit.Ctx(t), nats.NewMsg("s"))
			require.NoError(t, err)
			assert.EqualValues(t, 7, ack.Sequence)
			require.Len(t, s.ids, 3)
			assert.Equal(t, s.ids[0], s.ids[1])
			assert.Equal(t, s.ids[0], s.ids[2])
		})
	}
}

func TestPublishThatCannotBeStoredForAnotherReasonIsNotStreamFull(t *testing.T) {
	t.Parallel()
	room := &script{answers: []string{refusal(10077)}}
	room.info.Config.Discard, room.info.Config.MaxMsgs, room.info.State.Msgs = jetstream.DiscardNew, 10, 9
	old := &script{answers: []string{refusal(10077)}}
	old.info.Config.Discard, old.info.Config.MaxMsgs, old.info.State.Msgs = jetstream.DiscardOld, 10, 10
	for name, s := range map[string]*script{"there is room": room, "it discards old ones": old} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := s.play(t)
			// Long enough for a first answer on a busy machine.
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err := c.Publish(ctx, "s", nil)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NotErrorIs(t, err, natty.ErrStreamFull)
			var refused *jetstream.APIError
			require.ErrorAs(t, err, &refused, "the reason stays, whenever the time is up")
			assert.EqualValues(t, 10077, refused.ErrorCode)
		})
	}
}

func TestPublishTakesTheLateAnswerToAnEarlierAttempt(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	s := testkit.Ensure(t, testkit.ConnectTo(t, node.URL()), "S", "s")
	proxy := nattytest.Proxy(t, node.URL())
	c, direct := testkit.ConnectTo(t, proxy.URL()), testkit.ConnectTo(t, node.URL()).Conn()
	sent := make(chan *nats.Msg, 10)
	_, err := direct.ChanSubscribe("s", sent)
	require.NoError(t, err)
	require.NoError(t, direct.Flush())
	proxy.Delay(400 * time.Millisecond) // both ways: the answer comes after the first attempt's 500ms
	ack, err := c.PublishMsg(testkit.Ctx(t), nats.NewMsg("s"))
	require.NoError(t, err)
	assert.EqualValues(t, 1, ack.Sequence)
	require.NoError(t, c.Conn().FlushTimeout(testkit.Patience), "what was sent has come in")
	require.NoError(t, direct.Flush())
	assert.Len(t, sent, 1, "the message was sent once")
	assert.EqualValues(t, 1, testkit.Stored(t, s))
}

func TestPublishReturnsAnAnswerThatComesWhileItLooksUpTheWindow(t *testing.T) {
	t.Parallel()
	// The first message is answered only when the second comes, which it cannot, because the stream is not found.
	url := nattytest.Server(t).URL()
	service := testkit.ConnectTo(t, url).Conn()
	pending := make(chan *nats.Msg, 1)
	_, err := service.Subscribe("s", func(m *nats.Msg) { pending <- m })
	require.NoError(t, err)
	_, err = service.Subscribe("FAKE.STREAM.NAMES", func(m *nats.Msg) {
		assert.NoError(t, (<-pending).Respond([]byte(accepted)))
		assert.NoError(t, m.Respond([]byte(`{"streams":[]}`)))
	})
	require.NoError(t, err)
	require.NoError(t, service.Flush())
	c := testkit.Connect(t, natty.Config{Servers: []string{url}, APIPrefix: "FAKE"})
	ack, err := c.PublishMsg(testkit.Ctx(t), nats.NewMsg("s"))
	require.NoError(t, err)
	assert.EqualValues(t, 7, ack.Sequence)
}

// An answer that comes when nobody waits any more must not reach the next publish, which may use the same memory.
func TestPublishNeverTakesTheAnswerToAnother(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	_, err := c.Conn().Subscribe("echo", func(m *nats.Msg) {
		_ = m.Respond(fmt.Appendf(nil, `{"stream":"%s","seq":1}`, m.Data)) // the last ones come when the client is closed
	})
	require.NoError(t, err)
	var answered, missed atomic.Int64
	var publishers sync.WaitGroup
	for g := range 8 {
		publishers.Go(func() {
			for i := range 1500 {
				body := fmt.Sprintf("%d-%d", g, i)
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(2*time.Millisecond))
				ack, err := c.PublishMsg(ctx, &nats.Msg{Subject: "echo", Data: []byte(body)})
				cancel()
				if err != nil {
					missed.Add(1)
					continue
				}
				answered.Add(1)
				assert.Equal(t, body, ack.Stream)
			}
		})
	}
	publishers.Wait()
	t.Logf("%d answered, %d missed", answered.Load(), missed.Load())
	assert.NotZero(t, answered.Load())
	assert.NotZero(t, missed.Load())
}

func TestPublishUnderWayWhenTheClientClosesIsUnknown(t *testing.T) {
	t.Parallel()
	w := newWire(t, jetstream.StreamConfig{})
	defer w.proxy.Thaw()
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Servers: []string{w.proxy.URL()}}, testkit.Quiet)
	require.NoError(t, err)
	w.proxy.FreezeReplies()
	failed := make(chan error, 1)
	go func() { failed <- c.Publish(testkit.Ctx(t), "s", nil) }()
	testkit.Eventually(t, func() bool { return testkit.Stored(t, w.s) == 1 }, "it is stored")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.Error(t, c.Close(ctx), "the flush is not answered")
	err = testkit.Receive(t, failed)
	require.ErrorIs(t, err, natty.ErrClosed)
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
}

func TestPublishThatNobodyAnswersIsUnknownWhenTheClientCloses(t *testing.T) {
	t.Parallel()
	url := nattytest.Server(t).URL()
	came := make(chan *nats.Msg, 1)
	service := testkit.ConnectTo(t, url).Conn()
	_, err := service.ChanSubscribe("s", came)
	require.NoError(t, err)
	require.NoError(t, service.Flush())
	c := testkit.ConnectTo(t, url)
	failed := make(chan error, 1)
	go func() { failed <- c.Publish(testkit.Ctx(t), "s", nil) }()
	testkit.Receive(t, came)
	require.NoError(t, c.Close(testkit.Ctx(t)))
	err = testkit.Receive(t, failed)
	require.ErrorIs(t, err, natty.ErrClosed)
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
}

func TestPublishOnALazyClientWaitsForItsFirstConnection(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	testkit.Ensure(t, testkit.ConnectTo(t, node.URL()), "S", "s")
	proxy := nattytest.Proxy(t, node.URL())
	proxy.Refuse(true)
	c := testkit.Connect(t, natty.Config{Servers: []string{proxy.URL()}, LazyConnect: true})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := c.Publish(ctx, "s", nil, jetstream.WithExpectStream("S"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Contains(t, err.Error(), "not connected")
	done := make(chan error, 1)
	go func() { done <- c.Publish(testkit.Ctx(t), "s", nil, jetstream.WithExpectStream("S")) }()
	proxy.Refuse(false)
	require.NoError(t, testkit.Receive(t, done))
}

// results is what many publishes came to, by body.
type results struct {
	mu   sync.Mutex
	acks map[string]*jetstream.PubAck
	errs map[string]error
}

func (r *results) add(body string, ack *jetstream.PubAck, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.acks == nil {
		r.acks, r.errs = map[string]*jetstream.PubAck{}, map[string]error{}
	}
	if err != nil {
		r.errs[body] = err
	} else {
		r.acks[body] = ack
	}
}

// verify compares with the stream: what was acknowledged is stored once, at the sequence said; what failed is not stored
// unless the error says that nobody knows; nothing else is there.
func (r *results) verify(t testing.TB, s jetstream.Stream) {
	t.Helper()
	found := testkit.Bodies(t, s)
	for body, ack := range r.acks {
		if at := found[body]; len(at) != 1 || at[0] != ack.Sequence || ack.Duplicate {
			require.Fail(t, "acknowledged is not stored once where the acknowledgement says", "body %q: %+v, stored at %v", body, ack, at)
		}
	}
	for body, err := range r.errs {
		var failed *natty.PublishError
		require.ErrorAs(t, err, &failed)
		if len(found[body]) > 0 {
			require.Len(t, found[body], 1, "not more than once either")
			require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
			require.NotEmpty(t, failed.MsgID)
		}
		require.Equal(t, failed.Unknown, errors.Is(err, natty.ErrOutcomeUnknown))
	}
	for body := range found {
		if r.acks[body] == nil && r.errs[body] == nil {
			require.Fail(t, "stored and never published", "body %q", body)
		}
	}
}

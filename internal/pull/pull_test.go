package pull

import (
	"encoding/json"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/nattytest"
)

// script sees every pull request, and answers it as the test says. A real durable
// answers too if there is one.
type script struct {
	node     *nattytest.Node
	nc       *nats.Conn // the script's own
	client   *nats.Conn
	requests chan *nats.Msg
	msgs     chan *nats.Msg // that the Puller hands over
	ends     chan struct{}
	answered chan time.Time
}

func newScript(t *testing.T) *script {
	t.Helper()
	s := &script{
		node:     nattytest.Server(t),
		requests: make(chan *nats.Msg, 100), msgs: make(chan *nats.Msg, 100),
		ends: make(chan struct{}, 100), answered: make(chan time.Time, 100),
	}
	for _, nc := range []**nats.Conn{&s.nc, &s.client} {
		var err error
		*nc, err = nats.Connect(s.node.URL(), nats.MaxReconnects(-1))
		require.NoError(t, err)
		t.Cleanup((*nc).Close)
	}
	return s
}

// puller makes a Puller that sends its requests to subject.
func (s *script) puller(t *testing.T, subject string, limits jetstream.ConsumerConfig, wish Request) *Puller {
	t.Helper()
	_, err := s.nc.Subscribe(subject, func(m *nats.Msg) { s.requests <- m })
	require.NoError(t, err)
	require.NoError(t, s.nc.Flush())
	p, err := New(s.client, conn.NewLink(), subject, limits, wish,
		func(m *nats.Msg) { s.msgs <- m }, func() { s.ends <- struct{}{} })
	require.NoError(t, err)
	p.Answered = func(sent time.Time) { s.answered <- sent }
	return p
}

// durable makes a stream and a durable, and returns the subject of its pull requests.
func (s *script) durable(t *testing.T, messages int) (pulls string) {
	t.Helper()
	js, err := jetstream.New(s.nc)
	require.NoError(t, err)
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	require.NoError(t, err)
	_, err = stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	s.publish(t, messages)
	return "$JS.API.CONSUMER.MSG.NEXT.S.d"
}

func (s *script) publish(t *testing.T, messages int) {
	t.Helper()
	for range messages {
		_, err := s.nc.Request("s", []byte("data"), 5*time.Second)
		require.NoError(t, err)
	}
}

// status answers a request with a status.
func (s *script) status(t *testing.T, request *nats.Msg, status, description string) {
	t.Helper()
	h := nats.Header{"Status": {status}, "Description": {description}}
	require.NoError(t, s.nc.PublishMsg(&nats.Msg{Subject: request.Reply, Header: h}))
}

// next returns what a channel brings.
func next[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

func decode(t *testing.T, m *nats.Msg) (r Request) {
	t.Helper()
	require.NoError(t, json.Unmarshal(m.Data, &r))
	return r
}

func TestRequestsStayWithinTheLimitsOfTheDurable(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	wish := Request{MaxBytes: 1 << 20, Expires: Expiry, Heartbeat: 5 * time.Second, Group: "g", Pin: "p"}
	p := s.puller(t, "NEXT", jetstream.ConsumerConfig{
		MaxRequestBatch: 10, MaxRequestExpires: 2 * time.Second, MaxRequestMaxBytes: 1000,
	}, wish)
	wish.MaxBytes = int(s.client.MaxPayload()) + overhead // as the server allows now
	within := Request{Batch: 10, MaxBytes: 1000, Expires: 2 * time.Second, Heartbeat: time.Second, Group: "g", Pin: "p"}
	require.NoError(t, p.Pull(50))
	assert.Equal(t, within, decode(t, next(t, s.requests)))

	within.Batch = 3
	require.NoError(t, p.Pull(3))
	assert.Equal(t, within, decode(t, next(t, s.requests)), "fewer than the limit")

	p.Limit(jetstream.ConsumerConfig{})
	wish.Batch = 50
	require.NoError(t, p.Pull(50))
	assert.Equal(t, wish, decode(t, next(t, s.requests)), "the limits were lifted")
}

func TestRequestIsOutstandingUntilAllItsMessagesCame(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, s.durable(t, 2), jetstream.ConsumerConfig{}, Request{Expires: Expiry, Heartbeat: 5 * time.Second})
	assert.True(t, p.Idle(), "before the first")
	require.NoError(t, p.Pull(3))
	sent := p.Sent
	for range 2 {
		assert.Equal(t, "s", next(t, s.msgs).Subject)
	}
	assert.False(t, p.Idle())
	assert.Empty(t, s.ends)
	assert.Equal(t, sent, next(t, s.answered), "once, at the first message")
	s.publish(t, 1)
	next(t, s.msgs)
	next(t, s.ends)
	assert.True(t, p.Idle())
	assert.Empty(t, s.answered)
	assert.Equal(t, End{}, p.TakeEnd(), "it ended by itself")
	assert.WithinDuration(t, time.Now(), p.LastHeard(), 10*time.Second)
}

func TestStatusOfTheCurrentRequestEndsIt(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, "NEXT", jetstream.ConsumerConfig{}, Request{Expires: Expiry})
	for _, test := range []struct {
		status, description string
		expected            bool
	}{
		{"404", "No Messages", true},
		{"408", "Request Timeout", true},
		{"409", "Message Size Exceeds MaxBytes", false},
		{"409", "Batch Completed", true},
		{"409", "Consumer Deleted", false},
		{"409", "Leadership Change", false},
		{"503", "", false},
		{"", "an answer of somebody else", false},
	} {
		require.NoError(t, p.Pull(1))
		s.status(t, next(t, s.requests), test.status, test.description)
		next(t, s.ends)
		assert.True(t, p.Idle(), test.description)
		end := p.TakeEnd()
		want := endOf(test.status, test.description)
		want.After = end.After
		assert.Equal(t, want, end)
		assert.Less(t, end.After, AtOnce)
		assert.True(t, end.Fruitless(), "it brought nothing, at once")
		assert.Zero(t, p.LastProgress().UnixNano(), "a sign of life is no progress")
		assert.Equal(t, test.expected, end.Expected(), test.description)
		assert.Len(t, s.answered, map[bool]int{true: 1}[test.expected], "%s: did the durable receive it?", test.description)
		for len(s.answered) > 0 {
			<-s.answered
		}
		assert.Equal(t, End{}, p.TakeEnd(), "it is returned once")
	}
}

func TestHeartbeatAnswersARequestAndDoesNotEndIt(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, "NEXT", jetstream.ConsumerConfig{}, Request{Expires: Expiry})
	require.NoError(t, p.Pull(1))
	request := next(t, s.requests)
	s.status(t, request, "100", "Idle Heartbeat")
	assert.Equal(t, p.Sent, next(t, s.answered))
	assert.False(t, p.Idle())
	s.status(t, request, "100", "Idle Heartbeat")
	s.status(t, request, "408", "Request Timeout")
	next(t, s.ends)
	assert.Empty(t, s.answered, "once")
	assert.Empty(t, s.ends)
}

func TestStatusOfAnEarlierRequestChangesNothing(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, "NEXT", jetstream.ConsumerConfig{}, Request{Expires: Expiry})
	require.NoError(t, p.Pull(1))
	old := next(t, s.requests)
	p.Forget()
	assert.True(t, p.Idle())
	require.NoError(t, p.Pull(1))
	current := next(t, s.requests)
	require.NotEqual(t, old.Reply, current.Reply)
	for _, status := range []string{"100", "404", "408", "409"} {
		s.status(t, old, status, "Consumer Deleted")
	}
	s.status(t, &nats.Msg{Reply: current.Reply + "?"}, "409", "not a number")
	s.status(t, current, "100", "Idle Heartbeat") // behind the others
	next(t, s.answered)
	assert.False(t, p.Idle())
	assert.Empty(t, s.ends)
	assert.Equal(t, End{}, p.TakeEnd())
}

func TestMessageOfAForgottenRequestIsStillHandedOver(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, s.durable(t, 0), jetstream.ConsumerConfig{}, Request{Expires: Expiry})
	require.NoError(t, p.Pull(1))
	next(t, s.requests)
	p.Forget()
	s.publish(t, 1)
	next(t, s.msgs)
	assert.Empty(t, s.answered, "it says nothing about a request that follows")
}

func TestTouchBringsNoMessage(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, s.durable(t, 1), jetstream.ConsumerConfig{}, Request{Expires: Expiry, Heartbeat: 5 * time.Second})
	require.NoError(t, p.Touch())
	assert.True(t, p.Idle(), "a request may follow at once")
	touch := decode(t, next(t, s.requests))
	assert.Equal(t, 1, touch.Batch)
	assert.Equal(t, 1, touch.MaxBytes)
	next(t, s.ends)
	assert.True(t, p.TakeEnd().Is("message size exceeds maxbytes"))
	assert.Equal(t, p.Sent, next(t, s.answered), "the durable has received it")
	assert.Empty(t, s.msgs)
}

func TestRequestIsSilentWithoutTwoHeartbeats(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		request Request
		after   time.Duration
	}{
		"with heartbeats": {Request{Expires: Expiry, Heartbeat: 2 * time.Second}, 5 * time.Second},
		"too short":       {Request{Expires: time.Second}, 11 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := &Puller{current: test.request, Sent: time.Now()}
			time.Sleep(time.Hour) // fake time
			assert.False(t, p.Silent(), "%s: nothing is outstanding", name)
			p.outstanding.Store(1)
			p.Sent = time.Now()
			time.Sleep(test.after) // fake time
			assert.False(t, p.Silent(), name)
			time.Sleep(time.Nanosecond) // fake time
			assert.True(t, p.Silent(), name)
			p.Heard.Store(time.Now().UnixNano())
			assert.False(t, p.Silent(), "%s: something came", name)
			time.Sleep(test.after + 1) // fake time
			assert.True(t, p.Silent(), name)
			p.Forget()
			assert.False(t, p.Silent(), name)
		})
	}
}

func TestStopReceivesWhatIsOnItsWay(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	s.msgs = make(chan *nats.Msg) // the first one waits in onMsg
	p := s.puller(t, s.durable(t, 3), jetstream.ConsumerConfig{}, Request{Expires: Expiry})
	require.NoError(t, p.Pull(3))
	require.Eventually(t, func() bool {
		n, _, err := p.answers.End().Pending()
		return err == nil && n >= 2
	}, 10*time.Second, time.Millisecond)
	done := p.Stop(true)
	for range 3 {
		select {
		case <-done:
			require.Fail(t, "it has ended")
		default:
		}
		next(t, s.msgs)
	}
	next(t, done)
}

func TestStopWithoutAConnectionEndsAtOnce(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, "NEXT", jetstream.ConsumerConfig{}, Request{Expires: Expiry})
	closed := s.puller(t, "NEXT", jetstream.ConsumerConfig{}, Request{Expires: Expiry})
	require.NoError(t, s.node.Close())
	next(t, p.Stop(false))
	s.client.Close()
	next(t, closed.Stop(true))
}

func TestRequestThatCouldNotBeSentIsNotOutstanding(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, "NEXT", jetstream.ConsumerConfig{}, Request{Expires: Expiry})
	s.client.Close()
	require.ErrorIs(t, p.Pull(1), nats.ErrConnectionClosed)
	assert.True(t, p.Idle())
}

func TestRequestsHaveSubjectsOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, "NEXT", jetstream.ConsumerConfig{}, Request{Expires: Expiry})
	for n := range 40 {
		require.NoError(t, p.Touch())
		assert.Equal(t, p.inbox+strconv.FormatInt(int64(n+1), 36), next(t, s.requests).Reply)
	}
}

func TestRequestIsAsLargeAsTheServerAllowsNow(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, "NEXT", jetstream.ConsumerConfig{}, Request{Expires: Expiry, MaxBytes: 8 << 20})
	size := func() int {
		t.Helper()
		require.NoError(t, p.Pull(1))
		return decode(t, next(t, s.requests)).MaxBytes
	}
	assert.Equal(t, 8<<20, size())
	assert.True(t, p.Grow(), "a message may be larger than this server accepts")
	assert.Equal(t, maxMessage, size())
	assert.False(t, p.Grow(), "no message is larger")
	p.Limit(jetstream.ConsumerConfig{MaxRequestMaxBytes: 1000})
	assert.Equal(t, 1000, size())
	assert.Equal(t, 1000, p.MaxBytes())
	assert.False(t, p.Grow(), "the durable's own limit stays")
}

func TestMessageThatDoesNotFitIsExpectedBehindOthersOnly(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, s.durable(t, 2), jetstream.ConsumerConfig{MaxRequestMaxBytes: 70}, Request{Expires: Expiry})
	require.NoError(t, p.Pull(2))
	next(t, s.msgs)
	next(t, s.ends)
	end := p.TakeEnd()
	assert.True(t, end.TooSmall() && end.Brought && end.Expected() && !end.Fruitless(), "%+v", end)
	p.Limit(jetstream.ConsumerConfig{MaxRequestMaxBytes: 10})
	before := p.LastProgress()
	require.NoError(t, p.Pull(2))
	next(t, s.ends)
	end = p.TakeEnd()
	assert.True(t, end.TooSmall() && !end.Expected() && end.Fruitless(), "%+v", end)
	assert.Equal(t, before, p.LastProgress())
}

// Otherwise requests pile up at the server while the connection is lost again and again.
func TestRenewedPullerLeavesNoRequestAtTheServer(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	p := s.puller(t, s.durable(t, 0), jetstream.ConsumerConfig{}, Request{Expires: Expiry, Heartbeat: 5 * time.Second})
	js, err := jetstream.New(s.nc)
	require.NoError(t, err)
	durable, err := js.Consumer(t.Context(), "S", "d")
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, p.Pull(1))
		require.NoError(t, p.Renew())
		assert.True(t, p.Idle())
	}
	require.NoError(t, p.Pull(1))
	require.Eventually(t, func() bool {
		info, err := durable.Info(t.Context())
		return err == nil && info.NumWaiting == 1
	}, 10*time.Second, time.Millisecond)
	s.publish(t, 1)
	next(t, s.msgs)
	next(t, s.ends)
	assert.Equal(t, End{}, p.TakeEnd())
	n, known := p.Deliveries()
	assert.False(t, known, "no heartbeat came: %d", n)
}

func TestHeartbeatTellsOfDeliveriesToOthers(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	pulls := s.durable(t, 3)
	other := s.puller(t, pulls, jetstream.ConsumerConfig{}, Request{Expires: Expiry})
	require.NoError(t, other.Pull(3))
	for range 3 {
		next(t, s.msgs)
	}
	p := s.puller(t, pulls, jetstream.ConsumerConfig{}, Request{Expires: Expiry, Heartbeat: MinHeartbeat})
	require.NoError(t, p.Pull(1))
	require.Eventually(t, func() bool { n, known := p.Deliveries(); return known && n == 3 }, 10*time.Second, time.Millisecond)
	assert.False(t, p.LastProgress().IsZero())
}

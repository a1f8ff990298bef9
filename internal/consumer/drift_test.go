package consumer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/roomtest"
	"github.com/natty-go/natty/nattytest"
)

// watched is a consumer of the durable d of the stream S, on a server of its own. It
// looks at its durable when it is told to.
type watched struct {
	*Consumer
	t      *testing.T
	js     jetstream.JetStream
	errors chan error
}

func watch(t *testing.T, cfg Config, h Handler) *watched {
	t.Helper()
	api := roomtest.API(t, nattytest.Server(t).URL())
	js := api.JS
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	require.NoError(t, err)
	client := quiet()
	client.API = api
	client.API.Drift = func(_, name string, differ []jsapi.Difference, cause error) error {
		return fmt.Errorf("%s differs: %v: %w", name, differ, cause)
	}
	client.Invalid = roomtest.Invalid
	client.Failed = func(_ string, _ dispatch.Delivery, _ []byte, _ bool, cause error) error { return cause }

	w := &watched{t: t, js: js, errors: make(chan error, 100)}
	cfg.Stream, cfg.Durable, cfg.Concurrency, cfg.Heartbeat, cfg.DrainTimeout = "S", "d", 2, time.Second, time.Second
	w.Consumer = New(client, cfg, h)
	w.reports = callback.New("OnError", func(err error) { w.errors <- err }, client.Log)
	t.Cleanup(w.reports.Close)
	require.NoError(t, w.prepare(t.Context()))
	w.handlerCtx, w.endHandlers = context.WithCancelCause(context.WithoutCancel(t.Context()))
	require.NoError(t, w.mode.start())
	t.Cleanup(func() {
		assert.NoError(t, w.mode.stop())
		w.endHandlers(nil)
	})
	s := w.supervision
	s.resume = time.NewTimer(time.Hour)
	t.Cleanup(func() { s.resume.Stop() })
	return w
}

// look makes the consumer look at its durable.
func (w *watched) look() error {
	w.t.Helper()
	w.supervision.look(w.t.Context(), nil)
	f := <-w.checked()
	w.supervision.checked = nil
	return w.mode.onFound(w.t.Context(), f)
}

func (w *watched) checked() <-chan finding { return w.supervision.checked }

// change changes the durable, as an operator does.
func (w *watched) change(edit func(*jetstream.ConsumerConfig)) {
	w.t.Helper()
	d, err := w.js.Consumer(w.t.Context(), "S", "d")
	require.NoError(w.t, err)
	cfg := d.CachedInfo().Config
	edit(&cfg)
	_, err = w.js.UpdateConsumer(w.t.Context(), "S", cfg)
	require.NoError(w.t, err)
}

func (w *watched) config() jetstream.ConsumerConfig {
	w.t.Helper()
	d, err := w.js.Consumer(w.t.Context(), "S", "d")
	require.NoError(w.t, err)
	return d.CachedInfo().Config
}

// told returns what was reported since the last call.
func (w *watched) told() (all []string) {
	w.t.Helper()
	w.report(errors.New("end of the test's wait"))
	for err := range w.errors {
		if err.Error() == "end of the test's wait" {
			return all
		}
		all = append(all, err.Error())
	}
	return all
}

// tellsOnce checks that the next look reports one thing, and the one after it nothing.
func (w *watched) tellsOnce(text string) {
	w.t.Helper()
	require.NoError(w.t, w.look())
	told := w.told()
	require.Len(w.t, told, 1)
	assert.Contains(w.t, told[0], text)
	require.NoError(w.t, w.look())
	assert.Empty(w.t, w.told(), "once")
}

func accept(context.Context, *nats.Msg) error { return nil }

func TestChangesOfSomebodyElseAreToldOnceAndHeeded(t *testing.T) {
	t.Parallel()
	w := watch(t, Config{Spec: durable.Spec{Subjects: []string{"s.a", "s.b"}}}, accept)
	require.NoError(t, w.look())
	assert.Empty(t, w.told())

	tick := w.mode.tick()
	w.change(func(c *jetstream.ConsumerConfig) { c.AckWait = time.Second })
	w.tellsOnce("ack_wait from 10s to 1s")
	assert.Less(t, w.mode.tick(), tick, "progress is reported more often")

	w.change(func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 5 })
	w.tellsOnce("max_deliver of 5")
	assert.Equal(t, 5, w.config().MaxDeliver, "it is left as it is without a MaxDeliver here")

	w.change(func(c *jetstream.ConsumerConfig) { c.InactiveThreshold = time.Hour })
	w.tellsOnce("inactive_threshold of 1h0m0s")

	w.change(func(c *jetstream.ConsumerConfig) { c.FilterSubjects = []string{"s.b"} })
	w.tellsOnce("no longer receive s.a; nothing was delivered meanwhile")
	assert.ElementsMatch(t, []string{"s.a", "s.b"}, w.config().FilterSubjects)

	w.change(func(c *jetstream.ConsumerConfig) { c.FilterSubjects = []string{"s.a", "s.b", "s.c"} })
	w.tellsOnce("also receives s.c")
	assert.Contains(t, w.Snapshot().Warning, "s.c")
	until := time.Now().Add(time.Hour)
	_, err := w.js.PauseConsumer(t.Context(), "S", "d", until)
	require.NoError(t, err)
	w.tellsOnce("paused until")
	assert.Contains(t, w.Snapshot().Warning, "s.c", "beside the other warning")
	assert.Contains(t, w.Snapshot().Warning, "paused")
	_, err = w.js.ResumeConsumer(t.Context(), "S", "d")
	require.NoError(t, err)
	w.change(func(c *jetstream.ConsumerConfig) { c.FilterSubjects = []string{"s.a", "s.b"} })
	require.NoError(t, w.look())
	assert.Empty(t, w.Snapshot().Warning)
	assert.Empty(t, w.told())

	w.change(func(c *jetstream.ConsumerConfig) { c.HeadersOnly = true })
	require.ErrorContains(t, w.look(), "without their data")
}

func TestLimitOfDeliveriesIsPutRight(t *testing.T) {
	t.Parallel()
	w := watch(t, Config{Spec: durable.Spec{MaxDeliver: 3}}, accept)
	w.change(func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 5 })
	w.tellsOnce("max_deliver is 5")
	assert.Equal(t, -1, w.config().MaxDeliver)
}

func TestFiltersThatAConsumerTakesAsTheyAreAreTold(t *testing.T) {
	t.Parallel()
	w := watch(t, Config{}, accept)
	w.change(func(c *jetstream.ConsumerConfig) { c.FilterSubject = "s.a" })
	w.tellsOnce(`filters from [] to ["s.a"]`)
}

func TestSettingsThatLoseAPositionAreToldAtTheStart(t *testing.T) {
	t.Parallel()
	w := watch(t, Config{}, accept)
	w.change(func(c *jetstream.ConsumerConfig) { c.InactiveThreshold, c.MaxDeliver = time.Hour, 5 })
	require.NoError(t, w.look())
	require.Len(t, w.told(), 2)
	w.Consumer.told.ResolveAll()
	require.NoError(t, w.prepare(t.Context()))
	assert.Len(t, w.told(), 2)
}

// Another stream has it now, and the consumer went on in silence.
func TestSubjectThatTheStreamHasLostIsTold(t *testing.T) {
	t.Parallel()
	w := watch(t, Config{Spec: durable.Spec{Subjects: []string{"s.a"}}}, accept)
	move := func(subjects ...string) {
		_, err := w.js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: subjects})
		require.NoError(t, err)
		w.outdated.Store(true) // or a minute later
	}
	move("s.b", "s.c")
	w.tellsOnce("stream S has lost the subject s.a, of which nothing new comes: it stores s.b s.c")
	assert.Contains(t, w.Snapshot().Warning, "has lost the subject s.a")
	move("s.*")
	require.NoError(t, w.look())
	assert.Empty(t, w.Snapshot().Warning)
	assert.Empty(t, w.told())
}

// What was stored while a filter was missing is behind the durable's position.
func TestSkippedMessagesAreToldWithTheFilterThatWasMissing(t *testing.T) {
	t.Parallel()
	handled := make(chan string, 10)
	w := watch(t, Config{Spec: durable.Spec{Subjects: []string{"s.a", "s.b"}}}, func(_ context.Context, m *nats.Msg) error {
		handled <- m.Subject
		return nil
	})
	w.change(func(c *jetstream.ConsumerConfig) { c.FilterSubjects = []string{"s.a"} })
	for _, s := range []string{"s.b", "s.a"} {
		_, err := w.js.Publish(t.Context(), s, nil)
		require.NoError(t, err)
	}
	require.NoError(t, w.mode.step(t.Context(), true))
	assert.Equal(t, "s.a", <-handled)
	w.tellsOnce("messages of s.b between the sequences 0 and 2 may have been skipped")
}

// The first look cannot put the filters right. The next one has to tell of all since then.
func TestSkippedMessagesAreToldSinceTheFilterWasMissedFirst(t *testing.T) {
	t.Parallel()
	w := watch(t, Config{Spec: durable.Spec{Subjects: []string{"s.a", "s.b"}}}, accept)
	look := func(delivered uint64, err error) {
		now := w.durable
		now.Config.FilterSubjects, now.Delivered = []string{"s.a"}, delivered
		strayed := heeded{strayed: now.Strayed(w.cfg.Spec), err: err, from: now, behind: w.durable.Delivered}
		require.NoError(t, w.noticeChanges(finding{durable: now, heeded: strayed}))
		w.durable.Delivered = delivered
	}
	look(2, context.DeadlineExceeded)
	look(5, context.DeadlineExceeded)
	require.Len(t, w.told(), 1)
	look(7, nil)
	told := w.told()
	require.Len(t, told, 1)
	assert.Contains(t, told[0], "messages of s.b between the sequences 0 and 7")
	look(9, nil) // it was taken off once more
	told = w.told()
	require.Len(t, told, 1)
	assert.Contains(t, told[0], "messages of s.b between the sequences 7 and 9")
}

// It was recreated by somebody else, and cannot be reset.
func TestSkippedMessagesOfADeletedDurableAreToldBehindItsFloor(t *testing.T) {
	t.Parallel()
	w := watch(t, Config{Spec: durable.Spec{Subjects: []string{"s.a", "s.b"}}}, accept)
	now := w.durable
	now.Created, now.Delivered, now.Config.FilterSubjects = now.Created.Add(time.Second), 9, []string{"s.a"}
	h := heeded{strayed: now.Strayed(w.cfg.Spec), from: now, behind: 3}
	require.NoError(t, w.noticeChanges(finding{durable: now, heeded: h, gone: jetstream.ErrConsumerNotFound}))
	told := w.told()
	require.Len(t, told, 1)
	assert.Contains(t, told[0], "messages of s.b between the sequences 3 and 9 may have been skipped")
}

func TestNoMessageRunsTwiceAtOnceWhenItsDurableBeginsAgain(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]func(w *watched){
		"reset": func(w *watched) {
			_, err := w.js.ResetConsumer(t.Context(), "S", "d")
			require.NoError(t, err)
		},
		"recreated": func(w *watched) {
			cfg := w.config()
			require.NoError(t, w.js.DeleteConsumer(t.Context(), "S", "d"))
			_, err := w.js.CreateConsumer(t.Context(), "S", cfg)
			require.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began, release := make(chan string, 10), make(chan struct{})
			w := watch(t, Config{Spec: durable.Spec{AckWait: time.Minute}}, func(_ context.Context, m *nats.Msg) error {
				began <- m.Subject
				<-release
				return nil
			})
			_, err := w.js.Publish(t.Context(), "s.a", nil)
			require.NoError(t, err)
			require.NoError(t, w.mode.step(t.Context(), true))
			assert.Equal(t, "s.a", <-began)
			require.NoError(t, w.look())
			again(w)
			_, err = w.js.Publish(t.Context(), "s.b", nil)
			require.NoError(t, err)
			w.puller.Forget() // whatever became of the request
			require.NoError(t, w.puller.Pull(2))
			assert.Equal(t, "s.b", <-began, "the other message, and not the first one again")
			require.NoError(t, w.look())
			told := w.told()
			require.Len(t, told, 1)
			assert.Regexp(t, "position went back|recreated it", told[0])
			close(release)
		})
	}
}

func TestDurableThatNoLongerFitsEndsItsConsumer(t *testing.T) {
	t.Parallel()
	w := watch(t, Config{}, accept)
	require.NoError(t, w.js.DeleteConsumer(t.Context(), "S", "d"))
	_, err := w.js.CreateConsumer(t.Context(), "S", jetstream.ConsumerConfig{
		Durable: "d", AckPolicy: jetstream.AckNonePolicy,
	})
	require.NoError(t, err)
	require.ErrorContains(t, w.look(), "ack_policy")
}

func TestSequenceThatGoesBackIsNoticedOnce(t *testing.T) {
	t.Parallel()
	c := New(quiet(), Config{}, nil)
	for _, n := range []uint64{1, 2, 9} {
		c.noticeSequence(n)
	}
	assert.False(t, c.wentBack.Load())
	c.ackTrouble.sent(7)
	c.noticeSequence(1)
	assert.True(t, c.wentBack.Load())
	for range uselessAcks {
		assert.False(t, c.ackTrouble.redelivered(7), "it was reset behind an acked message")
	}
	c.noticeSequence(5)
	c.beginSequence()
	c.noticeSequence(2)
	assert.False(t, c.wentBack.Load(), "a look has told of it")
}

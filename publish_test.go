package natty_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// publishError publishes with a long ctx and returns the error, which must be a *natty.PublishError and come at once.
func publishError(t testing.TB, c *natty.Client, msg *nats.Msg, opts ...jetstream.PublishOpt) *natty.PublishError {
	t.Helper()
	begin := time.Now()
	ack, err := c.PublishMsg(testkit.Ctx(t), msg, opts...)
	took := time.Since(begin)
	require.Error(t, err)
	assert.Nil(t, ack)
	assert.Less(t, took, testkit.AtOnce, "it must not take this long: %v", err)
	var failed *natty.PublishError
	require.ErrorAs(t, err, &failed)
	return failed
}

func TestPublishWithoutStreamFailsAtOnce(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	err := publishError(t, c, &nats.Msg{Subject: "nobody.listens"})
	require.ErrorIs(t, err, natty.ErrNoStream)
	require.ErrorIs(t, err, nats.ErrNoResponders)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Contains(t, err.Error(), `"nobody.listens"`)
	assert.False(t, err.Unknown)
}

func TestPublishOfWhatTheServerFindsTooLargeNamesSizeAndLimit(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.MaxPayload = 1000 }))
	c := testkit.ConnectTo(t, node.URL())
	testkit.Ensure(t, c, "S", "s")
	err := publishError(t, c, &nats.Msg{Subject: "s", Data: make([]byte, 1001)})
	require.ErrorIs(t, err, natty.ErrTooLarge)
	require.ErrorIs(t, err, nats.ErrMaxPayload)
	assert.Contains(t, err.Error(), "takes 1000 at most")
	assert.False(t, err.Unknown)
	assert.Zero(t, node.Server().NumSlowConsumers(), "nothing too large is sent: the server would close the connection")
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", make([]byte, 800)))
}

func TestPublishOverALimitThatWasLoweredIsNamed(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]func(*nattytest.Node) string{
		"TCP":       (*nattytest.Node).URL,
		"WebSocket": func(n *nattytest.Node) string { return n.Server().WebsocketURL() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			publishOverALoweredLimit(t, url)
		})
	}
}

func publishOverALoweredLimit(t *testing.T, url func(*nattytest.Node) string) {
	t.Helper()
	var lowered server.Options
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Websocket.Host, o.Websocket.Port, o.Websocket.NoTLS = "127.0.0.1", server.RANDOM_PORT, true
		lowered = *o
	}))
	c := testkit.ConnectTo(t, url(node))
	s := testkit.Ensure(t, c, "S", "s.>")
	lowered.MaxPayload, lowered.MaxControlLine = 3000, 1024
	require.NoError(t, node.Server().ReloadOptions(&lowered))

	large, deep := make([]byte, 5000), "s."+strings.Repeat("a", 1500)
	err := c.Publish(testkit.Ctx(t), "s.a", large)
	require.ErrorIs(t, err, natty.ErrTooLarge)
	var failed *natty.PublishError
	require.ErrorAs(t, err, &failed)
	assert.False(t, failed.Unknown, "the server did not read it")
	begin := time.Now()
	err = c.Publish(testkit.Ctx(t), deep, nil)
	require.ErrorIs(t, err, natty.ErrTooLarge)
	require.ErrorContains(t, err, "max_control_line")
	assert.Less(t, time.Since(begin), testkit.Patience/2)
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.a", []byte("small")))
	assert.Equal(t, 3, c.Health().Reconnects, "one for the payload, two for the subject")
	assert.Equal(t, uint64(1), testkit.Stored(t, s))
}

func TestPublishOfWhatTheStreamFindsTooLargeNamesSizeAndLimit(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "SMALL", Subjects: []string{"s"}, MaxMsgSize: 100})
	require.NoError(t, err)
	failed := publishError(t, c, &nats.Msg{Subject: "s", Data: make([]byte, 101)})
	require.ErrorIs(t, failed, natty.ErrTooLarge)
	assert.Contains(t, failed.Error(), `stream "SMALL" takes 100 at most`)

	failed = publishError(t, c, &nats.Msg{Subject: "s", Header: nats.Header{"X": {strings.Repeat("x", 100)}}})
	require.ErrorIs(t, failed, natty.ErrTooLarge, "headers count")
}

func TestPublishOfTooLargeHeadersSaysSo(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	err := publishError(t, c, &nats.Msg{Subject: "s", Header: nats.Header{"X": {strings.Repeat("x", 70_000)}}})
	require.ErrorIs(t, err, natty.ErrTooLarge)
	assert.Contains(t, err.Error(), "headers")
}

func TestPublishToAFullStreamFailsAtOnce(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	for name, cfg := range map[string]jetstream.StreamConfig{
		"max_msgs":             {MaxMsgs: 1},
		"max_bytes":            {MaxBytes: 300},
		"max_msgs_per_subject": {MaxMsgsPerSubject: 1, DiscardNewPerSubject: true},
	} {
		for _, storage := range []jetstream.StorageType{jetstream.FileStorage, jetstream.MemoryStorage} {
			cfg.Name = name + storage.String()
			cfg.Subjects = []string{cfg.Name + ".*"}
			cfg.Discard = jetstream.DiscardNew
			cfg.Storage = storage
			s, err := c.EnsureStream(testkit.Ctx(t), cfg)
			require.NoError(t, err)
			require.NoError(t, c.Publish(testkit.Ctx(t), cfg.Name+".x", make([]byte, 100)))
			failed := publishError(t, c, &nats.Msg{Subject: cfg.Name + ".x", Data: make([]byte, 150)})
			require.ErrorIs(t, failed, natty.ErrStreamFull)
			assert.Contains(t, failed.Error(), cfg.Name)
			assert.Contains(t, failed.Error(), "at its "+name+" (")
			assert.False(t, failed.Unknown)
			assert.EqualValues(t, 1, testkit.Stored(t, s))
		}
	}
}

func TestPublishToAStreamThatRenamesSubjectsAndIsFullFailsAtOnce(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s.*"}, Discard: jetstream.DiscardNew, MaxMsgsPerSubject: 1, DiscardNewPerSubject: true,
		SubjectTransform: &jetstream.SubjectTransformConfig{Source: "s.*", Destination: "t.$1"},
	})
	require.NoError(t, err)
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.x", nil))
	require.ErrorIs(t, publishError(t, c, nats.NewMsg("s.x")), natty.ErrStreamFull)
}

func TestPublishOverTheAccountsLimitFailsAtOnce(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.ConnectTo(t, node.URL())
	testkit.Ensure(t, c, "S", "s")
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", nil))
	limits := map[string]server.JetStreamAccountLimits{"": {
		MaxMemory: -1, MaxStore: 1000, MaxStreams: -1, MaxConsumers: -1, MaxAckPending: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1,
	}}
	require.NoError(t, node.Server().GlobalAccount().UpdateJetStreamLimits(limits))
	err := publishError(t, c, &nats.Msg{Subject: "s", Data: make([]byte, 2000)})
	require.ErrorIs(t, err, natty.ErrStreamFull)
	assert.Contains(t, err.Error(), "limits of the account")
	assert.False(t, err.Unknown)
}

func TestPublishAgainstAnExpectationFailsAtOnce(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s.*")
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.a", nil))
	for name, tt := range map[string]struct {
		opt  jetstream.PublishOpt
		code jetstream.ErrorCode
	}{
		"stream":                {jetstream.WithExpectStream("T"), 10060},
		"sequence":              {jetstream.WithExpectLastSequence(7), 10071},
		"sequence of subject":   {jetstream.WithExpectLastSequencePerSubject(7), 10071},
		"sequence of a subject": {jetstream.WithExpectLastSequenceForSubject(7, "s.b"), 10071},
		"message id":            {jetstream.WithExpectLastMsgID("nobody's"), 10070},
	} {
		err := publishError(t, c, nats.NewMsg("s.a"), tt.opt)
		var refused *jetstream.APIError
		require.ErrorAs(t, err, &refused, name)
		assert.Equal(t, tt.code, refused.ErrorCode, name)
		assert.False(t, err.Unknown, name)
		require.NotErrorIs(t, err, natty.ErrStreamFull, name)
	}
	assert.EqualValues(t, 1, testkit.Stored(t, s))
}

func TestPublishOfARollUpThatTheStreamForbidsFailsAtOnce(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	s := testkit.Ensure(t, c, "S", "s.>")
	for _, value := range []string{jetstream.MsgRollupSubject, "some"} {
		began := time.Now()
		_, err := c.PublishMsg(testkit.Ctx(t), &nats.Msg{Subject: "s.a", Header: nats.Header{jetstream.MsgRollup: {value}}})
		require.ErrorContains(t, err, "rollup")
		require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
		assert.Less(t, time.Since(began), testkit.AtOnce)
	}
	assert.Zero(t, testkit.Stored(t, s))
}

func TestHandlerMayPassOnTheHeadersOfABatch(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	ctx := testkit.Ctx(t)
	testkit.BatchStream(t, c, jetstream.StreamConfig{})
	to, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "T", Subjects: []string{"t.>"}, AllowAtomicPublish: true})
	require.NoError(t, err)
	require.NoError(t, c.PublishBatch(ctx, []*nats.Msg{{Subject: "s.1"}, {Subject: "s.2"}, {Subject: "s.3"}}))
	w := testkit.NewWriter(t, c, natty.WriterConfig{})
	passed := make(chan error, 3)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}}, func(ctx context.Context, msg *nats.Msg) error {
		on := &nats.Msg{Subject: "t." + msg.Subject, Header: msg.Header}
		assert.NotEmpty(t, msg.Header.Get("Nats-Batch-Id"))
		_, err := c.PublishMsg(ctx, on)
		on.Header.Del(jetstream.MsgIDHeader)
		passed <- errors.Join(err, w.Write(ctx, on))
		return nil
	})
	for range 3 {
		require.NoError(t, testkit.Receive(t, passed))
	}
	require.NoError(t, w.Flush(ctx))
	assert.EqualValues(t, 6, testkit.Stored(t, to))
}

func TestHandlerThatPassesOnTheHeadersOfAMarkerRemovesNothing(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	ctx := testkit.Ctx(t)
	_, err := c.EnsureStream(ctx, jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s"}, MaxAge: time.Second, AllowMsgTTL: true, SubjectDeleteMarkerTTL: time.Minute,
		Duplicates: time.Second,
	})
	require.NoError(t, err)
	to, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "T", Subjects: []string{"t"}, AllowMsgTTL: true, AllowRollup: true})
	require.NoError(t, err)
	testkit.Fill(t, c, "t", 5)
	w := testkit.NewWriter(t, c, natty.WriterConfig{})
	passed := make(chan error, 2)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}}, func(ctx context.Context, msg *nats.Msg) error {
		on := &nats.Msg{Subject: "t", Header: msg.Header, Data: msg.Data}
		if msg.Header.Get(jetstream.MarkerReasonHeader) != "" {
			assert.NotEmpty(t, msg.Header.Get(jetstream.MsgRollup))
			_, err := c.PublishMsg(ctx, on)
			passed <- errors.Join(err, w.Write(ctx, on))
		}
		return nil
	})
	require.NoError(t, c.Publish(ctx, "s", nil))
	require.NoError(t, testkit.Receive(t, passed))
	require.NoError(t, w.Flush(ctx))
	assert.EqualValues(t, 7, testkit.Stored(t, to))

	on := nats.NewMsg("t")
	on.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	_, err = c.PublishMsg(ctx, on)
	require.NoError(t, err)
	assert.EqualValues(t, 1, testkit.Stored(t, to), "a roll-up of the user's own is sent")
}

func TestPublishWithoutPermissionFailsAtOnceAndLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	node := testkit.Restrict(t, "s.allowed", "$JS.API.>")
	testkit.Ensure(t, testkit.Login(t, node.URL(), "root"), "S", "s.*")
	c := testkit.Login(t, node.URL(), "app")
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			for range 50 {
				assert.NoError(t, c.Publish(testkit.Ctx(t), "s.allowed", nil))
			}
		})
	}
	for range 20 {
		err := publishError(t, c, nats.NewMsg("s.denied"))
		require.ErrorIs(t, err, nats.ErrPermissionViolation)
		require.False(t, err.Unknown)
		require.Contains(t, err.Error(), "s.denied")
	}
	others.Wait()
}

func TestPublishToAStreamThatAcknowledgesNothingSaysSo(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "SILENT", Subjects: []string{"s"}, NoAck: true})
	require.NoError(t, err)
	failed := publishError(t, c, nats.NewMsg("s"))
	var wrong *natty.ConfigError
	require.ErrorAs(t, failed, &wrong)
	assert.Equal(t, "SILENT", wrong.Value)
	assert.Contains(t, failed.Error(), "no_ack")
	assert.True(t, failed.Unknown)
	assert.EqualValues(t, 1, testkit.Stored(t, s), "it is not sent again")
}

func TestPublishAnsweredByAServiceIsNotTakenForStored(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	for i, answer := range []string{"", "done", "{}", `"x"`, "[]", `{"seq":1}`, `{"stream":"","seq":1}`, "null"} {
		subject := fmt.Sprintf("service.%d", i)
		_, err := c.Conn().Subscribe(subject, func(m *nats.Msg) { assert.NoError(t, m.Respond([]byte(answer))) })
		require.NoError(t, err)
		failed := publishError(t, c, nats.NewMsg(subject))
		assert.Contains(t, failed.Error(), "service", "answer %q", answer)
		assert.True(t, failed.Unknown, "a stream may hold the subject too")
	}
}

func TestPublishOfNoMessageIsRefused(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	err := publishError(t, c, nil)
	var wrong *natty.ConfigError
	require.ErrorAs(t, err, &wrong)
	assert.Equal(t, `natty: publish to "": msg: is nil; give a message`, err.Error())
}

func TestPublishToAnInvalidSubjectSendsNothing(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "ALL", "s.>")
	for _, subject := range []string{
		"", " ", "s.*", "s.>", ">", "*", "s..a", ".s", "s.", "s a", "s.a\tb", "s.a\r\nPUB s.b 0\r\n\r\n", "s.\x00", "s.a ",
	} {
		err := publishError(t, c, nats.NewMsg(subject))
		var wrong *natty.ConfigError
		require.ErrorAs(t, err, &wrong, "subject %q", subject)
		assert.Equal(t, "subject", wrong.Field)
		assert.Empty(t, err.MsgID, "it was not sent")
		assert.False(t, err.Unknown)
		require.ErrorAs(t, c.Publish(testkit.Ctx(t), subject, nil), &wrong)
	}
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.a*b.c>", nil), "no wildcard: it is part of a token")
	assert.EqualValues(t, 1, testkit.Stored(t, s))
}

func TestPublishWithOptionsThatNATSRefusesSendsNothing(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	for _, opt := range []jetstream.PublishOpt{
		jetstream.WithExpectLastSequenceForSubject(1, ""), jetstream.WithRetryWait(-1), jetstream.WithRetryAttempts(-1),
		jetstream.WithStallWait(-1), jetstream.WithStallWait(time.Second), jetstream.WithScheduleEvery(1),
	} {
		err := publishError(t, c, nats.NewMsg("s"), opt)
		var wrong *natty.ConfigError
		require.ErrorAs(t, err, &wrong)
		assert.Equal(t, "opts", wrong.Field)
		require.ErrorIs(t, err, jetstream.ErrInvalidOption)
	}
	assert.Zero(t, testkit.Stored(t, s))
}

func TestPublishAfterCloseIsErrClosed(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	require.NoError(t, c.Close(testkit.Ctx(t)))
	err := publishError(t, c, nats.NewMsg("s"))
	require.ErrorIs(t, err, natty.ErrClosed)
	require.False(t, err.Unknown)
	_, streamErr := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S"})
	require.ErrorIs(t, streamErr, natty.ErrClosed)
}

func TestPublishWithAContextThatHasEndedSendsNothing(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := c.Publish(ctx, "s", nil)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Zero(t, testkit.Stored(t, s))
}

func TestPublishWithoutJetStreamSaysSoWhenTimeIsUp(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStream = false }))
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, PublishTimeout: time.Second})
	err := c.Publish(t.Context(), "s", nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Contains(t, err.Error(), "JetStream does not answer; is it enabled")

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = c.EnsureStream(ctx, jetstream.StreamConfig{Name: "S"})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Contains(t, err.Error(), "JetStream does not answer; is it enabled")
}

func TestPublishWithoutJetStreamForTheAccountSaysSo(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		plain := server.NewAccount("PLAIN")
		o.Accounts = append(o.Accounts, plain)
		o.Users = append(o.Users, &server.User{Username: "app", Password: "secret", Account: plain})
	}))
	c := testkit.Connect(t, natty.Config{
		Servers: []string{node.URL()}, User: "app", Password: "secret", PublishTimeout: time.Second,
	})
	err := c.Publish(t.Context(), "s", nil)
	require.Error(t, err)
	assert.Contains(t, strings.ToLower(err.Error()), "jetstream")
	assert.Contains(t, err.Error(), "enabled")
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
}

func TestPublishReportsACallersDuplicateAndNeverItsOwn(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	for _, send := range []func() (*jetstream.PubAck, error){
		func() (*jetstream.PubAck, error) {
			return c.PublishMsg(testkit.Ctx(t), &nats.Msg{Subject: "s", Header: nats.Header{nats.MsgIdHdr: {"in the header"}}})
		},
		func() (*jetstream.PubAck, error) {
			return c.PublishMsg(testkit.Ctx(t), nats.NewMsg("s"), jetstream.WithMsgID("in an option"))
		},
	} {
		first, err := send()
		require.NoError(t, err)
		assert.False(t, first.Duplicate)
		second, err := send()
		require.NoError(t, err)
		assert.True(t, second.Duplicate)
		assert.Equal(t, first.Sequence, second.Sequence)
	}
	for i := range 3 {
		ack, err := c.PublishMsg(testkit.Ctx(t), nats.NewMsg("s"))
		require.NoError(t, err)
		assert.Equal(t, &jetstream.PubAck{Stream: "S", Sequence: uint64(3 + i)}, ack)
	}
	assert.EqualValues(t, 5, testkit.Stored(t, s))
}

func TestPublishNeverWritesToTheCallersMessage(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, AllowMsgTTL: true})
	require.NoError(t, err)
	full := func() *nats.Msg {
		return &nats.Msg{
			Subject: "s", Reply: "theirs", Data: []byte("data"),
			Header: nats.Header{"A": {"1", "2"}, "lower": {"3"}, jetstream.ExpectedStreamHeader: {"OTHER"}, "Empty": {}, "Nil": nil},
		}
	}
	bare := func() *nats.Msg { return &nats.Msg{Subject: "s", Data: []byte("data")} }
	opts := []jetstream.PublishOpt{jetstream.WithExpectStream("S"), jetstream.WithMsgTTL(time.Hour)}
	for _, made := range []func() *nats.Msg{full, bare} {
		msg := made()
		var publishers sync.WaitGroup
		for range 8 { // the race detector sees who writes
			publishers.Go(func() {
				for range 20 {
					_, err := c.PublishMsg(testkit.Ctx(t), msg, opts...)
					assert.NoError(t, err)
				}
			})
		}
		publishers.Wait()
		assert.Equal(t, made(), msg)
	}
	got, err := s.GetMsg(testkit.Ctx(t), 1)
	require.NoError(t, err)
	assert.Equal(t, []string{"1", "2"}, got.Header["A"])
	assert.Equal(t, []string{"3"}, got.Header["lower"])
	assert.Equal(t, []string{"S"}, got.Header[jetstream.ExpectedStreamHeader], "an option wins over a header")
	assert.EqualValues(t, 2*8*20, testkit.Stored(t, s), "each has an id of its own")
}

// TestPublishOptionsSetWhatJetStreamSets compares what natty sends for each option with what nats.go sends. It fails when
// a new nats.go no longer writes headers before it looks at its context, which natty relies on.
func TestPublishOptionsSetWhatJetStreamSets(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	sent := make(chan nats.Header, 1)
	_, err := c.Conn().Subscribe("service", func(m *nats.Msg) {
		sent <- m.Header
		assert.NoError(t, m.Respond([]byte(`{"stream":"S","seq":1}`)))
	})
	require.NoError(t, err)
	for name, opts := range map[string][]jetstream.PublishOpt{
		"none":               nil,
		"message id":         {jetstream.WithMsgID("id")},
		"ttl":                {jetstream.WithMsgTTL(90 * time.Second)},
		"stream":             {jetstream.WithExpectStream("S")},
		"sequence":           {jetstream.WithExpectLastSequence(0)},
		"subject's sequence": {jetstream.WithExpectLastSequencePerSubject(18446744073709551615)},
		"other's sequence":   {jetstream.WithExpectLastSequenceForSubject(3, "other")},
		"last message id":    {jetstream.WithExpectLastMsgID("last")},
		"retries":            {jetstream.WithRetryWait(time.Second), jetstream.WithRetryAttempts(5)},
		"schedule at":        {jetstream.WithScheduleAt(time.Unix(1e9, 0)), jetstream.WithScheduleTarget("target")},
		"schedule every":     {jetstream.WithScheduleEvery(time.Minute), jetstream.WithScheduleSource("source"), jetstream.WithScheduleTTL(time.Hour)},
		"schedule cron":      {jetstream.WithScheduleCron("@daily"), jetstream.WithScheduleTimeZone("Europe/Vienna"), jetstream.WithScheduleTTLNever(), jetstream.WithScheduleRollup()},
	} {
		msg := func() *nats.Msg {
			return &nats.Msg{Subject: "service", Header: nats.Header{"Mine": {"1", "2"}, jetstream.ExpectedStreamHeader: {"in a header"}}}
		}
		_, err := c.JetStream().PublishMsg(testkit.Ctx(t), msg(), opts...)
		require.NoError(t, err)
		want := testkit.Receive(t, sent)
		_, err = c.PublishMsg(testkit.Ctx(t), msg(), opts...)
		require.NoError(t, err)
		got := testkit.Receive(t, sent)
		if want[jetstream.MsgIDHeader] == nil {
			assert.NotEmpty(t, got.Get(jetstream.MsgIDHeader))
			delete(got, jetstream.MsgIDHeader)
		}
		assert.Equal(t, want, got, name)
	}
}

func TestPublishSaysWhatIsWrongWithAHeader(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	_, err := c.PublishMsg(testkit.Ctx(t), &nats.Msg{Subject: "s", Header: nats.Header{"a b": {"1"}}})
	var config *natty.ConfigError
	require.ErrorAs(t, err, &config)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	require.ErrorContains(t, err, "name headers with letters")
	err = c.Publish(testkit.Ctx(t), "s", nil, jetstream.WithMsgTTL(time.Second))
	require.ErrorContains(t, err, "set AllowMsgTTL with EnsureStream")
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Zero(t, testkit.Stored(t, s))
}

func TestPublishWorksThroughADomain(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStreamDomain = "hub" }))
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, Domain: "hub"})
	conditional(t, c)
	ack, err := c.PublishMsg(testkit.Ctx(t), nats.NewMsg("s"))
	require.NoError(t, err)
	assert.Equal(t, "hub", ack.Domain)
}

func TestPublishWorksThroughAnAPIPrefix(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStreamDomain = "hub" }))
	conditional(t, testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, APIPrefix: "$JS.hub.API"}))
}

// conditional makes a stream and publishes with options, which takes every kind of request to the API.
func conditional(t *testing.T, c *natty.Client) {
	testkit.Ensure(t, c, "S", "s")
	ack, err := c.PublishMsg(testkit.Ctx(t), nats.NewMsg("s"), jetstream.WithExpectLastSequence(0))
	require.NoError(t, err)
	assert.EqualValues(t, 1, ack.Sequence)
	require.ErrorIs(t, publishError(t, c, nats.NewMsg("none")), natty.ErrNoStream)
	testkit.Ensure(t, c, "S", "s", "more")
	require.NoError(t, c.Publish(testkit.Ctx(t), "more", nil))
}

func TestPublishIDsAreShortAndNeverTheSame(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	seen := map[string]int{}
	for range 2 {
		c := testkit.ConnectTo(t, node.URL())
		s := testkit.Ensure(t, c, "S", "s")
		testkit.Fill(t, c, "s", 50)
		for seq := range testkit.Stored(t, s) {
			m, err := s.GetMsg(testkit.Ctx(t), seq+1)
			require.NoError(t, err)
			seen[m.Header.Get(nats.MsgIdHdr)]++
		}
	}
	assert.Len(t, seen, 100)
	for id := range seen {
		assert.LessOrEqual(t, len(id), 24)
	}
}

func TestBatchIsStoredWholeAndInOrder(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.BatchStream(t, c, jetstream.StreamConfig{})
	require.NoError(t, c.PublishBatch(testkit.Ctx(t), nil), "an empty one does nothing")
	for _, n := range []int{1, 2, 1000} {
		before := testkit.Stored(t, s)
		msgs := testkit.Messages(n, "b")
		msgs[0].Header = nats.Header{"Mine": {"1"}}
		msgs[0].Reply = "r"
		require.NoError(t, c.PublishBatch(testkit.Ctx(t), msgs))
		assert.EqualValues(t, n, testkit.Stored(t, s)-before)
		assert.Equal(t, nats.Header{"Mine": {"1"}}, msgs[0].Header, "the caller's headers are left alone")
		assert.Equal(t, "r", msgs[0].Reply)
		for i := range n {
			m, err := s.GetMsg(testkit.Ctx(t), before+uint64(i)+1)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("s.%d", i%3), m.Subject)
			require.NotEmpty(t, m.Header.Get("Nats-Msg-Id"))
		}
	}
}

func TestBatchThatCannotWorkIsRefusedBeforeAnythingIsSent(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.MaxPayload = 2000 }))
	c := testkit.ConnectTo(t, node.URL())
	s := testkit.BatchStream(t, c, jetstream.StreamConfig{MaxMsgSize: 1000})
	testkit.Ensure(t, c, "PLAIN", "plain")
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "SILENT", Subjects: []string{"silent"}, NoAck: true})
	require.NoError(t, err)
	a := func() *nats.Msg { return nats.NewMsg("s.a") }
	withID := func(id string) *nats.Msg { return &nats.Msg{Subject: "s.a", Header: nats.Header{"Nats-Msg-Id": {id}}} }
	for name, test := range map[string]struct {
		msgs []*nats.Msg
		want string
		is   error
	}{
		"nil message":         {[]*nats.Msg{a(), nil}, "msgs[1]: is nil", nil},
		"wildcard":            {[]*nats.Msg{a(), nats.NewMsg("s.*")}, "msgs[1]: natty: subject \"s.*\": holds a wildcard", nil},
		"too many":            {testkit.Messages(1001, ""), "more than the 1000", nil},
		"one id twice":        {[]*nats.Msg{withID("x"), a(), withID("x")}, "is the id of msgs[0] too", nil},
		"two streams":         {[]*nats.Msg{a(), nats.NewMsg("plain")}, "is in stream PLAIN and the first message's in S", nil},
		"no stream":           {[]*nats.Msg{a(), nats.NewMsg("nowhere")}, "EnsureStream", natty.ErrNoStream},
		"no stream at all":    {[]*nats.Msg{nats.NewMsg("nowhere")}, "", natty.ErrNoStream},
		"not allowed":         {[]*nats.Msg{nats.NewMsg("plain")}, "set AllowAtomicPublish", nil},
		"no acknowledgements": {[]*nats.Msg{nats.NewMsg("silent")}, "NoAck", nil},
		"over the stream's":   {[]*nats.Msg{a(), {Subject: "s.a", Data: make([]byte, 1000)}}, "max_msg_size", natty.ErrTooLarge},
		"over the server's":   {[]*nats.Msg{a(), {Subject: "s.a", Data: make([]byte, 2000)}}, "max_payload", natty.ErrTooLarge},
		"expects too late":    {[]*nats.Msg{a(), {Subject: "s.b", Header: nats.Header{"Nats-Expected-Last-Sequence": {"0"}}}}, "only the first message of a batch can", nil},
		"expects in vain":     {[]*nats.Msg{a(), {Subject: "s.a", Header: nats.Header{"Nats-Expected-Last-Subject-Sequence": {"0"}}}}, `msgs[1]: expects a last sequence of "s.a", which msgs[0] writes`, nil},
		"of another subject":  {[]*nats.Msg{a(), {Subject: "s.b", Header: nats.Header{"Nats-Expected-Last-Subject-Sequence": {"0"}, "Nats-Expected-Last-Subject-Sequence-Subject": {"s.a"}}}}, "which msgs[0] writes", nil},
		"expects an id":       {[]*nats.Msg{{Subject: "s.a", Header: nats.Header{"Nats-Expected-Last-Msg-Id": {"x"}}}}, "expect a sequence", nil},
	} {
		err := c.PublishBatch(testkit.Ctx(t), test.msgs)
		var failed *natty.PublishError
		require.ErrorAs(t, err, &failed, name)
		assert.False(t, failed.Unknown, name)
		assert.Empty(t, failed.MsgID, name)
		assert.Contains(t, err.Error(), test.want, name)
		if test.is != nil {
			require.ErrorIs(t, err, test.is, name)
		} else {
			var config *natty.ConfigError
			require.ErrorAs(t, err, &config, name)
		}
	}
	assert.Zero(t, testkit.Stored(t, s))
}

func TestBatchNamesTheMessageWhoseHeadersAreTooLarge(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	testkit.BatchStream(t, c, jetstream.StreamConfig{})
	large := nats.Header{"A": {strings.Repeat("a", 1<<16)}}
	err := c.PublishBatch(testkit.Ctx(t), []*nats.Msg{nats.NewMsg("s.first"), {Subject: "s.large", Header: large}})
	var failed *natty.PublishError
	require.ErrorAs(t, err, &failed)
	require.ErrorIs(t, err, natty.ErrTooLarge)
	assert.Equal(t, "s.large", failed.Subject)
	assert.Contains(t, err.Error(), "msgs[1]")
}

func TestBatchWithAnIDThatTheStreamHasIsRefusedWhole(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.BatchStream(t, c, jetstream.StreamConfig{})
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.a", nil, jetstream.WithMsgID("x")))
	msgs := testkit.Messages(3, "b")
	msgs[1].Header = nats.Header{"Nats-Msg-Id": {"x"}}
	err := c.PublishBatch(testkit.Ctx(t), msgs)
	require.ErrorContains(t, err, "has one of the ids already")
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.EqualValues(t, 1, testkit.Stored(t, s))
}

func TestBatchForAFullStreamIsRefusedWhole(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.BatchStream(t, c, jetstream.StreamConfig{MaxMsgs: 5, Discard: jetstream.DiscardNew})
	require.NoError(t, c.PublishBatch(testkit.Ctx(t), testkit.Messages(4, "b")))
	err := c.PublishBatch(testkit.Ctx(t), testkit.Messages(2, "b"))
	require.ErrorIs(t, err, natty.ErrStreamFull)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.EqualValues(t, 4, testkit.Stored(t, s))
}

// The server has fifty places for batches, which one that was begun and not committed would hold for ten seconds.
func TestBatchesThatFailLeaveNoPlaceTakenOnTheServer(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.ConnectTo(t, node.URL())
	testkit.BatchStream(t, c, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	proxy := nattytest.Proxy(t, node.URL())
	held := testkit.ConnectTo(t, proxy.URL())
	proxy.Delay(100 * time.Millisecond)
	var all sync.WaitGroup
	for range 60 {
		all.Go(func() {
			// Time to look the stream up (two round trips) and to send the first message, and not to commit.
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond+rand.N(100*time.Millisecond))
			defer cancel()
			assert.Error(t, held.PublishBatch(ctx, testkit.Messages(3, "late")))
		})
	}
	all.Wait()
	proxy.Delay(0)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for range 40 {
		all.Go(func() { assert.NoError(t, c.PublishBatch(ctx, testkit.Messages(3, "now"))) })
	}
	all.Wait()
}

package natty_test

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/natty-go/natty/nattytest"
)

// publishError publishes with a long ctx and returns the error, which must be a *natty.PublishError and come at once.
func publishError(t testing.TB, c *natty.Client, msg *nats.Msg, opts ...jetstream.PublishOpt) *natty.PublishError {
	t.Helper()
	begin := time.Now()
	ack, err := c.PublishMsg(testCtx(t), msg, opts...)
	took := time.Since(begin)
	require.Error(t, err)
	assert.Nil(t, ack)
	assert.Less(t, took, atOnce, "it must not take this long: %v", err)
	var failed *natty.PublishError
	require.ErrorAs(t, err, &failed)
	return failed
}

// restrict makes a server with the user "app", who may publish to allowed only.
func restrict(t testing.TB, allowed ...string) *nattytest.Node {
	t.Helper()
	return nattytest.Server(t, nattytest.User("root", "secret"), nattytest.Options(func(o *server.Options) {
		o.Users = append(o.Users, &server.User{
			Username: "app", Password: "secret",
			Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Allow: allowed},
				Subscribe: &server.SubjectPermission{Allow: []string{">"}},
			},
		})
	}))
}

func login(t testing.TB, url, user string) *natty.Client {
	t.Helper()
	return connect(t, natty.Config{Servers: []string{url}, User: user, Password: "secret"})
}

func stored(t testing.TB, s jetstream.Stream) uint64 {
	t.Helper()
	info, err := s.Info(testCtx(t))
	require.NoError(t, err)
	return info.State.Msgs
}

func TestPublishWithoutStreamFailsAtOnce(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
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
	c := connectTo(t, node.URL())
	ensure(t, c, "S", "s")
	err := publishError(t, c, &nats.Msg{Subject: "s", Data: make([]byte, 1001)})
	require.ErrorIs(t, err, natty.ErrTooLarge)
	require.ErrorIs(t, err, nats.ErrMaxPayload)
	assert.Contains(t, err.Error(), "takes 1000 at most")
	assert.False(t, err.Unknown)
	assert.Zero(t, node.Server().NumSlowConsumers(), "nothing too large is sent: the server would close the connection")
	require.NoError(t, c.Publish(testCtx(t), "s", make([]byte, 800)))
}

func TestPublishOfWhatTheStreamFindsTooLargeNamesSizeAndLimit(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	_, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "SMALL", Subjects: []string{"s"}, MaxMsgSize: 100})
	require.NoError(t, err)
	failed := publishError(t, c, &nats.Msg{Subject: "s", Data: make([]byte, 101)})
	require.ErrorIs(t, failed, natty.ErrTooLarge)
	assert.Contains(t, failed.Error(), `stream "SMALL" takes 100 at most`)

	failed = publishError(t, c, &nats.Msg{Subject: "s", Header: nats.Header{"X": {strings.Repeat("x", 100)}}})
	require.ErrorIs(t, failed, natty.ErrTooLarge, "headers count")
}

func TestPublishOfTooLargeHeadersSaysSo(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	err := publishError(t, c, &nats.Msg{Subject: "s", Header: nats.Header{"X": {strings.Repeat("x", 70_000)}}})
	require.ErrorIs(t, err, natty.ErrTooLarge)
	assert.Contains(t, err.Error(), "headers")
}

func TestPublishToAFullStreamFailsAtOnce(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
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
			s, err := c.EnsureStream(testCtx(t), cfg)
			require.NoError(t, err)
			require.NoError(t, c.Publish(testCtx(t), cfg.Name+".x", make([]byte, 100)))
			failed := publishError(t, c, &nats.Msg{Subject: cfg.Name + ".x", Data: make([]byte, 150)})
			require.ErrorIs(t, failed, natty.ErrStreamFull)
			assert.Contains(t, failed.Error(), cfg.Name)
			assert.Contains(t, failed.Error(), "at its "+name+" (")
			assert.False(t, failed.Unknown)
			assert.EqualValues(t, 1, stored(t, s))
		}
	}
}

func TestPublishToAStreamThatRenamesSubjectsAndIsFullFailsAtOnce(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	_, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s.*"}, Discard: jetstream.DiscardNew, MaxMsgsPerSubject: 1, DiscardNewPerSubject: true,
		SubjectTransform: &jetstream.SubjectTransformConfig{Source: "s.*", Destination: "t.$1"},
	})
	require.NoError(t, err)
	require.NoError(t, c.Publish(testCtx(t), "s.x", nil))
	require.ErrorIs(t, publishError(t, c, nats.NewMsg("s.x")), natty.ErrStreamFull)
}

func TestPublishOverTheAccountsLimitFailsAtOnce(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := connectTo(t, node.URL())
	ensure(t, c, "S", "s")
	require.NoError(t, c.Publish(testCtx(t), "s", nil))
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
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s.*")
	require.NoError(t, c.Publish(testCtx(t), "s.a", nil))
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
	assert.EqualValues(t, 1, stored(t, s))
}

func TestPublishWithoutPermissionFailsAtOnceAndLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	node := restrict(t, "s.allowed", "$JS.API.>")
	ensure(t, login(t, node.URL(), "root"), "S", "s.*")
	c := login(t, node.URL(), "app")
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			for range 50 {
				assert.NoError(t, c.Publish(testCtx(t), "s.allowed", nil))
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
	c := connectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "SILENT", Subjects: []string{"s"}, NoAck: true})
	require.NoError(t, err)
	failed := publishError(t, c, nats.NewMsg("s"))
	var wrong *natty.ConfigError
	require.ErrorAs(t, failed, &wrong)
	assert.Equal(t, "SILENT", wrong.Value)
	assert.Contains(t, failed.Error(), "no_ack")
	assert.True(t, failed.Unknown)
	assert.EqualValues(t, 1, stored(t, s), "it is not sent again")
}

func TestPublishAnsweredByAServiceIsNotTakenForStored(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
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
	c := connectTo(t, nattytest.Server(t).URL())
	err := publishError(t, c, nil)
	var wrong *natty.ConfigError
	require.ErrorAs(t, err, &wrong)
	assert.Equal(t, `natty: publish to "": msg: is nil; give a message`, err.Error())
}

func TestPublishToAnInvalidSubjectSendsNothing(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "ALL", "s.>")
	for _, subject := range []string{
		"", " ", "s.*", "s.>", ">", "*", "s..a", ".s", "s.", "s a", "s.a\tb", "s.a\r\nPUB s.b 0\r\n\r\n", "s.\x00", "s.a ",
	} {
		err := publishError(t, c, nats.NewMsg(subject))
		var wrong *natty.ConfigError
		require.ErrorAs(t, err, &wrong, "subject %q", subject)
		assert.Equal(t, "subject", wrong.Field)
		assert.Empty(t, err.MsgID, "it was not sent")
		assert.False(t, err.Unknown)
		require.ErrorAs(t, c.Publish(testCtx(t), subject, nil), &wrong)
	}
	require.NoError(t, c.Publish(testCtx(t), "s.a*b.c>", nil), "no wildcard: it is part of a token")
	assert.EqualValues(t, 1, stored(t, s))
}

func TestPublishWithOptionsThatNATSRefusesSendsNothing(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s")
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
	assert.Zero(t, stored(t, s))
}

func TestPublishAfterCloseIsErrClosed(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	require.NoError(t, c.Close(testCtx(t)))
	err := publishError(t, c, nats.NewMsg("s"))
	require.ErrorIs(t, err, natty.ErrClosed)
	require.False(t, err.Unknown)
	_, streamErr := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "S"})
	require.ErrorIs(t, streamErr, natty.ErrClosed)
}

func TestPublishWithAContextThatHasEndedSendsNothing(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := c.Publish(ctx, "s", nil)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Zero(t, stored(t, s))
}

func TestPublishWithoutJetStreamSaysSoWhenTimeIsUp(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStream = false }))
	c := connect(t, natty.Config{Servers: []string{node.URL()}, PublishTimeout: time.Second})
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
	c := connect(t, natty.Config{
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
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s")
	for _, send := range []func() (*jetstream.PubAck, error){
		func() (*jetstream.PubAck, error) {
			return c.PublishMsg(testCtx(t), &nats.Msg{Subject: "s", Header: nats.Header{nats.MsgIdHdr: {"in the header"}}})
		},
		func() (*jetstream.PubAck, error) {
			return c.PublishMsg(testCtx(t), nats.NewMsg("s"), jetstream.WithMsgID("in an option"))
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
		ack, err := c.PublishMsg(testCtx(t), nats.NewMsg("s"))
		require.NoError(t, err)
		assert.Equal(t, &jetstream.PubAck{Stream: "S", Sequence: uint64(3 + i)}, ack)
	}
	assert.EqualValues(t, 5, stored(t, s))
}

func TestPublishNeverWritesToTheCallersMessage(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, AllowMsgTTL: true})
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
					_, err := c.PublishMsg(testCtx(t), msg, opts...)
					assert.NoError(t, err)
				}
			})
		}
		publishers.Wait()
		assert.Equal(t, made(), msg)
	}
	got, err := s.GetMsg(testCtx(t), 1)
	require.NoError(t, err)
	assert.Equal(t, []string{"1", "2"}, got.Header["A"])
	assert.Equal(t, []string{"3"}, got.Header["lower"])
	assert.Equal(t, []string{"S"}, got.Header[jetstream.ExpectedStreamHeader], "an option wins over a header")
	assert.EqualValues(t, 2*8*20, stored(t, s), "each has an id of its own")
}

// TestPublishOptionsSetWhatJetStreamSets compares what natty sends for each option with what nats.go sends. It fails when
// a new nats.go no longer writes headers before it looks at its context, which natty relies on.
func TestPublishOptionsSetWhatJetStreamSets(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
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
		_, err := c.JetStream().PublishMsg(testCtx(t), msg(), opts...)
		require.NoError(t, err)
		want := receive(t, sent)
		_, err = c.PublishMsg(testCtx(t), msg(), opts...)
		require.NoError(t, err)
		got := receive(t, sent)
		if want[jetstream.MsgIDHeader] == nil {
			assert.NotEmpty(t, got.Get(jetstream.MsgIDHeader))
			delete(got, jetstream.MsgIDHeader)
		}
		assert.Equal(t, want, got, name)
	}
}

func TestPublishSaysWhatIsWrongWithAHeader(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s")
	_, err := c.PublishMsg(testCtx(t), &nats.Msg{Subject: "s", Header: nats.Header{"a b": {"1"}}})
	var config *natty.ConfigError
	require.ErrorAs(t, err, &config)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	require.ErrorContains(t, err, "name headers with letters")
	err = c.Publish(testCtx(t), "s", nil, jetstream.WithMsgTTL(time.Second))
	require.ErrorContains(t, err, "set AllowMsgTTL with EnsureStream")
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Zero(t, stored(t, s))
}

func TestPublishWorksThroughADomain(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStreamDomain = "hub" }))
	c := connect(t, natty.Config{Servers: []string{node.URL()}, Domain: "hub"})
	conditional(t, c)
	ack, err := c.PublishMsg(testCtx(t), nats.NewMsg("s"))
	require.NoError(t, err)
	assert.Equal(t, "hub", ack.Domain)
}

func TestPublishWorksThroughAnAPIPrefix(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStreamDomain = "hub" }))
	conditional(t, connect(t, natty.Config{Servers: []string{node.URL()}, APIPrefix: "$JS.hub.API"}))
}

// conditional makes a stream and publishes with options, which takes every kind of request to the API.
func conditional(t *testing.T, c *natty.Client) {
	ensure(t, c, "S", "s")
	ack, err := c.PublishMsg(testCtx(t), nats.NewMsg("s"), jetstream.WithExpectLastSequence(0))
	require.NoError(t, err)
	assert.EqualValues(t, 1, ack.Sequence)
	require.ErrorIs(t, publishError(t, c, nats.NewMsg("none")), natty.ErrNoStream)
	ensure(t, c, "S", "s", "more")
	require.NoError(t, c.Publish(testCtx(t), "more", nil))
}

func TestPublishIDsAreShortAndNeverTheSame(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	seen := map[string]int{}
	for range 2 {
		c := connectTo(t, node.URL())
		s := ensure(t, c, "S", "s")
		fill(t, c, "s", 50)
		for seq := range stored(t, s) {
			m, err := s.GetMsg(testCtx(t), seq+1)
			require.NoError(t, err)
			seen[m.Header.Get(nats.MsgIdHdr)]++
		}
	}
	assert.Len(t, seen, 100)
	for id := range seen {
		assert.LessOrEqual(t, len(id), 24)
	}
}

func TestPublishErrorPrintsItsCauseOnce(t *testing.T) {
	t.Parallel()
	cause := &natty.ConfigError{Field: "f", Reason: "r"}
	err := &natty.PublishError{Subject: "s", MsgID: "id", Unknown: true, Err: cause}
	assert.Equal(t, `natty: publish to "s" (message id id): outcome unknown: the message may be stored: f: r`, err.Error())
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
	require.ErrorIs(t, err, cause)
	err.Unknown = false
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Equal(t, `natty: publish to "s": f: r`, err.Error())
}

// bodies reads a whole stream: the sequences of each body.
func bodies(t testing.TB, s jetstream.Stream) map[string][]uint64 {
	t.Helper()
	n := stored(t, s)
	found := make(map[string][]uint64, n)
	if n == 0 {
		return found
	}
	// A stream whose leader has just changed may have nobody to answer.
	eventually(t, func() bool {
		clear(found)
		return readAll(s, int(n), found) == nil
	}, "the stream can be read")
	total := 0
	for _, sequences := range found {
		total += len(sequences)
	}
	require.EqualValues(t, n, total, "the whole stream is read")
	return found
}

// readAll reads n messages of a stream.
func readAll(s jetstream.Stream, n int, found map[string][]uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	batch, err := consumer.Fetch(n, jetstream.FetchMaxWait(patience))
	if err != nil {
		return err
	}
	for msg := range batch.Messages() {
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		found[string(msg.Data())] = append(found[string(msg.Data())], meta.Sequence.Stream)
	}
	return batch.Error()
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
	found := bodies(t, s)
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

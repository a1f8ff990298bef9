package natty_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
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

// given is a file as deployments have it.
const given = `{"consumers":[{"name":"my_nats_consumer","type":"nats","nats":{"brokers":["nats://user:password@127.0.0.1:4222"],"subjects":["commands"],"stream_name":"CENTRIFUGO","consumer_group":"group_name","max_poll_records":25,"disable_reconnect":false,"heartbeat_interval":"10s","create_stream_if_not_exist":true}}]}`

// givenFor is the given file for a server of nattytest.
func givenFor(t testing.TB, server *nattytest.Node) *natty.Service {
	t.Helper()
	return parse(t, strings.ReplaceAll(given, "127.0.0.1:4222", strings.TrimPrefix(server.URL(), "nats://")))
}

func withLogin() nattytest.Option { return nattytest.User("user", "password") }

// connectAsUser connects to a server with that login.
func connectAsUser(t testing.TB, server *nattytest.Node) *natty.Client {
	t.Helper()
	return testkit.Connect(t, natty.Config{Servers: []string{server.URL()}, User: "user", Password: "password"})
}

func parse(t testing.TB, file string) *natty.Service {
	t.Helper()
	s, err := natty.ParseService([]byte(file))
	require.NoError(t, err)
	return s
}

// consumers is a file with a name, servers and these consumers.
func consumers(server *nattytest.Node, list ...string) string {
	return fmt.Sprintf(`{"name":"test","servers":[%q],"consumers":[%s]}`, server.URL(), strings.Join(list, ","))
}

// consumerOf is a consumer whose nats section has these settings.
func consumerOf(name, settings string) string {
	return fmt.Sprintf(`{"name":%q,"type":"nats","nats":{%s}}`, name, settings)
}

// start runs a service in the background. stop ends it and returns what Run returned.
func start(t testing.TB, s *natty.Service, handlers map[string]natty.Handler) (ended <-chan error, stop func() error) {
	t.Helper()
	done := make(chan error, 1)
	stop = testkit.Background(t, "Run", func(ctx context.Context) error {
		err := s.Run(ctx, handlers, testkit.Quiet)
		done <- err
		return err
	})
	return done, stop
}

// counting is a handler that accepts everything.
func counting(y *testkit.Tally) natty.Handler {
	return func(_ context.Context, msg *nats.Msg) error { y.Add(msg); return nil }
}

func accept(context.Context, *nats.Msg) error { return nil }

// fillFrom publishes the bodies from to to-1, and waits for the stream that holds them.
func fillFrom(t testing.TB, c *natty.Client, subject string, from, to int) {
	t.Helper()
	testkit.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second) // a request may be lost in a restart
		defer cancel()
		_, err := c.JetStream().StreamNameBySubject(ctx, subject)
		return err == nil
	}, "a stream holds %s", subject)
	for i := from; i < to; i++ {
		require.NoError(t, c.Publish(testkit.Ctx(t), subject, fmt.Append(nil, i)))
	}
}

func TestServiceFileRunsUnchangedAndMakesItsStream(t *testing.T) {
	t.Parallel()
	s := parse(t, given)
	require.Len(t, s.Consumers, 1)
	assert.Equal(t, "my_nats_consumer", s.Consumers[0].Name)
	assert.True(t, s.Consumers[0].CreateStream)
	assert.Equal(t, []string{"nats://user:password@127.0.0.1:4222"}, s.Consumers[0].Config.Servers)
	assert.Equal(t, natty.ConsumerConfig{
		Stream: "CENTRIFUGO", Durable: "group_name", Subjects: []string{"commands"}, MaxPollRecords: 25, Heartbeat: 10 * time.Second,
	}, s.Consumers[0].Consumer)

	server := nattytest.Server(t, withLogin())
	var seen testkit.Tally
	_, stop := start(t, givenFor(t, server), map[string]natty.Handler{"my_nats_consumer": counting(&seen)})
	c := connectAsUser(t, server)
	fillFrom(t, c, "commands", 0, 50)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 50 }, "all are handled")
	require.NoError(t, stop(), "an end that was asked for is no error")
	unacked, waiting := testkit.AckPending(t, c, "CENTRIFUGO", "group_name")
	assert.Zero(t, unacked+waiting)
	assert.Zero(t, seen.Repeats())
	stream, err := c.JetStream().Stream(testkit.Ctx(t), "CENTRIFUGO")
	require.NoError(t, err)
	assert.Equal(t, []string{"commands"}, stream.CachedInfo().Config.Subjects)
}

func TestServiceStartedBeforeItsServerWaitsForItAndSurvivesRestarts(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, withLogin())
	server.Stop()
	var seen testkit.Tally
	ended, stop := start(t, givenFor(t, server), map[string]natty.Handler{"my_nats_consumer": counting(&seen)})
	select {
	case err := <-ended:
		require.NoError(t, err)
		require.Fail(t, "it did not wait")
	case <-time.After(300 * time.Millisecond): // long enough for more than one attempt
	}
	require.NoError(t, server.Restart())
	c := connectAsUser(t, server)
	fillFrom(t, c, "commands", 0, 10)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 10 }, "messages flow")
	require.NoError(t, server.Restart())
	fillFrom(t, c, "commands", 10, 20)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 20 }, "messages flow again")
	require.NoError(t, stop())
}

func TestServiceThatWaitsForItsServerEndsWithItsContext(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	server.Stop()
	for name, lazy := range map[string]bool{"connecting": false, "making its stream": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := fmt.Sprintf(`{"name":"test","servers":[%q],"lazy_connect":%v,"consumers":[%s]}`, server.URL(), lazy,
				consumerOf("a", `"stream_name":"S","subjects":["s"],"create_stream_if_not_exist":true`))
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			require.NoError(t, parse(t, file).Run(ctx, map[string]natty.Handler{"a": accept}, testkit.Quiet))
		})
	}
}

func TestProcessesWithOneFileShareTheWork(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, withLogin())
	var seen testkit.Tally
	var all sync.WaitGroup // one message for each process
	all.Add(3)
	stops := make([]func() error, 3)
	for i := range stops {
		var first sync.Once
		_, stops[i] = start(t, givenFor(t, server), map[string]natty.Handler{
			"my_nats_consumer": func(_ context.Context, msg *nats.Msg) error {
				first.Do(func() { all.Done(); all.Wait() })
				seen.Add(msg)
				return nil
			},
		})
	}
	c := connectAsUser(t, server)
	fillFrom(t, c, "commands", 0, 100)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 100 }, "all are handled, which takes all three")
	for _, stop := range stops {
		require.NoError(t, stop())
	}
	assert.Zero(t, seen.Repeats())
	unacked, waiting := testkit.AckPending(t, c, "CENTRIFUGO", "group_name")
	assert.Zero(t, unacked+waiting)
}

func TestServiceTakesOverTheDurableThatPlainNatsGoMade(t *testing.T) {
	t.Parallel()
	for name, made := range map[string]jetstream.ConsumerConfig{
		"one filter": {Durable: "group_name", FilterSubject: "commands", AckPolicy: jetstream.AckExplicitPolicy},
		"as a list, with limits": {
			Durable: "group_name", FilterSubjects: []string{"commands"}, AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: 9,
			AckWait: time.Minute, MaxRequestBatch: 5, MaxRequestExpires: 12 * time.Second, DeliverPolicy: jetstream.DeliverNewPolicy,
			Metadata: map[string]string{"team": "blue"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t, withLogin())
			c := connectAsUser(t, server)
			stream, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{
				Name: "CENTRIFUGO", Subjects: []string{"commands", "other"}, MaxMsgs: 1000,
			})
			require.NoError(t, err)
			cons, err := stream.CreateConsumer(testkit.Ctx(t), made)
			require.NoError(t, err)
			testkit.Fill(t, c, "commands", 10)
			batch, err := cons.Fetch(5, jetstream.FetchMaxWait(5*time.Second))
			require.NoError(t, err)
			for msg := range batch.Messages() {
				require.NoError(t, msg.DoubleAck(testkit.Ctx(t)))
			}
			require.NoError(t, batch.Error())
			before, streamBefore := cons.CachedInfo().Config, stream.CachedInfo().Config

			var seen testkit.Tally
			_, stop := start(t, givenFor(t, server), map[string]natty.Handler{"my_nats_consumer": counting(&seen)})
			testkit.Eventually(t, func() bool { return seen.Distinct() == 5 }, "the rest is handled")
			require.NoError(t, stop())
			assert.Equal(t, map[string]int{"5": 1, "6": 1, "7": 1, "8": 1, "9": 1}, seen.Counts())
			info, err := cons.Info(testkit.Ctx(t))
			require.NoError(t, err)
			assert.Equal(t, before, info.Config)
			now, err := stream.Info(testkit.Ctx(t))
			require.NoError(t, err)
			assert.Equal(t, streamBefore, now.Config, "a stream that is there is not changed")
		})
	}
}

func TestServiceWithSeveralConsumersOverTLSSharesOneConnection(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.ClientCerts(), nattytest.User("natty", "pa$$word"))
	files := server.Files()
	file := fmt.Sprintf(`{
		"name": "billing", "servers": [%q], "user": "natty", "password": "pa$$$$word", "publish_timeout": "2s",
		"tls": {"ca_file": %q, "cert_file": %q, "key_file": %q},
		"consumers": [%s, %s]
	}`, server.URL(), files.CA, files.Cert, files.Key,
		consumerOf("new", `"subjects":["orders.new"],"stream_name":"ORDERS","create_stream_if_not_exist":true,"disable_reconnect":false`),
		consumerOf("paid", `"subjects":["paid.>"],"stream_name":"PAID","create_stream_if_not_exist":true,"concurrency":4,"ack_wait":"3s"`))
	s := parse(t, file)
	assert.Equal(t, 2*time.Second, s.Config.PublishTimeout)
	var fresh, paid testkit.Tally
	_, stop := start(t, s, map[string]natty.Handler{"new": counting(&fresh), "paid": counting(&paid)})
	c := testkit.Connect(t, s.Config)
	fillFrom(t, c, "orders.new", 0, 20)
	fillFrom(t, c, "paid.card", 0, 20)
	testkit.Eventually(t, func() bool { return fresh.Distinct() == 20 && paid.Distinct() == 20 }, "both consumers get theirs")
	assert.Equal(t, 2, server.Server().NumClients(), "the service's and the test's")
	require.NoError(t, stop())
	unacked, waiting := testkit.AckPending(t, c, "ORDERS", "billing_orders-new")
	assert.Zero(t, unacked+waiting)
	unacked, waiting = testkit.AckPending(t, c, "PAID", "billing_paid-all")
	assert.Zero(t, unacked+waiting)
}

func TestConsumerOfAServiceFindsTheStreamThatAnotherOneMakes(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	file := consumers(server,
		consumerOf("stock", `"subjects":["orders.*"],"consumer_group":"stock"`),
		consumerOf("billing", `"subjects":["orders.>"],"stream_name":"ORDERS","consumer_group":"billing","create_stream_if_not_exist":true`))
	var stock, billing testkit.Tally
	_, stop := start(t, parse(t, file), map[string]natty.Handler{"stock": counting(&stock), "billing": counting(&billing)})
	fillFrom(t, testkit.ConnectTo(t, server.URL()), "orders.new", 0, 5)
	testkit.Eventually(t, func() bool { return stock.Distinct() == 5 && billing.Distinct() == 5 }, "both get theirs")
	require.NoError(t, stop())
}

func TestConsumerWithBrokersOfItsOwnGoesOnWhileAnotherWaits(t *testing.T) {
	t.Parallel()
	here, there := nattytest.Server(t), nattytest.Server(t)
	there.Stop()
	file := consumers(here,
		consumerOf("here", `"subjects":["s"],"stream_name":"S","create_stream_if_not_exist":true`),
		consumerOf("there", fmt.Sprintf(`"subjects":["s"],"stream_name":"S","create_stream_if_not_exist":true,"brokers":[%q]`, there.URL())))
	var seenHere, seenThere testkit.Tally
	_, stop := start(t, parse(t, file), map[string]natty.Handler{"here": counting(&seenHere), "there": counting(&seenThere)})
	fillFrom(t, testkit.ConnectTo(t, here.URL()), "s", 0, 10)
	testkit.Eventually(t, func() bool { return seenHere.Distinct() == 10 }, "one goes on")
	assert.Zero(t, seenThere.Distinct())
	require.NoError(t, there.Restart())
	fillFrom(t, testkit.ConnectTo(t, there.URL()), "s", 0, 5)
	testkit.Eventually(t, func() bool { return seenThere.Distinct() == 5 }, "the other begins")
	require.NoError(t, stop())
	assert.Equal(t, 10, seenHere.Distinct())
}

func TestOneConsumerThatFailsEndsTheOthersInAnOrderlyWay(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "good")
	elsewhere := nattytest.Server(t)
	bad := testkit.ConnectTo(t, elsewhere.URL())
	testkit.Ensure(t, bad, "B", "bad")
	testkit.Fill(t, c, "good", 1)
	begun, release := make(chan struct{}), make(chan struct{})
	ended, _ := start(t, parse(t, consumers(server, consumerOf("good", `"subjects":["good"]`), consumerOf("bad", fmt.Sprintf(`"subjects":["bad"],"disable_reconnect":true,"brokers":[%q]`, elsewhere.URL())))),
		map[string]natty.Handler{"bad": accept, "good": func(ctx context.Context, _ *nats.Msg) error {
			close(begun)
			<-release
			return ctx.Err()
		}})
	testkit.Receive(t, begun)
	testkit.Eventually(t, func() bool {
		cons, err := bad.JetStream().Consumer(testkit.Ctx(t), "B", "test_bad")
		return err == nil && cons.CachedInfo().NumWaiting > 0
	}, "the other one runs, too")
	elsewhere.Stop() // and cannot go on
	select {
	case err := <-ended:
		require.Fail(t, "the handler was not waited for", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	err := testkit.Receive(t, ended)
	require.ErrorIs(t, err, natty.ErrClosed)
	require.ErrorContains(t, err, `natty: configured consumer "bad": consumer "test_bad"`)
	unacked, waiting := testkit.AckPending(t, c, "S", "test_good")
	assert.Zero(t, unacked+waiting)
}

func TestMissingStreamEndsTheServiceUnlessItIsToBeMade(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "GOOD", "good")
	err := parse(t, consumers(server, consumerOf("good", `"subjects":["good"]`), consumerOf("bad", `"stream_name":"NONE","subjects":["none"]`))).
		Run(testkit.Ctx(t), map[string]natty.Handler{"good": accept, "bad": accept}, testkit.Quiet)
	require.ErrorIs(t, err, natty.ErrNoStream)
	require.ErrorContains(t, err, `natty: configured consumer "bad": stream "NONE"`)
	_, err = c.JetStream().Stream(testkit.Ctx(t), "NONE")
	require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
}

func TestStreamThatCannotBeMadeEndsTheService(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	testkit.Ensure(t, testkit.ConnectTo(t, server.URL()), "OTHER", "s.>")
	err := parse(t, consumers(server, consumerOf("a", `"stream_name":"S","subjects":["s.a"],"create_stream_if_not_exist":true`))).
		Run(testkit.Ctx(t), map[string]natty.Handler{"a": accept}, testkit.Quiet)
	var refused *jetstream.APIError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, `natty: configured consumer "a": make stream "S": `)
}

func TestLostConnectionEndsTheServiceWithDisableReconnect(t *testing.T) {
	t.Parallel()
	steady, lost := nattytest.Server(t), nattytest.Server(t)
	file := consumers(steady,
		consumerOf("steady", `"subjects":["s"],"stream_name":"S","create_stream_if_not_exist":true`),
		consumerOf("lost", fmt.Sprintf(`"subjects":["s"],"stream_name":"S","create_stream_if_not_exist":true,"disable_reconnect":true,"brokers":[%q]`, lost.URL())))
	var seenSteady, seenLost testkit.Tally
	lost.Stop() // disable_reconnect is about a connection that is lost: the first one is waited for
	ended, _ := start(t, parse(t, file), map[string]natty.Handler{"steady": counting(&seenSteady), "lost": counting(&seenLost)})
	fillFrom(t, testkit.ConnectTo(t, steady.URL()), "s", 0, 1)
	testkit.Eventually(t, func() bool { return seenSteady.Distinct() == 1 }, "it runs")
	require.NoError(t, lost.Restart())
	fillFrom(t, testkit.ConnectTo(t, lost.URL()), "s", 0, 1)
	testkit.Eventually(t, func() bool { return seenLost.Distinct() == 1 }, "it runs")
	require.NoError(t, steady.Restart())
	fillFrom(t, testkit.ConnectTo(t, steady.URL()), "s", 1, 2)
	testkit.Eventually(t, func() bool { return seenSteady.Distinct() == 2 }, "the others reconnect")
	lost.Stop()
	err := testkit.Receive(t, ended)
	require.ErrorIs(t, err, natty.ErrClosed)
	assert.Contains(t, err.Error(), `"lost"`)
	assert.NotContains(t, err.Error(), `"steady"`)
}

func TestRefusedLoginEndsTheServiceWithoutShowingThePassword(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.User("user", "another"))
	err := givenFor(t, server).Run(testkit.Ctx(t), map[string]natty.Handler{"my_nats_consumer": accept}, testkit.Quiet)
	require.ErrorIs(t, err, nats.ErrAuthorization)
	assert.Contains(t, err.Error(), `configured consumer "my_nats_consumer"`)
	assert.NotContains(t, err.Error(), "password@")
	assert.NotContains(t, err.Error(), "user:")
}

func TestHandlersThatOutliveTheDrainTimeoutOfAServiceAreReported(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 1)
	begun := make(chan struct{})
	_, stop := start(t, parse(t, consumers(server, consumerOf("a", `"subjects":["s"],"drain_timeout":"10ms"`))),
		map[string]natty.Handler{"a": func(ctx context.Context, _ *nats.Msg) error {
			close(begun)
			<-ctx.Done()
			return nil
		}})
	testkit.Receive(t, begun)
	require.ErrorIs(t, stop(), natty.ErrDrainTimeout)
}

func TestProgramMaySetWhatAServiceFileCannotHold(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	testkit.Ensure(t, testkit.ConnectTo(t, server.URL()), "S", "s")
	testkit.Fill(t, testkit.ConnectTo(t, server.URL()), "s", 1)
	s := parse(t, `{"name":"test","consumers":[`+consumerOf("a", `"subjects":["s"],"backoff_min":"1ms","backoff_max":"2ms"`)+`]}`)
	s.Config.Servers = []string{server.URL()}
	report, errs := testkit.OnError()
	s.Consumers[0].Consumer.OnError = report
	_, stop := start(t, s, map[string]natty.Handler{"a": func(context.Context, *nats.Msg) error { return testkit.ErrHandler }})
	require.ErrorIs(t, testkit.Receive(t, errs), testkit.ErrHandler)
	require.NoError(t, stop())
}

func TestHandlersMustFitTheConsumers(t *testing.T) {
	t.Parallel()
	s := parse(t, `{"name":"test","consumers":[`+consumerOf("orders", `"subjects":["a"]`)+","+consumerOf("refunds", `"subjects":["b"]`)+`]}`)
	for name, tc := range map[string]struct {
		handlers map[string]natty.Handler
		want     string
	}{
		"missing":  {map[string]natty.Handler{"orders": accept}, `natty: handlers "refunds": this consumer has no handler; add one under its name`},
		"nil":      {map[string]natty.Handler{"orders": nil, "refunds": accept}, `handlers "orders": this consumer has no handler`},
		"unused":   {map[string]natty.Handler{"orders": accept, "refunds": accept, "order": accept}, `handlers "order": is no consumer of the service; did you mean "orders"`},
		"far away": {map[string]natty.Handler{"orders": accept, "refunds": accept, "x": accept}, `handlers "x": is no consumer of the service; expected orders, refunds`},
	} {
		var bad *natty.ConfigError
		err := s.Run(t.Context(), tc.handlers, testkit.Quiet)
		require.ErrorAs(t, err, &bad, name)
		require.ErrorContains(t, err, tc.want, name)
	}
}

func TestBadServiceFileSaysWhatIsWrongAndWhere(t *testing.T) {
	t.Parallel()
	const fine = `"subjects":["s"]`
	inConsumer := func(settings string) string { return `{"name":"test","consumers":[` + consumerOf("a", settings) + `]}` }
	at := "consumers[0].nats."
	for name, tc := range map[string]struct{ file, want string }{
		"empty":                  {" \n", `service file: is empty; expected a JSON object`},
		"no JSON":                {"{\n\t\"name\": \"a\",\n}", `service file: is not JSON at line 3, column 1; look there for a comma`},
		"no JSON in a string":    {`{"password": "hunt\x"}`, `service file: is not JSON at line 1, column 20`},
		"wrong at its last byte": {`{"name":]`, `service file: is not JSON at line 1, column 9`},
		"cut off":                {`{"name": "a`, `service file: ends in the middle; add the quote, bracket or brace`},
		"two values":             {"{}\n{}", `service file: goes on after the end of its JSON, at line 2, column 1; take out`},
		"a brace too many":       {`{}}`, `service file: goes on after the end of its JSON, at line 1, column 3`},
		"not UTF-8":              {"{\"name\": \"\xff\"}", `service file: is not UTF-8; save it in that encoding`},
		"a list":                 {`[]`, `service file: is a list; expected an object`},
		"a URL for a key":        {`{"nats://a:hunter2@b":1}`, `service file: has a key that is no name (not shown: it may hold a password); expected name, servers, user, `},
		"unknown key":            {inConsumer(`"subjcts":["s"]`), at + `subjcts: unknown key; did you mean "subjects"`},
		"key in capitals":        {`{"Name":"a"}`, `Name: unknown key; did you mean "name"`},
		"unknown key of TLS":     {`{"tls":{"x":"x"}}`, `tls.x: unknown key; expected ca_file, cert_file, key_file`},
		"unknown section":        {`{"consumers":[{"name":"a","kafka":{}}]}`, `consumers[0].kafka: unknown key; expected name, type, nats`},
		"key of no field":        {inConsumer(`"OnError":"x"`), at + `OnError: unknown key`},
		"key twice":              {inConsumer(`"ack_wait":"1s",` + fine + `,"ack_wait":"2s"`), at + `ack_wait: is there twice; keep one`},
		"key twice, escaped":     {`{"name":"a","n\u0061me":"b"}`, `name: is there twice`},
		"number for a string":    {`{"name":1}`, `name: is a number; expected a string`},
		"string for a number":    {inConsumer(`"concurrency":"4"`), at + `concurrency: is a string; expected a whole number, without quotes`},
		"string for a bool":      {`{"disable_reconnect":"yes"}`, `disable_reconnect: is a string; expected true or false, without quotes`},
		"string for a list":      {inConsumer(`"subjects":"s"`), at + `subjects: is a string; expected a list`},
		"number in a list":       {inConsumer(`"subjects":["s",7]`), at + `subjects[1]: is a number; expected a string`},
		"null":                   {`{"name":null}`, `name: is null; expected a string`},
		"number for a duration":  {inConsumer(`"ack_wait":10`), at + `ack_wait: is a number; expected a duration in quotes, such as "10s"`},
		"bool for an object":     {`{"tls":true}`, `tls: is true or false; expected an object`},
		"object for a list":      {`{"consumers":{}}`, `consumers: is an object; expected a list`},
		"number for a policy":    {inConsumer(`"deliver_policy":1`), at + `deliver_policy: is a number; expected "all", "new", "last" or "last_per_subject"`},
		"unknown policy":         {inConsumer(`"deliver_policy":"by_start_time"`), at + `deliver_policy "by_start_time": is not known; expected "all", "new"`},
		"half a number":          {inConsumer(`"concurrency":1.5`), at + `concurrency "1.5": is not a whole number`},
		"too large a number":     {inConsumer(`"concurrency":99999999999999999999`), at + `concurrency "99999999999999999999": is not a whole number, or too large`},
		"no duration":            {inConsumer(`"ack_wait":"10 s"`), at + `ack_wait "10 s": is no duration; write a number with its unit, such as 250ms`},
		"no duration at the top": {`{"publish_timeout":"5"}`, `publish_timeout "5": is no duration`},
		"negative duration":      {inConsumer(fine + `,"ack_wait":"-1s"`), at + `ack_wait "-1s": is negative`},
		"unset variable":         {`{"name":"${NATTY_TEST_UNSET}"}`, `name: ${NATTY_TEST_UNSET} is not set in the environment; set it, or write $$ for a dollar sign`},
		"unset in a list":        {inConsumer(`"brokers":["nats://a:${NATTY_TEST_UNSET}@b"]`), at + `brokers[0]: ${NATTY_TEST_UNSET} is not set`},
		"maybe no variable":      {`{"password":"hunter${hunter2}"}`, `password: ${…} is not set in the environment`},
		"variable not closed":    {`{"name":"${HOME"}`, `name: has ${ in it without the name of an environment variable and a }; write ${NAME}, or $$`},
		"variable without name":  {`{"name":"a${}"}`, `name: has ${ in it without the name`},
		"no consumers":           {`{"name":"a"}`, `consumers: there are none, so that there is nothing to run; add at least one`},
		"no name":                {`{"consumers":[{"type":"nats"}]}`, `consumers[0].name: is missing; give the consumer a name`},
		"no type":                {`{"consumers":[{"name":"a"}]}`, `consumers[0].type: is missing; set it to "nats"`},
		"unknown type":           {`{"consumers":[{"name":"a","type":"kafka"}]}`, `consumers[0].type "kafka": is not known; set it to "nats"`},
		"name twice":             {`{"name":"t","consumers":[` + consumerOf("a", `"subjects":["a"]`) + "," + consumerOf("a", `"subjects":["b"]`) + `]}`, `consumers[1].name "a": is another consumer's too; give each`},
		"durable twice":          {`{"name":"t","consumers":[` + consumerOf("a", fine) + "," + consumerOf("b", fine) + `]}`, `consumers[1].nats.consumer_group "t_s": is that of the consumer "a", so that each would get only some of the messages; set another`},
		"nothing to consume":     {inConsumer(``), at + `subjects: nothing to consume; set subjects`},
		"no durable":             {`{"consumers":[` + consumerOf("a", fine) + `]}`, at + `consumer_group: is missing, and so is the service's name`},
		"several subjects":       {inConsumer(`"subjects":["a","b"]`), at + `consumer_group: (Durable) is required with several subjects`},
		"bad subject":            {inConsumer(`"subjects":["a..b"]`), at + `subjects "a..b": has an empty token`},
		"bad stream":             {inConsumer(`"stream_name":"a.b"`), at + `stream_name "a.b"`},
		"no dead letters":        {inConsumer(fine + `,"max_deliver":3`), at + `max_deliver "3": set without dead_letter`},
		"stream without subject": {inConsumer(`"stream_name":"S","create_stream_if_not_exist":true`), at + `create_stream_if_not_exist: set without stream_name and subjects`},
		"no broker":              {inConsumer(fine + `,"brokers":[]`), at + `brokers: holds no server; give at least one`},
		"empty broker":           {inConsumer(fine + `,"brokers":[""]`), at + `brokers: holds no server`},
		"broker that is no URL":  {inConsumer(fine + `,"brokers":["nats://a:hunter2/@b"]`), at + `brokers[0]: is not a URL (not shown`},
		"broker of HTTP":         {inConsumer(fine + `,"brokers":["http://a:hunter2@b"]`), at + `brokers[0] "http://[redacted]@b": unknown scheme`},
		"two logins":             {`{"user":"a","password":"hunter2","token":"hunter2"}`, `user, token, creds_file, nkey_file: more than one`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := natty.ParseService([]byte(tc.file))
			require.Nil(t, s)
			var bad *natty.ConfigError
			require.ErrorAs(t, err, &bad)
			require.ErrorContains(t, err, "natty: "+tc.want, "%s", tc.file)
			assert.NotContains(t, err.Error(), "hunt")
			assert.NotEmpty(t, bad.Field)
		})
	}
}

func TestValuesOfTheWrongTypeAreNotShownWhereSecretsBelong(t *testing.T) {
	t.Parallel()
	for _, value := range []string{
		`"hunter2${"`, `"hunter2${unset_hunter2}"`, `["hunter2"]`, `{"hunter2":"hunter2"}`, `["nats://a:hunter2%zz@b"]`, `[["hunter2"]]`,
		`[{"hunter2":1}]`, `"hunter2\q"`, `"hunter2`, `hunter2`, `["ftp://a:hunter2@b"]`, `["nats://a:hunter2@"]`, `["hunter2@b"]`,
	} {
		for _, file := range []string{
			`{"password":%s}`, `{"token":%s}`, `{"servers":%s}`,
			`{"name":"t","consumers":[{"name":"a","type":"nats","nats":{"subjects":["s"],"brokers":%s}}]}`, `{"pasword":%s}`, `{"consumers":[{"token":%s}]}`,
		} {
			file = fmt.Sprintf(file, value)
			if _, err := natty.ParseService([]byte(file)); err != nil {
				assert.NotContains(t, err.Error(), "hunter2", file)
			}
		}
	}
}

func TestPrintedServiceShowsNoSecrets(t *testing.T) {
	t.Parallel()
	file := `{"name":"t","servers":["nats://a:hunter2@b"],"password":"hunter2","user":"a","consumers":[` +
		consumerOf("a", `"subjects":["s"],"brokers":["nats://c:hunter2@d"]`) + "," + consumerOf("b", `"subjects":["s"]`) + `]}`
	s := parse(t, file)
	data, err := json.Marshal(s)
	require.NoError(t, err)
	for _, text := range []string{
		fmt.Sprint(s), fmt.Sprintf("%+v", s), fmt.Sprintf("%#v", *s), fmt.Sprintf("%v", s.Consumers), fmt.Sprintf("%+v", s.Consumers[0]), string(data),
	} {
		assert.NotContains(t, text, "hunter2")
	}
	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("", "service", s, "consumer", s.Consumers[0])
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("", "service", s, "consumer", s.Consumers[0])
	assert.NotContains(t, logged.String(), "hunter2")
}

// This one sets the environment, which is everybody's.
func TestVariablesAreFilledInFromTheEnvironment(t *testing.T) {
	t.Setenv("NATTY_TEST_HOST", "example.org")
	t.Setenv("NATTY_TEST_PASSWORD", `a"$${b}`)
	t.Setenv("NATTY_TEST_WAIT", "3s")
	t.Setenv("NATTY_TEST_EMPTY", "")
	s := parse(t, `{"name":"x${NATTY_TEST_EMPTY}$${y}","user":"u","password":"${NATTY_TEST_PASSWORD}","consumers":[`+consumerOf("a",
		`"brokers":["${NATTY_TEST_HOST}:1,${NATTY_TEST_HOST}:2"],"subjects":["$KV.b.>"],"ack_wait":"${NATTY_TEST_WAIT}"`)+`]}`)
	assert.Equal(t, "x${y}", s.Config.Name)
	assert.Equal(t, `a"$${b}`, string(s.Config.Password), "what is filled in is not looked at again")
	assert.Equal(t, []string{"example.org:1,example.org:2"}, s.Consumers[0].Config.Servers)
	assert.Equal(t, []string{"$KV.b.>"}, s.Consumers[0].Consumer.Subjects, "a dollar sign alone is one")
	assert.Equal(t, 3*time.Second, s.Consumers[0].Consumer.AckWait)
	_, err := natty.ParseService([]byte(`{"name":"t","consumers":[` + consumerOf("a", `"subjects":["s"],"brokers":["${NATTY_TEST_EMPTY}"]`) + `]}`))
	require.ErrorContains(t, err, "brokers: holds no server")
}

func TestLoadServiceNamesTheFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "service.json")
	_, err := natty.LoadService(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(path, []byte(`{"nam":"x"}`), 0o600))
	_, err = natty.LoadService(path)
	var bad *natty.ConfigError
	require.ErrorAs(t, err, &bad)
	require.EqualError(t, err, "natty: "+path+`: nam: unknown key; did you mean "name"`)
	require.NoError(t, os.WriteFile(path, []byte("\ufeff"+given), 0o600))
	s, err := natty.LoadService(path)
	require.NoError(t, err)
	assert.Len(t, s.Consumers, 1)
}

// TestEverySettingCanBeInAServiceFile fails when a field is added to ConsumerConfig or Config that a file cannot set.
func TestEverySettingCanBeInAServiceFile(t *testing.T) {
	t.Parallel()
	consumer := func(settings map[string]any) *natty.Service {
		all := map[string]any{"stream_name": "S", "consumer_group": "g", "dead_letter": "d"}
		maps.Copy(all, settings)
		file, err := json.Marshal(map[string]any{"consumers": []any{map[string]any{"name": "a", "type": "nats", "nats": all}}})
		require.NoError(t, err)
		return parse(t, string(file))
	}
	count := 0
	check := func(at string, fields reflect.Type, parsed func(name string, value any) reflect.Value) {
		for _, f := range reflect.VisibleFields(fields) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Type.Kind() == reflect.Func, !f.IsExported(): // no place in a file
			case f.Type == reflect.TypeFor[natty.Backoff](), f.Type == reflect.TypeFor[natty.TLSConfig](): // below
			case name == "" || name == "-":
				assert.Fail(t, "no JSON name", "%s.%s", at, f.Name)
			default:
				written, want := sample(t, f.Type)
				assert.Equal(t, want, parsed(name, written).FieldByIndex(f.Index).Interface(), "%s.%s", at, f.Name)
				count++
			}
		}
	}
	check("ConsumerConfig", reflect.TypeFor[natty.ConsumerConfig](), func(name string, value any) reflect.Value {
		return reflect.ValueOf(consumer(map[string]any{name: value}).Consumers[0].Consumer)
	})
	check("Backoff", reflect.TypeFor[natty.Backoff](), func(name string, value any) reflect.Value {
		return reflect.ValueOf(consumer(map[string]any{name: value}).Consumers[0].Consumer.Backoff)
	})
	top := func(name string, value any) natty.Config {
		file, err := json.Marshal(map[string]any{name: value, "user": "x", "consumers": []any{
			map[string]any{"name": "a", "type": "nats", "nats": map[string]any{"stream_name": "S", "consumer_group": "g"}},
		}})
		require.NoError(t, err)
		if strings.HasSuffix(name, "_file") || name == "token" {
			file = []byte(strings.Replace(string(file), `"user":"x"`, `"replicas":1`, 1)) // one login only
		}
		return parse(t, string(file)).Config
	}
	check("Config", reflect.TypeFor[natty.Config](), func(name string, value any) reflect.Value { return reflect.ValueOf(top(name, value)) })
	check("TLSConfig", reflect.TypeFor[natty.TLSConfig](), func(name string, value any) reflect.Value {
		return reflect.ValueOf(top("tls", map[string]any{name: value}).TLS)
	})
	assert.Greater(t, count, 30)
}

// sample returns a value of a type, and how it stands in a file.
func sample(t *testing.T, of reflect.Type) (written, want any) {
	t.Helper()
	switch v := reflect.Zero(of).Interface().(type) {
	case string:
		return "x", "x"
	case natty.Secret:
		return "x", natty.Secret("x")
	case []string:
		return []string{"x"}, []string{"x"}
	case int:
		return 7, 7
	case bool:
		return true, true
	case time.Duration:
		return "3s", 3 * time.Second
	case jetstream.DeliverPolicy:
		return "last_per_subject", jetstream.DeliverLastPerSubjectPolicy
	default:
		require.Fail(t, "a service file cannot hold this type", "%T", v)
		return nil, nil
	}
}

// FuzzParseService writes a secret into every place for one, with anything around it.
func FuzzParseService(f *testing.F) {
	const secret = "hunter2-s3cret"
	f.Add("", `"`, `,"name":"a","consumers":[`+consumerOf("a", `"subjects":["s"]`)+`]}`)
	f.Add("${", `}"`, "}")
	f.Add("nats://user:", `@host"]`, "}")
	f.Add("", `\q"`, "")
	f.Add("$$", `"`, `,"tls":{"ca_file":"x"},"tls":{}}`)
	f.Add("%", `@a"`, `,"x":[[[[`)
	f.Add("nats://a:b@c,", `@b"`, `}`)
	f.Fuzz(func(t *testing.T, before, after, rest string) {
		// Beside a password only a URL's login is secret, and not its host.
		for open, end := range map[string]string{
			`{"password":"`: "", `{"token":"`: "", `{"password":["`: "", `{"token":{"`: "", `{"name":"t","pasword":"`: "",
			`{"servers":["nats://user:`: "@host", `{"servers":"`: "@host", `{"servers":["`: "@host",
			`{"name":"t","consumers":[{"name":"a","type":"nats","nats":{"subjects":["s"],"brokers":["`: "@host",
		} {
			// What stands before the secret must not end the string that it is in.
			quoted, err := json.Marshal(before)
			require.NoError(t, err)
			file := open + strings.Trim(string(quoted), `"`) + secret + end + after + rest
			s, err := natty.ParseService([]byte(file))
			if err != nil {
				require.NotContains(t, err.Error(), secret, file)
				require.Nil(t, s)
				continue
			}
			require.NotContains(t, fmt.Sprintf("%v %+v", s, s.Consumers), secret)
		}
		_, _ = natty.ParseService([]byte(before + after + rest))
	})
}

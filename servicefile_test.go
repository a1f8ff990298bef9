package natty_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestAllMistakesOfAServiceFileAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		file string
		want []string
	}{
		"everywhere": {
			`{"name":7,"servers":["http://h"],"replicas":-1,"user":"u","token":"x","publish_timeout":"5","tls":{"ca":"x"},"consumers":[
				{"name":"a","type":"nats","nats":{"durable":"d","subjects":["a..b"],"ack_wait":"1","max_deliver":-1,"heartbeat_interval":"-1s"}},
				{"name":"b","type":"kafka"},
				{"name":"b","type":"nats","nats":{"subjects":["s"],"brokers":["ftp://h"],"concurrency":"4"}}
			]}`, []string{
				`name: is a number; expected a string`,
				`publish_timeout "5": is no duration`,
				`tls.ca: unknown key; did you mean "ca_file"`,
				`consumers[0].nats.durable: unknown key; did you mean "consumer_group"`,
				`consumers[0].nats.ack_wait "1": is no duration`,
				`consumers[2].nats.concurrency: is a string`,
				`servers[0] "http://h": unknown scheme`,
				`replicas "-1": is negative`,
				`consumers[0].nats.subjects "a..b": has an empty token`,
				`consumers[0].nats.heartbeat_interval "-1s": is negative`,
				`consumers[0].nats.max_deliver "-1": is negative`,
				`consumers[1].type "kafka": is not known`,
				`consumers[2].nats.brokers[0] "ftp://h": unknown scheme`,
				`consumers[2].name "b": is another consumer's too`,
			},
		},
		"two variables in one URL": {
			`{"servers":["nats://${NATTY_TEST_NO_USER}:${NATTY_TEST_NO_PASSWORD}@h"],"name":"t","consumers":[{"name":"a","type":"nats","nats":{"subjects":["s"]}}]}`,
			[]string{
				`servers[0]: ${NATTY_TEST_NO_USER} is not set`,
				`servers[0]: ${NATTY_TEST_NO_PASSWORD} is not set`,
			},
		},
		// What follows from a mistake is none: here the name is misspelled, and the
		// group and the dead letters.
		"without consequences": {
			`{"nam":"t","consumers":[{"nam":"a","tpye":"nats","nats":{"subjcts":["s"],"max_deliver":3,"dlq":"d"}},{"name":"b","type":"nats","nats":{"subjects":["b"]}}]}`,
			[]string{
				`nam: unknown key; did you mean "name"`,
				`consumers[0].nam: unknown key; did you mean "name"`,
				`consumers[0].tpye: unknown key; did you mean "type"`,
				`consumers[0].nats.subjcts: unknown key; did you mean "subjects"`,
				`consumers[0].nats.dlq: unknown key; did you mean "dead_letter"`,
			},
		},
		"of the values alone": {
			`{"servers":["${NATTY_TEST_NO_SERVERS}"],"consumers":[{"name":"a","type":"nats","nats":{"subjects":["a"]}},{"type":"nats","nats":{"max_deliver":3}}]}`,
			[]string{
				`servers[0]: ${NATTY_TEST_NO_SERVERS} is not set`,
				`consumers[0].nats.consumer_group: is missing`,
				`consumers[1].name: is missing`,
				`consumers[1].nats.subjects: nothing to consume`,
				`consumers[1].nats.max_deliver "3": set without dead_letter`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := natty.ParseService([]byte(tc.file))
			require.Nil(t, s)
			var bad *natty.ConfigError
			require.ErrorAs(t, err, &bad)
			lines := strings.Split(err.Error(), "\n")
			require.Len(t, lines, len(tc.want), "%v", err)
			for i, want := range tc.want {
				assert.True(t, strings.HasPrefix(lines[i], "natty: "+want), "%s\nexpected %s", lines[i], want)
			}
		})
	}
}

func TestNamesOfOtherToolsAreExplained(t *testing.T) {
	t.Parallel()
	const atTop, inNATS = `{"name":"t",%s}`, `{"name":"t","consumers":[{"name":"a","type":"nats","nats":{%s}}]}`
	for _, tc := range []struct{ file, key, want string }{
		{atTop, "url", `"servers"`},
		{atTop, "urls", `"servers"`},
		{atTop, "brokers", `"servers"`},
		{atTop, "username", `"user"`},
		{atTop, "credentials_file", `"creds_file"`},
		{atTop, "creds", `"creds_file"`},
		{atTop, "nkey", `"nkey_file"`},
		{atTop, "ca", `"ca_file", which belongs under tls`},
		{atTop, "cert", `"cert_file", which belongs under tls`},
		{atTop, "key_file", `"key_file", which belongs under tls`},
		{atTop, "stream", `"stream_name", which belongs under consumers[].nats`},
		{atTop, "subject", `"subjects", which belongs under consumers[].nats`},
		{atTop, "subjects", `"subjects", which belongs under consumers[].nats`},
		{atTop, "durable", `"consumer_group", which belongs under consumers[].nats`},
		{atTop, "PublishTimeout", `"publish_timeout"`},
		{inNATS, "url", `"brokers"`},
		{inNATS, "servers", `"brokers"`},
		{inNATS, "durable", `"consumer_group"`},
		{inNATS, "durable_consumer_name", `"consumer_group"`},
		{inNATS, "username", `"user"`},
		{inNATS, "credentials_file", `"creds_file"`},
		{inNATS, "subject", `"subjects"`},
		{inNATS, "stream", `"stream_name"`},
		{inNATS, "ack_wait_ms", `"ack_wait", a duration in quotes such as "10s"`},
		{inNATS, "ackWaitSeconds", `"ack_wait", a duration in quotes such as "10s"`},
		{inNATS, "maxDeliver", `"max_deliver"`},
		{inNATS, "max_inflight", `"max_ack_pending"`},
		{inNATS, "enabled", `"enabled", which belongs under consumers[]`},
		{inNATS, "domain", `"domain", which belongs at the top of the file`},
		{inNATS, "cert_file", `"cert_file", which belongs under consumers[].nats.tls`},
		{inNATS, "OnError", ``},
	} {
		_, err := natty.ParseService(fmt.Appendf(nil, tc.file, fmt.Sprintf("%q:1", tc.key)))
		require.Error(t, err)
		want := "." + tc.key + ": unknown key; did you mean " + tc.want
		if tc.want == "" {
			want = "." + tc.key + ": unknown key; expected "
		}
		if tc.file == atTop {
			want = "natty: " + want[1:]
		}
		line, _, _ := strings.Cut(err.Error(), "\n")
		assert.True(t, strings.HasSuffix(line, want) || tc.want == "" && strings.Contains(line, want), "%s\nexpected %s", line, want)
	}
}

func TestListOfServersWithNothingInItIsRefused(t *testing.T) {
	t.Setenv("NATTY_TEST_EMPTY", "")
	t.Setenv("NATS_URL", "nats://elsewhere:4222")
	for _, list := range []string{`[]`, `[""]`, `["${NATTY_TEST_EMPTY}"]`, `["${NATTY_TEST_EMPTY},", " ${NATTY_TEST_EMPTY}"]`} {
		_, err := natty.ParseService([]byte(`{"name":"t","servers":` + list + `,"consumers":[` + consumerOf("a", `"subjects":["s"]`) + `]}`))
		require.ErrorContains(t, err, "natty: servers: holds no server; give at least one, or leave it out", list)
	}
	_, err := natty.ParseService([]byte(`{"name":"t","consumers":[` + consumerOf("a", `"subjects":["s"]`) + `]}`))
	require.NoError(t, err, "without servers it is $NATS_URL")
}

// A password from a secret store may hold any characters.
func TestPasswordsFromTheEnvironmentMayHoldAnyCharactersInAURL(t *testing.T) {
	for name, tc := range map[string]struct{ password, user, url string }{
		"an at sign":        {"p@ss", "ann", "nats://ann:${NATTY_TEST_PASSWORD}@%s"},
		"a slash":           {"pa/ss", "ann", "nats://ann:${NATTY_TEST_PASSWORD}@%s"},
		"everything":        {`p@/?#:,% $"[]\ä+z`, "ann", "nats://ann:${NATTY_TEST_PASSWORD}@%s"},
		"without a scheme":  {"p@ss,word", "ann", "ann:${NATTY_TEST_PASSWORD}@%s"},
		"second of a list":  {"p@ss,word/", "ann", "nats://127.0.0.1:1,nats://ann:${NATTY_TEST_PASSWORD}@%s"},
		"the user, too":     {"p@ss", "a@n:n/", "nats://${NATTY_TEST_USER}:${NATTY_TEST_PASSWORD}@%s"},
		"both in one":       {"p@ss:/", "ann", "nats://${NATTY_TEST_LOGIN}@%s"},
		"beside other text": {"p@ss-1", "ann", "nats://ann:p${NATTY_TEST_AT}ss-1@%s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("NATTY_TEST_PASSWORD", tc.password)
			t.Setenv("NATTY_TEST_USER", tc.user)
			t.Setenv("NATTY_TEST_LOGIN", tc.user+":"+tc.password)
			t.Setenv("NATTY_TEST_AT", "@")
			server := nattytest.Server(t, nattytest.User(tc.user, tc.password))
			url := fmt.Sprintf(tc.url, strings.TrimPrefix(server.URL(), "nats://"))
			quoted, err := json.Marshal(url)
			require.NoError(t, err)
			s := parse(t, `{"name":"t","servers":[`+string(quoted)+`],"consumers":[`+consumerOf("a", `"subjects":["s"]`)+`]}`)
			testkit.Connect(t, s.Config)
			s = parse(t, `{"name":"t","consumers":[`+consumerOf("a", `"subjects":["s"],"brokers":[`+string(quoted)+`]`)+`]}`)
			testkit.Connect(t, *s.Consumers[0].Config)
		})
	}
	t.Setenv("NATTY_TEST_PASSWORD", "p%40ss")
	s := parse(t, `{"name":"t","servers":["nats://ann:${NATTY_TEST_PASSWORD}@h"],"consumers":[`+consumerOf("a", `"subjects":["s"]`)+`]}`)
	assert.Equal(t, []string{"nats://ann:p%40ss@h"}, s.Config.Servers, "what is encoded stays as it is")
}

func TestConsumerMayLogInForItself(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.User("own", "secret"), nattytest.ClientCerts())
	host := strings.TrimPrefix(server.URL(), "nats://")
	files := server.Files()
	tls := fmt.Sprintf(`"tls":{"ca_file":%q,"cert_file":%q,"key_file":%q}`, files.CA, files.Cert, files.Key)
	for name, top := range map[string]string{
		"a token":         `"token":"files","servers":["` + host + `"]`,
		"in the URL":      `"servers":["nats://files:login@` + host + `"]`,
		"another's TLS":   `"tls":{"ca_file":"none.pem","server_name":"x"},"user":"files","servers":["` + host + `"]`,
		"credential file": `"creds_file":"none.creds","servers":["` + host + `"]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := parse(t, `{"name":"t",`+top+`,"consumers":[`+consumerOf("a", `"subjects":["s"],"user":"own","password":"secret",`+tls)+`]}`)
			require.NotNil(t, s.Consumers[0].Config)
			assert.NotEqual(t, s.Config, *s.Consumers[0].Config)
			testkit.Connect(t, *s.Consumers[0].Config)
		})
	}
	s := parse(t, `{"name":"t","user":"u","password":"p","consumers":[`+consumerOf("a", `"subjects":["s"],"token":""`)+`]}`)
	assert.Empty(t, s.Consumers[0].Config.User, "an empty login is one: the file's does not go to another's server")
	_, err := natty.ParseService([]byte(`{"name":"t","consumers":[` + consumerOf("a", `"subjects":["s"],"token":"x","user":"u"`) + `]}`))
	require.ErrorContains(t, err, `consumers[0].nats.user, token, creds_file, nkey_file: more than one way`)
}

func TestDisabledConsumerIsCheckedAndNotRun(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s.>")
	testkit.Fill(t, c, "s.a", 1)
	disabled := `{"name":"b","type":"nats","enabled":false,"nats":{"subjects":["s.>"]}}`
	s := parse(t, consumers(server, strings.Replace(consumerOf("a", `"subjects":["s.>"]`), "{", `{"enabled":true,`, 1), disabled))
	assert.False(t, s.Consumers[0].Disabled)
	assert.True(t, s.Consumers[1].Disabled)
	var seen testkit.Tally
	_, stop := start(t, s, map[string]natty.Handler{"a": counting(&seen)})
	testkit.Eventually(t, func() bool { return seen.Distinct() == 1 }, "the other one runs")
	require.NoError(t, stop())

	only := parse(t, consumers(server, disabled))
	ended, stop := start(t, only, nil)
	select {
	case err := <-ended:
		require.Fail(t, "it ended", "%v", err)
	default:
	}
	require.NoError(t, stop(), "with nothing to run, Run waits: a container is not started over and over")
	_, err := natty.ParseService([]byte(consumers(server, strings.Replace(disabled, "s.>", "s..", 1))))
	require.ErrorContains(t, err, "consumers[0].nats.subjects")
}

func TestMaxAckPendingOfTheFileIsTheDurables(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	run := func(settings string) int {
		testkit.Fill(t, c, "s", 1)
		seen := make(chan struct{}, 1)
		_, stop := start(t, parse(t, consumers(server, consumerOf("a", `"subjects":["s"]`+settings))),
			map[string]natty.Handler{"a": func(context.Context, *nats.Msg) error { seen <- struct{}{}; return nil }})
		testkit.Receive(t, seen)
		require.NoError(t, stop())
		cons, err := c.JetStream().Consumer(testkit.Ctx(t), "S", "test_s")
		require.NoError(t, err)
		return cons.CachedInfo().Config.MaxAckPending
	}
	assert.Equal(t, 7, run(`,"max_ack_pending":7`), "made")
	assert.Equal(t, 9, run(`,"max_ack_pending":9`), "changed")
	assert.Equal(t, 9, run(``), "left as it is")
}

// inside is everything that a program may keep a T in, and print.
func inside[T any](v T) []any {
	return []any{
		v, &v, []T{v}, []*T{&v}, [1]T{v}, map[string]T{"a": v}, map[string]*T{"a": &v}, []any{v, &v},
		struct{ V T }{v}, struct{ V *T }{&v}, struct{ V any }{v}, &struct{ V []*T }{[]*T{&v}},
		map[string]struct{ V *T }{"a": {&v}},
	}
}

func TestNoVerbPrintsASecretOfAService(t *testing.T) {
	t.Parallel()
	s := parse(t, `{"name":"t","servers":["nats://a:hunter2@b"],"password":"hunter2","user":"a","consumers":[`+
		consumerOf("a", `"subjects":["s"],"brokers":["nats://c:hunter2@d"]`)+","+consumerOf("b", `"subjects":["s"],"token":"hunter2"`)+`]}`)
	all := append(inside(*s), inside(s.Consumers)...)
	all = append(append(all, inside(s.Consumers[0])...), inside(s.Config)...)
	all = append(append(all, inside(s.Consumers[0].Config)...), inside(s.Config.Password)...)
	all = append(all, struct{ *natty.Service }{s}, struct{ natty.ServiceConsumer }{s.Consumers[0]})
	for _, v := range all {
		for _, verb := range []string{
			"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "% x", "%#x", "%+q", "%T", "%t", "%e", "%c", "%U", "%o", "%b", "%99v", "%!",
		} {
			require.False(t, exposes(fmt.Sprintf(verb, v)), "%s of %T", verb, v)
		}
		require.False(t, exposes(fmt.Sprint(v)+fmt.Sprintln(v)+errors.New(fmt.Sprint("x", v)).Error()), "%T", v)
		if data, err := json.Marshal(v); err == nil {
			require.False(t, exposes(string(data)), "JSON of %T: %s", v, data)
		}
		var log logged
		log.logger().Debug("a", "b", v, slog.Group("c", "d", v))
		require.False(t, exposes(log.String()), "log of %T: %s", v, &log)
	}
	// Of an unexported field fmt asks no type. A pointer there is an address.
	for _, verb := range []string{"%v", "%+v", "%#v", "%d", "%x"} {
		require.False(t, exposes(fmt.Sprintf(verb, struct {
			s *natty.Service
			c *natty.Config
			p *natty.Secret
		}{s, &s.Config, &s.Config.Password})), verb)
	}
	assert.Contains(t, fmt.Sprintf("%+v", s), "nats://[redacted]@b")
	assert.Contains(t, fmt.Sprintf("%v", s.Consumers[0]), "nats://[redacted]@d")
}

func TestHealthOfAServiceIsThatOfAllItsConnections(t *testing.T) {
	t.Parallel()
	here, there := nattytest.Server(t), nattytest.Server(t)
	there.Stop()
	testkit.Ensure(t, testkit.ConnectTo(t, here.URL()), "S", "s")
	s := parse(t, consumers(here, consumerOf("here", `"subjects":["s"]`),
		consumerOf("there", fmt.Sprintf(`"stream_name":"T","subjects":["t"],"create_stream_if_not_exist":true,"brokers":[%q]`, there.URL()))))
	h := s.Health()
	assert.False(t, h.Connected)
	assert.Contains(t, h.LastError, "Run was not called")

	states := func() (all []string) {
		for _, c := range s.Health().Consumers {
			all = append(all, c.Durable+" "+string(c.State))
		}
		return all
	}
	_, stop := start(t, s, map[string]natty.Handler{"here": accept, "there": accept})
	testkit.Eventually(t, func() bool {
		return fmt.Sprint(states()) == "[test_s running test_t starting]" && s.Health().LastError != ""
	}, "one runs, one waits")
	h = s.Health()
	assert.False(t, h.Connected, "one of two is not")
	assert.Equal(t, here.URL(), h.Server)
	assert.Contains(t, h.LastError, "connect")
	assert.False(t, h.Since.IsZero())
	down := h.Since

	require.NoError(t, there.Restart())
	testkit.Eventually(t, func() bool { return fmt.Sprint(states()) == "[test_s running test_t running]" }, "both run")
	h = s.Health()
	assert.True(t, h.Connected)
	assert.True(t, h.Since.After(down))
	assert.ElementsMatch(t, []string{here.URL(), there.URL()}, strings.Split(h.Server, ", "))
	data, err := json.Marshal(h)
	require.NoError(t, err)
	assert.Contains(t, string(data), `"durable":"test_t"`)

	require.NoError(t, stop())
	assert.False(t, s.Health().Connected)
}

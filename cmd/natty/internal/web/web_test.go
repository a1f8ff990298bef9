package web

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/cmd/natty/internal/account"
	"github.com/natty-go/natty/cmd/natty/internal/fixture"
	"github.com/natty-go/natty/nattytest"
)

// served is a page that is served, and a client that may see it.
type served struct {
	t      *testing.T
	server *Server
	url    string // without the token
	csrf   string
	http   *http.Client
}

// interval is short, except for the looks of the charts.
func interval() time.Duration {
	if *screenshots {
		return 250 * time.Millisecond
	}
	return 50 * time.Millisecond
}

func serve(t *testing.T, node *nattytest.Node, readOnly bool) *served {
	t.Helper()
	return serveURL(t, node.URL(), readOnly)
}

func serveURL(t *testing.T, url string, readOnly bool) *served {
	t.Helper()
	refusals := &account.Refusals{}
	c, err := natty.Connect(t.Context(), natty.Config{Name: "ui", Servers: []string{url}},
		natty.WithLogger(slog.New(slog.DiscardHandler)), natty.WithNATSOptions(refusals.Option()))
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := New(Config{
		Account: account.New(c, refusals), Listener: l, Interval: interval(), ReadOnly: readOnly, Version: "test",
	})
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-ended)
		assert.NoError(t, c.Close(context.WithoutCancel(t.Context())))
	})
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	sv := &served{t: t, server: s, url: "http://" + l.Addr().String(), http: &http.Client{Jar: jar}}
	t.Cleanup(sv.http.CloseIdleConnections)
	code, _, body := sv.get(strings.TrimPrefix(s.URL(), sv.url))
	require.Equal(t, http.StatusOK, code)
	sv.csrf = regexp.MustCompile(`name="csrf" content="([^"]+)"`).FindStringSubmatch(body)[1]
	return sv
}

func (sv *served) do(r *http.Request) (int, http.Header, string) {
	sv.t.Helper()
	answer, err := sv.http.Do(r)
	require.NoError(sv.t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(sv.t, err)
	return answer.StatusCode, answer.Header, string(body)
}

func (sv *served) request(method, path, body string) *http.Request {
	sv.t.Helper()
	r, err := http.NewRequestWithContext(sv.t.Context(), method, sv.url+path, strings.NewReader(body))
	require.NoError(sv.t, err)
	return r
}

func (sv *served) get(path string) (int, http.Header, string) {
	sv.t.Helper()
	return sv.do(sv.request(http.MethodGet, path, ""))
}

func (sv *served) post(path, body string, headers ...string) (int, string) {
	sv.t.Helper()
	r := sv.request(http.MethodPost, path, body)
	r.Header.Set("X-Natty-CSRF", sv.csrf)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	code, _, answer := sv.do(r)
	return code, answer
}

func withLetters(t *testing.T, n int) (*nattytest.Node, *natty.Client) {
	t.Helper()
	node := nattytest.Server(t)
	c := fixture.Client(t, node.URL())
	fixture.Streams(t, c)
	fixture.Letters(t, c, n)
	return node, c
}

func TestOnlyWhoHasTheTokenSeesAnything(t *testing.T) {
	t.Parallel()
	sv := serve(t, nattytest.Server(t), false)
	stranger := &served{t: t, url: sv.url, http: &http.Client{}}
	for _, path := range []string{"/", "/?token=", "/?token=wrong", "/events", "/findings", "/letters?subject=x", "/assets/app.js"} {
		code, _, body := stranger.get(path)
		assert.Equal(t, http.StatusUnauthorized, code, path)
		assert.Equal(t, "natty ui: open the URL that natty ui printed, with its token\n", body)
	}
	code, _ := stranger.post("/purge", "{}")
	assert.Equal(t, http.StatusUnauthorized, code)

	code, header, _ := stranger.get("/" + sv.server.URL()[len(sv.url)+1:])
	assert.Equal(t, http.StatusOK, code)
	assert.Regexp(t, `; HttpOnly; SameSite=Strict$`, header.Get("Set-Cookie"))
	assert.Contains(t, header.Get("Content-Security-Policy"), "default-src 'none'; script-src 'self'; style-src 'self';")
	assert.Equal(t, "no-referrer", header.Get("Referrer-Policy"))
	assert.Equal(t, "no-store", header.Get("Cache-Control"))
}

func TestANameThatWasPointedHereIsRefused(t *testing.T) {
	t.Parallel()
	sv := serve(t, nattytest.Server(t), false)
	for host, code := range map[string]int{
		"evil.example:" + sv.server.port: http.StatusMisdirectedRequest, "127.0.0.1:1": http.StatusMisdirectedRequest,
		"localhost:" + sv.server.port: http.StatusOK,
	} {
		r := sv.request(http.MethodGet, "/", "")
		r.Host = host
		u, err := url.Parse(sv.url)
		require.NoError(t, err)
		for _, c := range sv.http.Jar.Cookies(u) {
			r.AddCookie(c)
		}
		got, _, _ := (&served{t: t, http: &http.Client{}}).do(r)
		assert.Equal(t, code, got, host)
	}
}

func TestAnotherSiteCannotChangeAnything(t *testing.T) {
	t.Parallel()
	node, c := withLetters(t, 1)
	sv := serve(t, node, false)
	body := `{"subject":"dead.orders","places":[{"stored_in":"DEAD","stored_at":1}]}`
	for _, headers := range [][]string{
		{"X-Natty-CSRF", ""}, {"X-Natty-CSRF", "wrong"}, {"Origin", "http://evil.example"}, {"Origin", "null"},
		{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"},
	} {
		for _, path := range []string{"/purge", "/redrive"} {
			code, answer := sv.post(path, body, headers...)
			assert.Equal(t, http.StatusForbidden, code, headers)
			assert.Contains(t, answer, "natty ui: ")
		}
	}
	code, _, _ := sv.get("/purge")
	assert.Equal(t, http.StatusMethodNotAllowed, code)
	code, _ = sv.post("/purge", `{"subject":""}`)
	assert.Equal(t, http.StatusBadRequest, code)
	readOnly := serve(t, node, true)
	code, answer := readOnly.post("/purge", body)
	assert.Equal(t, http.StatusForbidden, code)
	assert.Contains(t, answer, "--read-only")
	n := 0
	for _, err := range c.DeadLetters(t.Context(), "dead.orders") {
		require.NoError(t, err)
		n++
	}
	assert.Equal(t, 1, n, "nothing was changed")
}

func TestLettersAreListedRedrivenAndPurged(t *testing.T) {
	t.Parallel()
	node, c := withLetters(t, 3)
	sv := serve(t, node, false)
	list := func(query string) (all found) {
		code, _, body := sv.get("/letters?subject=dead.orders" + query)
		require.Equal(t, http.StatusOK, code, body)
		require.NoError(t, json.Unmarshal([]byte(body), &struct {
			Letters *[]json.RawMessage `json:"letters"`
			More    *bool              `json:"more"`
		}{new([]json.RawMessage), &all.More}))
		all.Letters = make([]account.Letter, strings.Count(body, `"stored_at"`))
		return all
	}
	assert.Len(t, list("").Letters, 3)
	assert.Empty(t, list("&origin=other.>").Letters)
	assert.Empty(t, list("&older=1h").Letters)
	assert.Len(t, list("&reason=CUSTOMER&newer=1h&limit=2").Letters, 2)
	assert.True(t, list("&limit=2").More)
	for _, query := range []string{"&older=x", "&origin=a..b", "&limit=x", "&older=-1h"} {
		code, _, _ := sv.get("/letters?subject=dead.orders" + query)
		assert.Equal(t, http.StatusBadRequest, code, query)
	}
	code, _, body := sv.get("/letters?subject=nowhere")
	assert.Equal(t, http.StatusBadGateway, code, body)

	code, body = sv.post("/redrive", `{"subject":"dead.orders","places":[{"stored_in":"DEAD","stored_at":2}]}`, "Origin", sv.url)
	require.Equal(t, http.StatusOK, code)
	assert.JSONEq(t, `{"done":1}`, body)
	fixture.Consume(t, c, 1, func(_ context.Context, msg *nats.Msg) error {
		assert.Equal(t, `{"id":1}`, string(msg.Data))
		return nil
	})
	code, body = sv.post("/purge", `{"subject":"dead.orders","places":[{"stored_in":"DEAD","stored_at":1}]}`)
	require.Equal(t, http.StatusOK, code)
	assert.JSONEq(t, `{"done":1}`, body)
	code, body = sv.post("/redrive", `{"subject":"dead.orders","places":[{"stored_in":"DEAD","stored_at":1}]}`)
	require.Equal(t, http.StatusOK, code)
	assert.Contains(t, body, "1 of 1 letters are gone")
	assert.Len(t, list("").Letters, 1)
}

func TestFindingsAreThoseOfTheDoctor(t *testing.T) {
	t.Parallel()
	node, _ := withLetters(t, 2)
	sv := serve(t, node, true)
	code, _, body := sv.get("/findings")
	require.Equal(t, http.StatusOK, code, body)
	var all []account.Finding
	require.NoError(t, json.Unmarshal([]byte(body), &all))
	require.Len(t, all, 1)
	assert.Equal(t, "subject dead.orders", all[0].About)
	assert.Contains(t, all[0].Remedy, "natty dead redrive dead.orders")
	node.Stop()
	require.Eventually(t, func() bool {
		code, _, body = sv.get("/findings")
		return code == http.StatusBadGateway && strings.Contains(body, "there is no connection to the server")
	}, fixture.Patience, 10*time.Millisecond)
}

func TestEventsTellOfAServerThatWentAway(t *testing.T) {
	t.Parallel()
	node, _ := withLetters(t, 1)
	sv := serve(t, node, false)
	answer, err := sv.http.Do(sv.request(http.MethodGet, "/events", ""))
	require.NoError(t, err)
	defer answer.Body.Close()
	assert.Equal(t, "text/event-stream", answer.Header.Get("Content-Type"))
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	timer := time.AfterFunc(fixture.Patience, func() { _ = answer.Body.Close() })
	defer timer.Stop()
	waitFor := func(what string) {
		for lines.Scan() {
			if strings.Contains(lines.Text(), what) {
				return
			}
		}
		require.Fail(t, fmt.Sprintf("%q did not come", what))
	}
	waitFor("event: history")
	waitFor(`"subject":"dead.orders","count":1`)
	node.Stop()
	waitFor(`data: {"trouble":"there is no connection to the server`)
	require.NoError(t, node.Restart())
	waitFor(`"subject":"dead.orders","count":1`)
}

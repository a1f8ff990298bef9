package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestIncidentEndsWithoutALostOrderAndInOneTrace(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-traces", filepath.Join(t.TempDir(), "traces.json")}, &out))
	printed := out.String()
	t.Log(printed)
	for _, want := range []string{
		"GET /livez   ok", "GET /readyz  ok", "database: connection refused, after 3 deliveries", "redriven 5",
		"attempt=3  outcome=dead_lettered\n       send dead.>\n",
		"attempt=1  redrives=1  outcome=acked", "stored 15 of 15 orders", "lost 0",
	} {
		assert.Contains(t, printed, want)
	}
}

// pages is what is printed, while the program runs.
type pages struct {
	mu   sync.Mutex
	text strings.Builder
}

func (p *pages) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *pages) url() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return regexp.MustCompile(`http://[0-9.:]+`).FindString(p.text.String())
}

func TestServiceServesUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var out pages
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"-serve", "-traces", filepath.Join(t.TempDir(), "t.json")}, &out) }()
	require.Eventually(t, func() bool { return out.url() != "" }, 20*time.Second, 5*time.Millisecond)
	ask := func(method, page string) string {
		req, err := http.NewRequestWithContext(ctx, method, out.url()+page, nil)
		require.NoError(t, err)
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return string(text)
	}
	until := func(want string) {
		require.Eventually(t, func() bool { return strings.Contains(ask(http.MethodGet, "/metrics"), want) },
			20*time.Second, 20*time.Millisecond, "%s", want)
	}
	until(`outcome="acked",stream="ORDERS"} 1`)
	ask(http.MethodPost, "/database/stop")
	until(`outcome="dead_lettered",stream="ORDERS"} 1`)
	ask(http.MethodPost, "/database/start")
	assert.Contains(t, ask(http.MethodPost, "/redrive"), "1 put back")
	assert.Contains(t, ask(http.MethodGet, "/health"), `"durable": "orders"`)
	cancel()
	require.NoError(t, <-done)
}

func TestAnArgumentIsRefused(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run(t.Context(), []string{"a"}, io.Discard), "unexpected argument a")
	require.ErrorContains(t, run(t.Context(), []string{"-traces", filepath.Join(t.TempDir(), "no", "file")}, io.Discard), "no such file")
	require.Error(t, run(t.Context(), []string{"-listen", "nowhere"}, io.Discard))
}

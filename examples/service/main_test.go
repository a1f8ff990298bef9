package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// output is written by several handlers at once, and read meanwhile.
type output struct {
	mu sync.Mutex
	strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Builder.Write(p)
}

func (o *output) lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Split(strings.TrimSpace(o.String()), "\n")
}

var everything = []string{
	"bill order 1", "bill order 2", "bill order 3",
	"take from stock order 1", "take from stock order 2", "take from stock order 3",
}

func testCtx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestEachConsumerHandlesEveryOrder(t *testing.T) {
	t.Parallel()
	var out output
	require.NoError(t, run(testCtx(t), nil, &out))
	require.ElementsMatch(t, everything, out.lines())
}

func TestServiceOfAnotherFileRunsUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.ClientCerts())
	files := server.Files()
	var file map[string]any
	require.NoError(t, json.Unmarshal(ownFile, &file))
	file["servers"] = []string{server.URL()}
	file["tls"] = map[string]string{"ca_file": files.CA, "cert_file": files.Cert, "key_file": files.Key}
	data, err := json.Marshal(file)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "service.json")
	require.NoError(t, os.WriteFile(path, data, 0o600))

	ctx, interrupt := context.WithCancel(testCtx(t))
	defer interrupt()
	var out output
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{path}, &out) }()
	require.NoError(t, publish(ctx, natty.Config{
		Servers: []string{server.URL()},
		TLS:     natty.TLSConfig{CAFile: files.CA, CertFile: files.Cert, KeyFile: files.Key},
	}))
	require.Eventually(t, func() bool { return len(out.lines()) == len(everything) }, 30*time.Second, 10*time.Millisecond)
	require.ElementsMatch(t, everything, out.lines())
	interrupt()
	require.NoError(t, <-ended)
}

func TestFileThatIsMissingOrWrongIsNamed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "other.json")
	require.ErrorContains(t, run(testCtx(t), []string{path}, &output{}), path)
	require.NoError(t, os.WriteFile(path, []byte(`{"consumers":[{"nam":"a"}]}`), 0o600))
	require.ErrorContains(t, run(testCtx(t), []string{path}, &output{}), path+`: consumers[0].nam: unknown key; did you mean "name"`)
}

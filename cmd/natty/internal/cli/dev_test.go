package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDevServesTLSAndKeepsItsDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "store")
	var config struct {
		URL    string `json:"url"`
		CAFile string `json:"ca_file"`
	}
	begin := func() *testProgram {
		p := nattyCmd(t, "dev", "--port", "0", "--dir", dir, "--json")
		p.start()
		var text strings.Builder
		for line := ""; line != "}"; {
			line = p.line()
			text.WriteString(line)
		}
		require.NoError(t, json.Unmarshal([]byte(text.String()), &config))
		return p
	}
	p := begin()
	authority, err := os.ReadFile(config.CAFile)
	require.NoError(t, err)
	nc, err := nats.Connect(config.URL, nats.RootCAs(config.CAFile))
	require.NoError(t, err)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.CreateStream(ctxOf(t), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	require.NoError(t, err)
	nc.Close()
	require.NoError(t, p.Process.Signal(syscall.SIGINT))
	require.Equal(t, 0, p.code(), p.errs.String())

	begin()
	again, err := os.ReadFile(config.CAFile)
	require.NoError(t, err)
	assert.Equal(t, string(authority), string(again), "a configuration that was pasted still works")
	nc, err = nats.Connect(config.URL, nats.RootCAs(config.CAFile))
	require.NoError(t, err)
	defer nc.Close()
	js, err = jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.Stream(ctxOf(t), "ORDERS")
	require.NoError(t, err)
}

func TestDevPrintsWhatToPasteAndCleansUp(t *testing.T) {
	t.Parallel()
	p := nattyCmd(t, "dev", "--port", "0")
	p.start()
	assert.Contains(t, p.line(), "JetStream and TLS runs at nats://127.0.0.1:")
	ca := strings.Split(p.until("\t\tTLS:"), `"`)[1]
	assert.FileExists(t, ca)
	p.until("Press Ctrl-C")
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 0, p.code())
	assert.NoFileExists(t, ca)
}

func TestDevOnAPortThatIsTakenSaysSo(t *testing.T) {
	t.Parallel()
	first := nattyCmd(t, "dev", "--port", "0")
	first.start()
	line := first.line()
	port := line[strings.LastIndexByte(line, ':')+1:]
	_, errs, code := nattyCmd(t, "dev", "--port", port).result()
	assert.Equal(t, 1, code)
	assert.Equal(t, "natty: the server did not start: port "+port+
		" is taken, maybe by another server; choose one with --port, or 0 for any\n", errs)
}

func TestWrongUsageEndsWithTwo(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{}, {"dve"}, {"dev", "--prot", "1"}, {"dev", "extra"}, {"dev", "--port", "70000"}, {"lead"},
		{"lead", "--bucket", "b", "--", "true"}, {"lead", "--bucket", "b", "--key", "k"},
		{"lead", "--bucket", "b", "--key", "k", "--ttl", "x", "--", "true"},
		{"lock", "--bucket", "b", "--key", "k", "--no-wait", "--wait", "1s", "--", "true"},
		{"lock", "--server", "http://127.0.0.1:1", "--bucket", "b", "--key", "k", "--", "true"},
	} {
		_, errs, code := nattyCmd(t, args...).result()
		assert.Equal(t, 2, code, "%q: %s", args, errs)
		assert.Regexp(t, `^natty: .*\n(natty: .*\n)*natty: see natty --help`, errs, "%q", args)
	}
}

func TestVersionAndCompletion(t *testing.T) {
	t.Parallel()
	out, _, code := nattyCmd(t, "--version").result()
	assert.Equal(t, 0, code)
	assert.Regexp(t, `^natty \S+`, out)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		out, _, code := nattyCmd(t, "completion", shell).result()
		assert.Equal(t, 0, code)
		assert.Contains(t, out, "natty")
	}
}

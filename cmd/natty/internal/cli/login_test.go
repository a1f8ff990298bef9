package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/cmd/natty/internal/fixture"
	"github.com/natty-go/natty/nattytest"
)

// withContext writes a context of the nats command, and selects it.
func withContext(t *testing.T, p *testProgram, name, content string) {
	t.Helper()
	dir := ""
	for _, variable := range p.Env {
		if value, ok := strings.CutPrefix(variable, "XDG_CONFIG_HOME="); ok {
			dir = filepath.Join(value, "nats")
		}
	}
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "context"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "context", name+".json"), []byte(content), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "context.txt"), []byte(name), 0o600))
}

func TestTheServerIsFoundAsTheNatsCommandFindsIt(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.TLS(), nattytest.User("ops", "the-secret"))
	other := nattytest.Server(t)
	ca := node.Files().CA
	context := `{"url": "` + node.URL() + `", "user": "ops", "password": "the-secret", "ca": "` + ca + `"}`
	ours, others := `"server":`, other.Server().Name()
	for name, c := range map[string]struct {
		args, env []string
		at        string
	}{
		"flags":             {args: []string{"--server", node.URL(), "--user", "ops", "--password", "the-secret", "--tlsca", ca}, at: node.Server().Name()},
		"variables":         {env: []string{"NATS_URL=" + node.URL(), "NATS_USER=ops", "NATS_PASSWORD=the-secret", "NATS_CA=" + ca}, at: node.Server().Name()},
		"the context":       {args: []string{"--context", "prod"}, at: node.Server().Name()},
		"context over env":  {args: []string{"--context", "prod"}, env: []string{"NATS_URL=" + other.URL()}, at: node.Server().Name()},
		"selected context":  {at: node.Server().Name()},
		"env over selected": {env: []string{"NATS_URL=" + other.URL()}, at: others},
		"flag over the env": {args: []string{"--server", other.URL()}, env: []string{"NATS_URL=" + node.URL()}, at: others},
	} {
		p := nattyCmd(t, append([]string{"top", "--json", "--interval", "100ms"}, c.args...)...)
		withContext(t, p, "prod", context)
		p.Env = append(p.Env, c.env...)
		out, errs, code := p.result()
		require.Equal(t, 0, code, "%s: %s", name, errs)
		assert.Contains(t, out, ours)
		assert.Contains(t, out, c.at, name)
	}
}

func TestCertificatesAreUsedAndMissingFilesNamed(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.ClientCerts())
	files := node.Files()
	base := []string{"top", "--once", "--interval", "100ms", "--server", node.URL(), "--tlsca", files.CA}
	_, errs, code := nattyCmd(t, append(base, "--tlscert", files.Cert, "--tlskey", files.Key)...).result()
	assert.Equal(t, 0, code, errs)
	_, errs, code = nattyCmd(t, base...).result()
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "certificate")
	for _, flag := range []string{"--creds", "--nkey"} {
		_, errs, code = nattyCmd(t, append(base, flag, "/no/such/file")...).result()
		assert.Equal(t, 2, code, errs)
		assert.Contains(t, errs, "/no/such/file")
	}
}

func TestAServerWithoutJetStreamSaysWhatToDo(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStream = false }))
	for _, command := range []string{"top", "doctor"} {
		_, errs, code := nattyCmd(t, command, "--server", node.URL()).result()
		assert.Equal(t, 1, code)
		assert.Contains(t, errs, "start it with JetStream")
		assert.Equal(t, 1, strings.Count(errs, "\n"), errs)
	}
}

func TestUIPrintsItsURLAndEndsInOrder(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, "ui", "--server", node.URL(), "--read-only")
	p.start()
	assert.Regexp(t, `^Open http://127\.0\.0\.1:\d+/\?token=\w{26}$`, p.line())
	require.NoError(t, p.Process.Signal(os.Interrupt))
	assert.Equal(t, 0, p.code(), p.errs.String())
	_, errs, code := nattyCmd(t, "ui", "--server", node.URL(), "--listen", "nowhere").result()
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "choose another address with --listen")
}

func TestDoctorSeesOneReplicaInACluster(t *testing.T) {
	t.Parallel()
	nodes := nattytest.Cluster(t)
	c := fixture.Client(t, nodes.URLs()[0])
	fixture.Streams(t, c)
	out, _, code := nattyCmd(t, "doctor", "--server", nodes.URLs()[0]).result()
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "WARNING  stream ORDERS: has one replica in cluster ")
	assert.Contains(t, out, "nats stream edit ORDERS --replicas=3")
}

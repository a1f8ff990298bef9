package docscode

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// TestServiceFilesInTheDocumentsAreRight parses every service file of the documents.
func TestServiceFilesInTheDocumentsAreRight(t *testing.T) {
	t.Setenv("NATS_PASSWORD", "any")
	files := 0
	for file, text := range documents(t) {
		blocks, _ := split(file, text)
		for _, b := range blocks {
			if b.language != "json" || !strings.Contains(b.code, `"consumers"`) {
				continue
			}
			files++
			if _, err := natty.ParseService([]byte(b.code)); err != nil {
				t.Errorf("%s:%d: %v", b.file, b.line, err)
			}
		}
	}
	assert.NotZero(t, files)
}

// TestTheAccountsOfTheDocumentsWork publishes and consumes in a stream of another account, on a
// server with the configuration of docs/connections.md.
func TestTheAccountsOfTheDocumentsWork(t *testing.T) {
	t.Parallel()
	const page = "docs/connections.md"
	blocks, _ := split(page, documents(t)[page])
	i := slices.IndexFunc(blocks, func(b block) bool { return strings.HasPrefix(b.code, "accounts {") })
	require.NotEqual(t, -1, i, "the configuration")
	conf := filepath.Join(t.TempDir(), "accounts.conf")
	require.NoError(t, os.WriteFile(conf, []byte(blocks[i].code), 0o600))
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		parsed, err := server.ProcessConfigFile(conf)
		if assert.NoError(t, err) {
			o.Accounts, o.Users = parsed.Accounts, parsed.Users
		}
	}))
	connect := func(cfg natty.Config) *natty.Client {
		cfg.Servers = []string{node.URL()}
		c, err := natty.Connect(t.Context(), cfg)
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, c.Close(context.Background())) })
		return c
	}
	shop := connect(natty.Config{User: "shop", Password: "shop-secret"})
	for name, subject := range map[string]string{"ORDERS": "orders.>", "DEAD": "dead.>"} {
		_, err := shop.EnsureStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{subject}})
		require.NoError(t, err)
	}
	billing := connect(natty.Config{Name: "billing", User: "billing", Password: "billing-secret", APIPrefix: "shop.API"})
	require.NoError(t, billing.Publish(t.Context(), "orders.new", []byte("good")))
	require.NoError(t, shop.Publish(t.Context(), "orders.new", []byte("bad")))

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	require.NoError(t, billing.Process(ctx, natty.ConsumerConfig{
		Durable: "billing", Subjects: []string{"orders.new"}, DeadLetter: "dead.billing",
	}, func(_ context.Context, msg *nats.Msg) error {
		if string(msg.Data) == "bad" {
			stop()
			return natty.Permanent(nil)
		}
		return nil
	}))
	letters := 0
	for letter, err := range shop.DeadLetters(t.Context(), "dead.billing") {
		require.NoError(t, err)
		assert.Equal(t, "bad", string(letter.Data))
		letters++
	}
	assert.Equal(t, 1, letters)
	consumer, err := shop.JetStream().Consumer(t.Context(), "ORDERS", "billing")
	require.NoError(t, err)
	assert.EqualValues(t, 2, consumer.CachedInfo().AckFloor.Stream, "both are acked")
}

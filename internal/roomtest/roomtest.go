// Package roomtest is what the tests of rooms share. It knows the rooms up to jsapi, and
// not the root: testkit is for tests that have a natty.Client.
package roomtest

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/respmux"
)

// API returns JetStream's API over a connection of its own to the server at url.
func API(t *testing.T, url string) *jsapi.Client {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	c := conn.Adopt(nc, slog.New(slog.DiscardHandler), func(conn.Event) {})
	t.Cleanup(c.Close)
	require.NoError(t, c.Await(t.Context()))
	mux, err := respmux.New(nc)
	require.NoError(t, err)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	return &jsapi.Client{NC: nc, JS: js, Link: c.Link, Mux: mux, Prefix: jsapi.DefaultPrefix}
}

// Invalid makes the error for an argument, as the root does for its callers.
func Invalid(field, value, reason string, cause error) error {
	return fmt.Errorf("%s %q %s: %w", field, value, reason, cause)
}

package kv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/roomtest"
	"github.com/natty-go/natty/nattytest"
)

// The errors that the root makes for its callers.
var (
	errInvalid = errors.New("invalid")
	errUnknown = errors.New("unknown")
)

type changedError struct{ have, want uint64 }

func (e changedError) Error() string { return fmt.Sprint("changed: ", e.have, " ", e.want) }

// offline returns a store without a connection, for what needs none.
func offline() *Store {
	return &Store{
		API: &jsapi.Client{Prefix: jsapi.DefaultPrefix}, Pub: &publish.Publisher{IDs: publish.NewIDs()},
		Log: slog.New(slog.DiscardHandler),
		Invalid: func(field, value, reason string, cause error) error {
			return errors.Join(fmt.Errorf("%w: %s %q %s", errInvalid, field, value, reason), cause)
		},
		Changed: func(_, _ string, have, want uint64) error { return changedError{have, want} },
	}
}

// online returns a store on a server of its own, with a bucket "b".
func online(t *testing.T, cfg jetstream.KeyValueConfig) (*Store, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	s := offline()
	s.API = roomtest.API(t, nattytest.Server(t).URL())
	s.Life, s.Replicas = t.Context(), 1
	s.Pub.API, s.Pub.Timeout, s.Pub.Log, s.Pub.Invalid = s.API, 5*time.Second, s.Log, s.Invalid
	s.Pub.Failed = func(_, _ string, unknown bool, cause error) error {
		if unknown {
			return fmt.Errorf("%w: %w", errUnknown, cause)
		}
		return cause
	}
	cfg.Bucket = "b"
	require.NoError(t, s.MakeBucket(ctx, cfg))
	return s, ctx
}

func (c *Store) put(ctx context.Context, key string) error {
	return c.Put(ctx, jetstream.KeyValueConfig{Bucket: "b"}, key, []byte("put"), nil)
}

func (c *Store) create(ctx context.Context, data []byte) error {
	return c.Create(ctx, jetstream.KeyValueConfig{Bucket: "b"}, "k", data, nil)
}

// replace replaces the key as if a look had found last.
func (c *Store) replace(ctx context.Context, last State) error {
	_, err := c.Replace(ctx, "b", "k", nil, last)
	return err
}

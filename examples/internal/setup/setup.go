// Package setup is what the examples share and a service does not need: a server to try them on.
package setup

import (
	"context"
	"errors"
	"os"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// Server returns how the service called name reaches the server of $NATS_URL; where that asks for TLS, NATTY_CA,
// NATTY_CERT and NATTY_KEY name PEM files. Without it a server is started inside this program, which asks its clients
// for certificates; stop ends it and removes what it stored.
func Server(name string) (cfg natty.Config, stop func() error, err error) {
	cfg, _, stop, err = Restartable(name)
	return cfg, stop, err
}

// Restartable is Server, with a function that restarts the server on what it has stored: nil for the server of $NATS_URL.
func Restartable(name string) (cfg natty.Config, restart, stop func() error, err error) {
	if os.Getenv("NATS_URL") != "" {
		return natty.Config{ // no Servers: natty takes $NATS_URL
			Name: name,
			TLS: natty.TLSConfig{
				CAFile: os.Getenv("NATTY_CA"), CertFile: os.Getenv("NATTY_CERT"), KeyFile: os.Getenv("NATTY_KEY"),
			},
		}, nil, func() error { return nil }, nil
	}
	server, err := nattytest.Start(nattytest.ClientCerts())
	if err != nil {
		return natty.Config{}, nil, nil, err
	}
	files := server.Files()
	return natty.Config{
		Name:    name,
		Servers: []string{server.URL()},
		TLS:     natty.TLSConfig{CAFile: files.CA, CertFile: files.Cert, KeyFile: files.Key},
	}, server.Restart, server.Close, nil
}

// NoArguments returns an error if there are any.
func NoArguments(args []string) error {
	if len(args) > 0 {
		return errors.New("unexpected argument " + args[0] + "; it takes none")
	}
	return nil
}

// DeleteStream deletes a stream, if it was made.
func DeleteStream(ctx context.Context, c *natty.Client, name string) error {
	err := c.JetStream().DeleteStream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	return err
}

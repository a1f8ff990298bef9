package natty

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// EnsureStream makes the stream of cfg.Name if it is missing. Of an existing one it changes what cfg
// sets and leaves the rest as it is, fields that this version of nats.go does not know included; it
// writes nothing if there is no difference. Set is what is not a zero value; retention, storage and
// discard always count as set, since their zero values mean something. Metadata is merged key by key.
//
// Settings that cannot be changed give a *DriftError that lists them, and nothing is changed then. Several
// instances may call it at once. Without a deadline in ctx it takes at most 5s.
func (c *Client) EnsureStream(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	if err := validStream(cfg); err != nil {
		return nil, err
	}
	ctx, cancel := withDefaultTimeout(ctx, apiTimeout)
	defer cancel()
	if cfg.Replicas == 0 && c.cfg.Replicas > 1 {
		// Config's default is for what is made here; an existing stream keeps its own.
		exists, err := c.streamExists(ctx, cfg.Name)
		if err != nil {
			return nil, fmt.Errorf("natty: stream %q: %w", cfg.Name, err)
		}
		if !exists {
			cfg.Replicas = c.cfg.Replicas
		}
	}
	want, err := settings(cfg, "retention", "storage", "discard")
	if err != nil {
		return nil, err
	}
	if cfg.Compression == jetstream.NoCompression {
		delete(want, "compression") // "none" when not set
	}
	err = c.converge(ctx, resource{
		kind: "stream", name: cfg.Name, want: want,
		info:   "STREAM.INFO." + cfg.Name,
		update: "STREAM.UPDATE." + cfg.Name,
		body:   func(merged any) any { return merged },
		fixed:  []string{"storage", "retention", "mirror", "persist_mode", "allow_msg_counter"},
		create: func(ctx context.Context) error {
			_, err := c.js.CreateStream(ctx, cfg)
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	var stream jetstream.Stream
	err = c.persist(ctx, func(ctx context.Context) (err error) {
		stream, err = c.js.Stream(ctx, cfg.Name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("natty: stream %q: %w", cfg.Name, err)
	}
	return stream, nil
}

func validStream(cfg jetstream.StreamConfig) error {
	if cfg.Name == "" {
		return &ConfigError{Field: "Name", Reason: "a stream needs a name; set StreamConfig.Name"}
	}
	if wrong := validName(cfg.Name); wrong != "" {
		return &ConfigError{Field: "Name", Value: cfg.Name, Reason: wrong + "; use letters, digits, - and _"}
	}
	for _, s := range cfg.Subjects {
		if wrong := validFilter(s); wrong != "" {
			return &ConfigError{Field: "Subjects", Value: s, Reason: wrong + "; expected tokens separated by single dots, with * and > as whole tokens"}
		}
	}
	return nil
}

func (c *Client) streamExists(ctx context.Context, name string) (bool, error) {
	err := c.query(ctx, "STREAM.INFO."+name, nil, &struct{}{})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return false, nil
	}
	return err == nil, err
}

package natty

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// EnsureStream makes the stream of cfg.Name if it is missing, with Config.Replicas where cfg gives no
// number. Of an existing one it changes what cfg sets and leaves the rest as it is, fields that this version of
// nats.go does not know included; it writes nothing if there is no difference.
//
// Set is what is not a zero value; so nothing can be switched off or put back to a default with it (use
// JetStream().UpdateStream for that), and a stream that refuses new messages when full is not made to drop
// old ones. Retention and storage always count as set. Metadata is merged key by key, lists are replaced;
// the order of subjects does not matter.
//
// A stream with AllowMsgSchedules also gets the subject $NATTY.schedule.<name>.*, on which natty keeps schedules, and a later
// call with other subjects leaves that in place.
//
// Settings that cannot be changed give a *DriftError that lists them, and nothing is changed then: storage,
// retention, mirror, and what the server refuses. A server that is too old for a setting gives ErrUnsupported; one before
// 2.12 has then made a missing stream without it. Several instances may call it at once; of two that ask for
// different settings at the same moment either may win. Without a deadline in ctx it takes at most 5s.
func (c *Client) EnsureStream(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	if err := validStream(cfg); err != nil {
		return nil, err
	}
	want, err := streamSettings(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.AllowMsgSchedules {
		if len(cfg.Subjects) == 0 {
			cfg.Subjects = []string{cfg.Name} // as the server does; of a new stream only
		}
		if own := holders(cfg.Name); !slices.Contains(cfg.Subjects, own) {
			cfg.Subjects = append(slices.Clone(cfg.Subjects), own)
		}
	}
	if cfg.Replicas == 0 {
		cfg.Replicas = c.cfg.Replicas // of a new stream only: it is not in want
	}
	ctx, cancel := withDefaultTimeout(ctx, apiTimeout)
	defer cancel()
	r := resource{
		kind: "stream", name: cfg.Name, want: want,
		info:   "STREAM.INFO." + cfg.Name,
		update: "STREAM.UPDATE." + cfg.Name,
		body:   func(merged any) any { return merged },
		fixed:  []string{"storage", "retention", "mirror", "persist_mode", "allow_msg_counter"},
		accept: func(have map[string]any) error {
			withHolders(cfg.Name, have, want)
			return c.keepAllUp(ctx, cfg.Name, have, want)
		},
		create: func(ctx context.Context) error {
			made, err := c.js.CreateStream(ctx, cfg)
			return c.newStreamLacks(want, made, err)
		},
	}
	for n := 1; ; n++ {
		stream, err := c.makeStream(ctx, r)
		// A cluster may say for a moment that it does not know a stream that has just been made.
		if !errors.Is(err, jetstream.ErrStreamNotFound) || sleep(ctx, createPause.delay(n)) != nil {
			return stream, err
		}
	}
}

func (c *Client) makeStream(ctx context.Context, r resource) (stream jetstream.Stream, err error) {
	if err := c.converge(ctx, r); err != nil {
		return nil, err
	}
	err = c.persist(ctx, func(ctx context.Context) (err error) {
		stream, err = c.js.Stream(ctx, r.name)
		return err
	})
	if err != nil {
		return nil, named(r, err)
	}
	return stream, nil
}

// streamSettings returns what cfg sets, in the form in which the server has it.
func streamSettings(cfg jetstream.StreamConfig) (map[string]any, error) {
	cfg.Mirror = asSent(cfg.Mirror)
	cfg.Sources = slices.Clone(cfg.Sources)
	for i, s := range cfg.Sources {
		cfg.Sources[i] = asSent(s)
	}
	want, err := settings(cfg, "retention", "storage")
	if err != nil {
		return nil, err
	}
	if cfg.Discard == jetstream.DiscardOld {
		delete(want, "discard") // "old" when not set
	}
	if cfg.Compression == jetstream.NoCompression {
		delete(want, "compression") // "none" when not set
	}
	if cfg.Mirror != nil {
		delete(want, "mirror_direct") // the server takes it from the origin
	}
	return want, nil
}

// asSent writes a source as nats.go sends it, which turns a Domain into an API prefix.
func asSent(source *jetstream.StreamSource) *jetstream.StreamSource {
	if source == nil || source.Domain == "" || source.External != nil {
		return source
	}
	s := *source
	s.External = &jetstream.ExternalStream{APIPrefix: strings.TrimSuffix(Config{Domain: s.Domain}.apiPrefix(), ".")}
	return &s
}

func validStream(cfg jetstream.StreamConfig) error {
	if cfg.Name == "" {
		return &ConfigError{Field: "Name", Reason: "a stream needs a name; set StreamConfig.Name"}
	}
	if wrong := validName(cfg.Name); wrong != "" {
		return &ConfigError{Field: "Name", Value: cfg.Name, Reason: wrong + "; use letters, digits, - and _"}
	}
	if cfg.Duplicates < 0 {
		return &ConfigError{Field: "Duplicates", Value: cfg.Duplicates.String(), Reason: "is negative; give a duration, or 0 for the server's default"}
	}
	for _, s := range cfg.Subjects {
		if wrong := validFilter(s); wrong != "" {
			return &ConfigError{Field: "Subjects", Value: s, Reason: wrong + "; expected tokens separated by single dots, with * and > as whole tokens"}
		}
		if own := holders(cfg.Name); cfg.AllowMsgSchedules && s != own && overlap(s, own) {
			return &ConfigError{Field: "Subjects", Value: s, Reason: "overlaps with " + own + ", where natty keeps schedules; give subjects that have none in common with it"}
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

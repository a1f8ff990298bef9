package natty

import (
	"context"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/subject"
)

// EnsureStream makes the stream of cfg.Name if it is missing, with Config.Replicas if
// cfg gives no number. Of an existing stream it changes what cfg sets and leaves the
// rest as it is, including fields that this version of nats.go does not know. It writes
// nothing if there is no difference.
//
// What is not a zero value counts as set. So EnsureStream cannot switch anything off or
// put it back to a default (use JetStream().UpdateStream for that), and it does not
// make a stream that refuses new messages when full drop old ones. Retention and
// storage always count as set. Metadata is merged key by key, lists are replaced; the
// order of subjects does not matter. A MaxAge below the stream's duplicate window makes
// the window as short, unless cfg sets Duplicates: the server allows no longer one.
//
// A stream with AllowMsgSchedules also gets the subject $NATTY.schedule.<name>.*, on
// which natty keeps schedules, and a later call with other subjects leaves that in
// place. A MaxAge that would remove schedules, and a subject transform that would move
// them, give a *ConfigError.
//
// Settings that cannot be changed give a *DriftError that lists them, and nothing is
// changed then: storage, retention, mirror, and what the server refuses. A server that
// is too old for a setting gives ErrUnsupported; one before 2.12 has then made a
// missing stream without it. Several instances may call EnsureStream at once; of two
// that ask for different settings at the same moment either may win. A missing permission
// fails at once with nats.ErrPermissionViolation, which names the subject to allow.
// Without a deadline in ctx EnsureStream takes at most 5s.
func (c *Client) EnsureStream(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	if err := validStream(cfg); err != nil {
		return nil, err
	}
	want, err := jsapi.StreamSettings(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.AllowMsgSchedules {
		if len(cfg.Subjects) == 0 {
			cfg.Subjects = []string{cfg.Name} // as the server does; of a new stream only
		}
		if own := durable.Holders(cfg.Name); !slices.Contains(cfg.Subjects, own) {
			cfg.Subjects = append(slices.Clone(cfg.Subjects), own)
		}
	}
	if cfg.Replicas == 0 {
		cfg.Replicas = c.cfg.Replicas // of a new stream only: it is not in want
	}
	ctx, cancel := jsapi.WithTimeout(ctx, jsapi.APITimeout)
	defer cancel()
	r := jsapi.Resource{
		Kind: "stream", Name: cfg.Name, Want: want,
		Info:   "STREAM.INFO." + cfg.Name,
		Update: "STREAM.UPDATE." + cfg.Name,
		Fixed:  []string{"storage", "retention", "mirror", "persist_mode", "allow_msg_counter"},
		Accept: func(have map[string]any) error {
			durable.WithHolders(cfg.Name, have, want)
			if err := c.schedules.CheckChange(ctx, have, jsapi.Merge(have, want)); err != nil {
				return err
			}
			return c.consumers.KeepAllUp(ctx, cfg.Name, have, want)
		},
		Create: func(ctx context.Context) error {
			if cfg.AllowMsgSchedules {
				if err := c.schedules.CheckTransform(cfg); err != nil {
					return err
				}
			}
			made, err := c.api.CreateStream(ctx, cfg)
			return c.api.NewStreamLacks(want, made, err)
		},
	}
	return c.api.MakeStream(ctx, r)
}

func validStream(cfg jetstream.StreamConfig) error {
	if cfg.Name == "" {
		return invalid("Name", "", "a stream needs a name; set StreamConfig.Name", nil)
	}
	if wrong := subject.InvalidName(cfg.Name); wrong != "" {
		return invalid("Name", cfg.Name, wrong+"; use letters, digits, - and _", nil)
	}
	if cfg.Duplicates < 0 {
		return invalid("Duplicates", cfg.Duplicates.String(),
			"is negative; give a duration, or 0 for the server's default", nil)
	}
	for _, s := range cfg.Subjects {
		if wrong := subject.InvalidFilter(s); wrong != "" {
			return invalid("Subjects", s,
				wrong+"; expected tokens separated by single dots, with * and > as whole tokens", nil)
		}
		if own := durable.Holders(cfg.Name); cfg.AllowMsgSchedules && s != own && subject.Overlap(s, own) {
			return invalid("Subjects", s,
				"overlaps with "+own+", where natty keeps schedules; "+
					"give subjects that have none in common with it", nil)
		}
	}
	return nil
}

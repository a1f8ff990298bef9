package jsapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
)

// MakeStream makes the stream of r or changes what differs, and returns it.
func (a *Client) MakeStream(ctx context.Context, r Resource) (stream jetstream.Stream, err error) {
	err = UntilKnown(ctx, jetstream.ErrStreamNotFound, func() error {
		if err := a.Converge(ctx, r); err != nil {
			return err
		}
		return Named(r, a.Persist(ctx, func(ctx context.Context) (err error) {
			stream, err = a.Via(ctx).Stream(ctx, r.Name)
			return err
		}))
	})
	return stream, err
}

// CreateStream makes a stream, and returns the configuration that the server gave it.
// Where nats.go's CreateStream waits until ctx ends, it fails at once if the server
// denies it.
func (a *Client) CreateStream(ctx context.Context, cfg jetstream.StreamConfig) (*jetstream.StreamConfig, error) {
	cfg = withPrefixes(cfg)
	var made jetstream.StreamInfo
	data, err := a.Call(ctx, "STREAM.CREATE."+cfg.Name, cfg)
	if err == nil {
		err = json.Unmarshal(data, &made)
	}
	return &made.Config, err
}

// withPrefixes returns cfg with its origins as nats.go sends them.
func withPrefixes(cfg jetstream.StreamConfig) jetstream.StreamConfig {
	cfg.Mirror = asSent(cfg.Mirror)
	cfg.Sources = slices.Clone(cfg.Sources)
	for i, s := range cfg.Sources {
		cfg.Sources[i] = asSent(s)
	}
	return cfg
}

// StreamSettings returns what cfg sets, in the server's form.
func StreamSettings(cfg jetstream.StreamConfig) (map[string]any, error) {
	cfg = withPrefixes(cfg)
	want, err := Settings(cfg, "retention", "storage")
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
		delete(want, "mirror_direct") // the server copies the origin's
	}
	return want, nil
}

// withinMaxAge returns want for a stream that has the configuration have. With a max_age
// below the duplicate window it also asks for a shorter window: the server refuses such
// a change, though it makes a new stream with the shorter window by itself.
func withinMaxAge(have, want map[string]any) map[string]any {
	age, window := nanoseconds(want["max_age"]), nanoseconds(have["duplicate_window"])
	if _, given := want["duplicate_window"]; given || age <= 0 || age >= window {
		return want
	}
	want = maps.Clone(want)
	want["duplicate_window"] = want["max_age"]
	return want
}

// nanoseconds returns a duration of a configuration, or 0.
func nanoseconds(v any) int64 {
	n, _ := v.(json.Number)
	ns, _ := n.Int64() // 0 with an error
	return ns
}

// asSent returns source as nats.go sends it, with the API prefix in place of a Domain.
func asSent(source *jetstream.StreamSource) *jetstream.StreamSource {
	if source == nil || source.Domain == "" || source.External != nil {
		return source
	}
	s := *source
	s.External = &jetstream.ExternalStream{APIPrefix: "$JS." + s.Domain + ".API"}
	return &s
}

// StreamConfigOf reads the settings of a stream as the server sends them.
func StreamConfigOf(settings map[string]any) (cfg jetstream.StreamConfig, err error) {
	data, err := json.Marshal(settings)
	if err == nil {
		err = json.Unmarshal(data, &cfg)
	}
	return cfg, err
}

// StreamInfo reads the settings and the state of a stream. With a filter, the state has
// the subjects that match it.
func (a *Client) StreamInfo(ctx context.Context, name, filter string) (*jetstream.StreamInfo, error) {
	var request any
	if filter != "" {
		request = map[string]string{"subjects_filter": filter}
	}
	info := &jetstream.StreamInfo{}
	return info, a.Query(ctx, "STREAM.INFO."+name, request, info)
}

// StreamExists reports whether there is a stream of a name.
func (a *Client) StreamExists(ctx context.Context, name string) (bool, error) {
	_, err := a.StreamInfo(ctx, name, "")
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return false, nil
	}
	return err == nil, err
}

package durable

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/subject"
)

// errHeadersOnly is why a durable with headers_only is refused.
var errHeadersOnly = errors.New(
	"its messages come without their data, which handlers would take for empty messages; set it to false")

const defaultAckWait = 10 * time.Second

// ErrLastPerSubject is why an exclusive durable cannot deliver the last message per
// subject. Where 25, 27, 29 and 30 were the last messages of their subjects, 29 was the
// first to be delivered after a reset (server 2.15).
var ErrLastPerSubject = errors.New(
	"an exclusive durable is reset to where it got to, and last_per_subject then skips messages")

// resource is a durable whose configuration is read and written.
func resource(stream, name string) jsapi.Resource {
	return jsapi.Resource{
		Kind: "consumer", Name: name,
		Info: "CONSUMER.INFO." + stream + "." + name,
		Request: func(merged map[string]any) (endpoint string, body any) {
			endpoint = "CONSUMER.CREATE." + stream + "." + name
			if one := onlyFilter(merged); one != "" {
				endpoint += "." + one
				merged["filter_subject"] = one
				delete(merged, "filter_subjects")
			}
			return endpoint, map[string]any{"stream_name": stream, "config": merged, "action": "update"}
		},
		Fixed: []string{"ack_policy"},
	}
}

// onlyFilter returns the filter of a durable that has one. The subject of a request that
// makes or changes it ends with that filter, and permissions may be for this subject
// alone.
func onlyFilter(config map[string]any) string {
	if filters := asStrings(config["filter_subjects"]); len(filters) == 1 {
		return filters[0]
	}
	return ""
}

// maxWrites bounds how often two writers that want different things overwrite each
// other.
const maxWrites = 3

// write is the only place where the configuration of an existing durable is written.
// wanted gets the configuration that the server has, with filters as a list, and
// returns the settings that it is to have; nothing is written if it has them. have may
// be what the caller has read just now, or nil.
//
// A write replaces the whole configuration, and the server has no compare-and-set for
// it: whoever reads, and writes later, undoes what others wrote in between. So write
// reads immediately before it writes, and never takes more from the caller than the
// settings that it wants. Then it reads again, and asks wanted again: if another writer
// has undone the change, write makes it once more, on top of what that writer wrote.
// wanted must therefore depend on have alone, and want nothing more once it has what it
// wants.
func (c *Manager) write(
	ctx context.Context, r jsapi.Resource, have map[string]any,
	wanted func(have map[string]any) (map[string]any, error),
) (err error) {
	for range maxWrites {
		if have == nil {
			if have, err = c.API.CurrentConfig(ctx, r.Info); err != nil {
				return jsapi.Named(r, err)
			}
		}
		filtersAsList(have)
		if r.Want, err = wanted(have); err != nil || jsapi.Holds(have, r.Want) {
			return err
		}
		if err := c.API.Update(ctx, r, have); err != nil {
			return err
		}
		have = nil
	}
	return nil
}

// Note writes notes into the metadata of a durable. edit gets the notes that there are,
// and returns those to set; it may be called again, to see whether another writer has
// undone them. A refusal of the server is returned as it is.
func (c *Manager) Note(
	ctx context.Context, stream, name string, edit func(notes map[string]any) map[string]any,
) error {
	r := resource(stream, name)
	r.Kind = ""
	return c.write(ctx, r, nil, func(have map[string]any) (map[string]any, error) {
		notes, _ := have["metadata"].(map[string]any)
		return map[string]any{"metadata": edit(notes)}, nil
	})
}

// configured returns what cfg sets of a durable.
func (c *Manager) configured(ctx context.Context, stream string, cfg Spec) (jetstream.ConsumerConfig, error) {
	set := jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: cfg.AckWait, MaxAckPending: cfg.MaxAckPending,
	}
	info, err := c.API.StreamInfo(ctx, stream, "")
	if err != nil {
		return set, err
	}
	if err := c.checkMatch(ctx, info.Config, cfg.Subjects); err != nil {
		return set, err
	}
	all := stored(info.Config)
	if subject.OverlapAny(cfg.Subjects, []string{Holders(stream)}) {
		left, err := c.leftovers(ctx, stream, all)
		if err != nil {
			return set, err
		}
		all = append(all, left...)
	}
	set.FilterSubjects = withoutHolders(stream, all, cfg.Subjects)
	switch {
	case receivesAll(cfg.Subjects) && len(set.FilterSubjects) > 0:
		set.Metadata = map[string]string{metaWholeStream: "true"}
	case len(cfg.Subjects) > 0 && len(set.FilterSubjects) == 0:
		return set, c.Invalid("subjects", strings.Join(cfg.Subjects, " "),
			"receives nothing but the schedules of stream "+stream+
				", which consumers do not get; list them with Schedules", nil)
	}
	if !cfg.Exclusive {
		return set, nil
	}
	if err := jsapi.ExclusiveConsumers.MissingFrom(c.API.ServerVersion(info.Config.Metadata)); err != nil {
		return set, err
	}
	set.PriorityPolicy, set.PriorityGroups = jetstream.PriorityPolicyPinned, []string{PinGroup}
	if info.Config.Retention != jetstream.WorkQueuePolicy { // a WorkQueue takes explicit acks only
		set.AckPolicy = jetstream.AckAllPolicy
	}
	return set, nil
}

// fresh returns the configuration of a durable that natty makes.
func fresh(cfg Spec, set jetstream.ConsumerConfig) jetstream.ConsumerConfig {
	set.Durable, set.DeliverPolicy, set.MaxDeliver = cfg.Durable, cfg.DeliverPolicy, -1
	if cfg.Exclusive {
		set.PinnedTTL = cfg.PinnedTTL
	}
	if set.AckWait == 0 {
		set.AckWait = defaultAckWait
	}
	if len(set.FilterSubjects) == 1 {
		set.FilterSubject, set.FilterSubjects = set.FilterSubjects[0], nil
	}
	return set
}

// wanted returns the settings that an existing durable is to have. It refuses a push
// consumer, and a durable that is shared in another way than cfg says.
func (c *Manager) wanted(
	cfg Spec, set jetstream.ConsumerConfig, have map[string]any,
) (want map[string]any, err error) {
	if want, err = jsapi.Settings(set, "ack_policy"); err != nil {
		return nil, err
	}
	for _, kind := range []string{"deliver_policy", "replay_policy"} {
		delete(want, kind) // they are for a new durable only, and are never zero in JSON
	}
	if cfg.MaxDeliver > 0 {
		want["max_deliver"] = json.Number("-1") // natty enforces the limit: the server drops messages at it
	}
	refuse := func(field string, why error) (map[string]any, error) {
		differ := []jsapi.Difference{{Field: field, Have: jsapi.AsJSON(have[field]), Want: jsapi.AsJSON(nil)}}
		return nil, c.API.Drift("consumer", cfg.Durable, differ, why)
	}
	if _, push := have["deliver_subject"]; push {
		return refuse("deliver_subject", errors.New("it is a push consumer"))
	}
	if have["headers_only"] == true {
		return refuse("headers_only", errHeadersOnly)
	}
	switch policy, set := have["priority_policy"]; {
	case set && policy != "none" && !cfg.Exclusive:
		return refuse("priority_policy",
			errors.New("its instances do not share the work; set exclusive if one of them is to be active"))
	case cfg.Exclusive && have["deliver_policy"] == "last_per_subject":
		return refuse("deliver_policy", ErrLastPerSubject)
	case cfg.Exclusive && policy != want["priority_policy"]:
		// The server's default is two minutes.
		want["priority_timeout"] = json.Number(strconv.FormatInt(cfg.PinnedTTL.Nanoseconds(), 10))
	}
	if err := joinFilters(cfg, have, want); err != nil {
		differ := []jsapi.Difference{{
			Field: "filter_subjects",
			Have:  jsapi.AsJSON(have["filter_subjects"]), Want: jsapi.AsJSON(want["filter_subjects"]),
		}}
		return nil, c.API.Drift("consumer", cfg.Durable, differ, err)
	}
	return want, nil
}

// filtersAsList writes a single filter as a list.
func filtersAsList(have map[string]any) {
	if one, ok := have["filter_subject"]; ok {
		have["filter_subjects"] = []any{one}
		delete(have, "filter_subject")
	}
}

package natty

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	defaultAckWait = 10 * time.Second
	minAckWait     = 500 * time.Millisecond
	maxConcurrency = 100_000
	// Delayed retries count as ack-pending, so that the server's default of 1,000 lets a thousand failing
	// messages stall a consumer (nats-server#6093).
	maxAckPending = 20_000
)

// durable is a consumer on the server.
type durable struct {
	stream, name  string
	streamCreated time.Time
	config        jetstream.ConsumerConfig // as the server has it
	floor         uint64                   // every message up to this sequence of the stream was settled
	floorCount    uint64                   // the consumer sequence of that
	pin           string                   // of the active instance, if the durable is Exclusive
	unacked       int                      // delivered to anyone and not settled
	waiting       uint64                   // not delivered yet
	created       time.Time
	delivered     uint64   // the highest sequence of the stream that was
	deliveries    uint64   // with repetitions
	first         uint64   // the first sequence that the stream has
	subjects      []string // the stream's
	whole         bool     // it receives all that is in the stream
}

// ackWait is how long the server waits for a sign of life of a message before it delivers it again. BackOff,
// which another client may have set, overrides AckWait.
func (d durable) ackWait() time.Duration {
	w := d.config.AckWait
	for _, b := range d.config.BackOff {
		w = min(w, b)
	}
	return max(w, time.Millisecond)
}

// findStream returns the one stream that holds all of cfg's subjects.
func (c *Client) findStream(ctx context.Context, cfg ConsumerConfig) (string, error) {
	if cfg.Stream != "" {
		exists, err := c.streamExists(ctx, cfg.Stream)
		if err == nil && !exists {
			err = fmt.Errorf("%w: there is no stream of this name; make it with EnsureStream, or check stream_name", ErrNoStream)
		}
		if err != nil {
			return "", fmt.Errorf("natty: stream %q: %w", cfg.Stream, err)
		}
		return cfg.Stream, nil
	}
	found := ""
	for _, subject := range cfg.Subjects {
		streams, err := c.streamsOf(ctx, subject)
		switch {
		case err != nil:
			return "", fmt.Errorf("natty: look up the stream of %q: %w", subject, err)
		case len(streams) == 0:
			return "", fmt.Errorf("natty: %q: %w; make one with EnsureStream, or check the subject", subject, ErrNoStream)
		case len(streams) > 1:
			return "", &ConfigError{Field: "subjects", Value: subject, Reason: "is held by the streams " + strings.Join(streams, " and ") + "; set stream_name to the one to consume"}
		case found != "" && found != streams[0]:
			return "", &ConfigError{Field: "subjects", Value: subject, Reason: fmt.Sprintf("is in stream %s and others are in %s; run one consumer for each stream", streams[0], found)}
		}
		found = streams[0]
	}
	return found, nil
}

// configured is what cfg sets of a durable.
func (c *Client) configured(ctx context.Context, stream string, cfg ConsumerConfig) (jetstream.ConsumerConfig, error) {
	set := jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy, AckWait: cfg.AckWait}
	var info streamInfo
	if err := c.query(ctx, "STREAM.INFO."+stream, nil, &info); err != nil {
		return set, err
	}
	set.FilterSubjects = withoutHolders(stream, info.Config.Subjects, cfg.Subjects)
	switch {
	case receivesAll(cfg.Subjects, []string{">"}) && len(set.FilterSubjects) > 0:
		set.Metadata = map[string]string{metaWholeStream: "true"}
	case len(cfg.Subjects) > 0 && len(set.FilterSubjects) == 0:
		return set, &ConfigError{Field: "subjects", Value: strings.Join(cfg.Subjects, " "), Reason: "receives nothing but the schedules of stream " + stream + ", which consumers do not get; list them with Schedules"}
	}
	if !cfg.Exclusive {
		return set, nil
	}
	if err := exclusiveConsumers.missingFrom(c.serverVersion(info.Config.Metadata)); err != nil {
		return set, err
	}
	set.PriorityPolicy, set.PriorityGroups = jetstream.PriorityPolicyPinned, []string{pinGroup}
	if info.Config.Retention != jetstream.WorkQueuePolicy { // which takes explicit acknowledgements only
		set.AckPolicy = jetstream.AckAllPolicy
	}
	return set, nil
}

// freshDurable is the configuration of a durable that is made here.
func freshDurable(cfg ConsumerConfig, set jetstream.ConsumerConfig) jetstream.ConsumerConfig {
	fresh := set
	fresh.Durable, fresh.DeliverPolicy, fresh.MaxDeliver = cfg.Durable, cfg.DeliverPolicy, -1
	if cfg.Exclusive {
		fresh.PinnedTTL = cfg.pinnedTTL
	}
	if fresh.AckWait == 0 {
		fresh.AckWait = defaultAckWait
	}
	if len(fresh.FilterSubjects) == 1 {
		fresh.FilterSubject, fresh.FilterSubjects = fresh.FilterSubjects[0], nil
	}
	return fresh
}

// ensureDurable makes the durable of cfg, or converges what cfg sets.
func (c *Client) ensureDurable(ctx context.Context, stream string, cfg ConsumerConfig) (durable, error) {
	d := durable{stream: stream, name: cfg.Durable}
	set, err := c.configured(ctx, stream, cfg)
	if err != nil {
		return d, fmt.Errorf("natty: consumer %q: %w", d.name, err)
	}
	want, err := settings(set, "ack_policy")
	if err != nil {
		return d, err
	}
	for _, kind := range []string{"deliver_policy", "replay_policy"} {
		delete(want, kind) // of a new one only, and never zero in JSON
	}
	if cfg.MaxDeliver > 0 {
		want["max_deliver"] = json.Number("-1") // the limit is natty's to keep: the server's drops messages
	}
	r := durableResource(stream, d.name, want)
	r.create = func(ctx context.Context) error { return c.createDurable(ctx, stream, freshDurable(cfg, set)) }
	r.accept = func(have map[string]any) error { return acceptDurable(cfg, have, want) }
	err = c.converge(ctx, r)
	if code := errorCode(err); code == codeQueueOverlap || code == codeQueueHasConsumer {
		return d, c.explainOverlap(ctx, stream, cfg, err)
	}
	if err != nil {
		return d, err
	}
	if err := c.refresh(ctx, &d); err != nil {
		return d, fmt.Errorf("natty: consumer %q: %w", d.name, err)
	}
	return d, nil
}

// durableResource is a durable that is to have certain settings.
func durableResource(stream, name string, want map[string]any) resource {
	return resource{
		kind: "consumer", name: name, want: want,
		info:   "CONSUMER.INFO." + stream + "." + name,
		update: "CONSUMER.CREATE." + stream + "." + name,
		body: func(merged any) any {
			return map[string]any{"stream_name": stream, "config": merged, "action": "update"}
		},
		fixed: []string{"ack_policy"},
	}
}

// filters are the subjects that the durable receives; none means all.
func (d durable) filters() []string {
	if d.config.FilterSubject != "" {
		return []string{d.config.FilterSubject}
	}
	return d.config.FilterSubjects
}

// sequences are where a durable is: in the stream, and in its own count of deliveries.
type sequences struct {
	Sequence uint64 `json:"stream_seq"`
	Count    uint64 `json:"consumer_seq"`
}

// refresh reads what the server knows about d.
func (c *Client) refresh(ctx context.Context, d *durable) error {
	var stream streamInfo
	if err := c.query(ctx, "STREAM.INFO."+d.stream, nil, &stream); err != nil {
		return err
	}
	var info struct {
		Config    jetstream.ConsumerConfig `json:"config"`
		Created   time.Time                `json:"created"`
		Floor     sequences                `json:"ack_floor"`
		Delivered sequences                `json:"delivered"`
		Unacked   int                      `json:"num_ack_pending"`
		Waiting   uint64                   `json:"num_pending"`
		Groups    pinGroups                `json:"priority_groups"`
	}
	err := c.query(ctx, "CONSUMER.INFO."+d.stream+"."+d.name, nil, &info)
	if err == nil {
		d.streamCreated = stream.Created
		d.config, d.floor, d.unacked, d.waiting = info.Config, info.Floor.Sequence, info.Unacked, info.Waiting
		d.floorCount, d.pin = info.Floor.Count, info.Groups.pin()
		d.created, d.delivered, d.deliveries = info.Created, info.Delivered.Sequence, info.Delivered.Count
		d.first, d.subjects = stream.State.FirstSeq, stream.Config.Subjects
		d.whole = receivesAll(d.filters(), d.subjects)
	}
	return err
}

// createDurable makes a consumer with as much room for unacknowledged messages as the server allows. What that is
// it says only in the text of its refusal: halving finds it well enough.
func (c *Client) createDurable(ctx context.Context, stream string, cfg jetstream.ConsumerConfig) error {
	for cfg.MaxAckPending = maxAckPending; ; cfg.MaxAckPending /= 2 {
		_, err := c.js.CreateConsumer(ctx, stream, cfg)
		if errorCode(err) != codeMaxAckPending || cfg.MaxAckPending == 1 {
			return err
		}
	}
}

// acceptDurable refuses a push consumer and one that is shared in another way, and writes the one-filter form as a list.
func acceptDurable(cfg ConsumerConfig, have, want map[string]any) error {
	refuse := func(field string, why error) error {
		return &DriftError{
			Kind: "consumer", Name: cfg.Durable,
			Differences: []Difference{{Field: field, Have: asJSON(have[field]), Want: asJSON(nil)}}, Err: why,
		}
	}
	if _, push := have["deliver_subject"]; push {
		return refuse("deliver_subject", errors.New("it is a push consumer"))
	}
	switch policy, set := have["priority_policy"]; {
	case set && policy != "none" && !cfg.Exclusive:
		return refuse("priority_policy", errors.New("its instances do not share the work; set exclusive if one of them is to be active"))
	case cfg.Exclusive && have["deliver_policy"] == "last_per_subject":
		return refuse("deliver_policy", errLastPerSubject)
	case cfg.Exclusive && policy != want["priority_policy"]:
		want["priority_timeout"] = json.Number(strconv.FormatInt(cfg.pinnedTTL.Nanoseconds(), 10)) // else the server's, two minutes
	}
	filtersAsList(have)
	keepFilters(cfg, have, want)
	return nil
}

// filtersAsList writes the one-filter form as a list.
func filtersAsList(have map[string]any) {
	if one, ok := have["filter_subject"]; ok {
		have["filter_subjects"] = []any{one}
		delete(have, "filter_subject")
	}
}

// keepFilters leaves the filters that somebody gave a durable as they are, where cfg gives none. Where it does, they do not follow
// the stream any more.
func keepFilters(cfg ConsumerConfig, have, want map[string]any) {
	filters, _ := have["filter_subjects"].([]any)
	meta, _ := have["metadata"].(map[string]any)
	switch whole := !isZero(meta[metaWholeStream]); {
	case whole && receivesAll(cfg.Subjects, []string{">"}):
		delete(want, "filter_subjects") // keepUp knows more: there may be messages left of a subject that the stream has lost
		return
	case whole:
		want["metadata"] = map[string]any{metaWholeStream: ""}
		return
	case len(cfg.Subjects) > 0, len(filters) == 0:
		return
	}
	for _, f := range filters {
		if s, _ := f.(string); overlap(s, holderPrefix+"*.*") {
			return
		}
	}
	delete(want, "filter_subjects")
	delete(want, "metadata")
}

// validate reports the first setting that cannot work. It expects defaults to be filled in.
func (cfg ConsumerConfig) validate() error {
	for _, s := range cfg.Subjects {
		if wrong := validFilter(s); wrong != "" {
			return &ConfigError{Field: "subjects", Value: s, Reason: wrong + "; expected tokens separated by single dots, with * and > as whole tokens"}
		}
	}
	for i, s := range cfg.Subjects {
		for _, other := range cfg.Subjects[:i] {
			if overlap(s, other) {
				return &ConfigError{Field: "subjects", Value: s, Reason: fmt.Sprintf("overlaps with %q; give subjects that have none in common", other)}
			}
		}
	}
	if err := cmp.Or(cfg.validateNames(), cfg.validateOrder()); err != nil {
		return err
	}
	if p := cfg.DeliverPolicy; p == jetstream.DeliverByStartSequencePolicy || p == jetstream.DeliverByStartTimePolicy {
		return &ConfigError{Field: "deliver_policy", Value: p.String(), Reason: "needs a value that has no place here; use all, new, last or last_per_subject, or make the durable with JetStream() first"}
	}
	for field, n := range map[string]int64{
		"concurrency": int64(cfg.Concurrency), "max_poll_records": int64(cfg.MaxPollRecords), "max_deliver": int64(cfg.MaxDeliver),
	} {
		if n < 0 {
			return negative(field, n)
		}
	}
	durations := map[string]time.Duration{
		"heartbeat_interval": cfg.Heartbeat, "ack_wait": cfg.AckWait, "drain_timeout": cfg.DrainTimeout,
		"handler_timeout": cfg.HandlerTimeout,
		"backoff_min":     cfg.Backoff.Min, "backoff_max": cfg.Backoff.Max,
	}
	for field, d := range durations {
		if d < 0 {
			return negative(field, d)
		}
	}
	if err := cfg.validateDeadLetter(); err != nil {
		return err
	}
	return cfg.validateLimits()
}

// errLastPerSubject is why the two do not go together: where 25, 27, 29 and 30 were the last messages of their subjects, 29
// was the first to come after a reset (server 2.15).
var errLastPerSubject = errors.New("an exclusive durable is reset to where it got to, and last_per_subject then skips messages")

// validateOrder checks what is handled beside what.
func (cfg ConsumerConfig) validateOrder() error {
	switch {
	case cfg.Exclusive && cfg.Concurrency > 1:
		return &ConfigError{Field: "concurrency", Value: strconv.Itoa(cfg.Concurrency), Reason: "set with exclusive, which handles one message at a time; leave one of them out"}
	case cfg.Exclusive && cfg.DeliverPolicy == jetstream.DeliverLastPerSubjectPolicy:
		return &ConfigError{Field: "deliver_policy", Value: cfg.DeliverPolicy.String(), Reason: "set with exclusive", Err: errLastPerSubject}
	case cfg.Exclusive && cfg.OrderBy != nil:
		return &ConfigError{Field: "exclusive", Reason: "set with OrderBy; exclusive keeps all messages in order, OrderBy those of one key: leave one of them out"}
	}
	return nil
}

// validateNames checks what is consumed, and under which name.
func (cfg ConsumerConfig) validateNames() error {
	switch {
	case len(cfg.Subjects) == 0 && cfg.Stream == "":
		return &ConfigError{Field: "subjects", Reason: "nothing to consume; set subjects, or stream_name for a whole stream"}
	case cfg.Durable == "" && len(cfg.Subjects) > 1:
		return &ConfigError{Field: "consumer_group", Reason: "(Durable) is required with several subjects; give the durable a name"}
	case cfg.Durable == "":
		return &ConfigError{Field: "consumer_group", Reason: "the durable has no name: set Config.Name, from which natty derives one, or ConsumerConfig.Durable"}
	}
	for field, name := range map[string]string{"stream_name": cfg.Stream, "consumer_group": cfg.Durable} {
		if wrong := validName(name); wrong != "" {
			return &ConfigError{Field: field, Value: name, Reason: wrong + "; use letters, digits, - and _"}
		}
	}
	return nil
}

func (cfg ConsumerConfig) validateDeadLetter() error {
	if cfg.DeadLetter == "" {
		if cfg.MaxDeliver > 0 {
			return &ConfigError{Field: "max_deliver", Value: strconv.Itoa(cfg.MaxDeliver), Reason: "set without dead_letter: what is given up would be lost; set both"}
		}
		return nil
	}
	if err := publishable(cfg.DeadLetter); err != nil {
		return &ConfigError{Field: "dead_letter", Value: cfg.DeadLetter, Reason: "cannot be published to", Err: err}
	}
	return nil
}

// validateLimits checks what is positive for being within reason.
func (cfg ConsumerConfig) validateLimits() error {
	switch {
	case cfg.Backoff.Max < cfg.Backoff.Min:
		return &ConfigError{Field: "backoff_max", Value: cfg.Backoff.Max.String(), Reason: "is below backoff_min " + cfg.Backoff.Min.String()}
	case cfg.AckWait > 0 && cfg.AckWait < minAckWait:
		return &ConfigError{Field: "ack_wait", Value: cfg.AckWait.String(), Reason: "is below " + minAckWait.String() + ", in which messages cannot be kept alive reliably"}
	case cfg.Concurrency > maxConcurrency:
		return &ConfigError{Field: "concurrency", Value: strconv.Itoa(cfg.Concurrency), Reason: "is above " + strconv.Itoa(maxConcurrency)}
	case cfg.Heartbeat < minHeartbeat:
		return &ConfigError{Field: "heartbeat_interval", Value: cfg.Heartbeat.String(), Reason: "is below " + minHeartbeat.String() + ", the least the server sends"}
	}
	return nil
}

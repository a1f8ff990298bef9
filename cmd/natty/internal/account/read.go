package account

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// readTimeout bounds each request, so that one that is lost costs little.
	readTimeout = 5 * time.Second
	// parallel is how many requests are under way at once.
	parallel = 8
	// maxFilters bounds how many filters of a consumer are asked for their oldest message.
	maxFilters = 16
)

// Read reads the account. An error says that nothing could be read; what cannot be read
// alone is among the Problems.
func (a *Account) Read(ctx context.Context) (*Snapshot, error) {
	a.reading.Lock()
	defer a.reading.Unlock()
	s := &Snapshot{
		Time: time.Now(), Streams: []Stream{}, Consumers: []Consumer{}, Leases: []Lease{}, Dead: []Dead{},
	}
	if err := a.readServer(s); err != nil {
		return nil, err
	}
	streams, err := a.readStreams(ctx)
	if err != nil {
		if _, refused := errors.AsType[*RefusedError](err); !refused {
			return nil, fmt.Errorf("the streams cannot be read: %w", explain(err))
		}
		s.problem(UnreadStreams, "the streams", err)
	}
	slices.SortFunc(streams, func(x, y *jetstream.StreamInfo) int { return cmp.Compare(x.Config.Name, y.Config.Name) })
	for _, info := range streams {
		s.Streams = append(s.Streams, a.streamOf(s.Time, info))
	}
	a.readParts(ctx, s)
	a.forget(s.Time)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a.before = s
	return s, nil
}

// keep takes what was read before of a stream that does not answer for the moment: the
// consumers that vanish from a page would look as if they were gone.
func (s *Snapshot) keep(before *Snapshot, stream string) {
	if before == nil {
		return
	}
	for _, c := range before.Consumers {
		if c.Stream == stream {
			s.Consumers = append(s.Consumers, c)
		}
	}
}

// readParts reads what there is about each stream.
func (a *Account) readParts(ctx context.Context, s *Snapshot) {
	var mu sync.Mutex // guards s
	each(s.Streams, func(st *Stream) {
		consumers, err := a.readConsumers(ctx, st.info)
		leases, dead, err2 := a.readContent(ctx, st.info)
		mu.Lock()
		defer mu.Unlock()
		if _, refused := errors.AsType[*RefusedError](err); err != nil && !refused {
			s.keep(a.before, st.Name)
		} else {
			for _, info := range consumers {
				s.Consumers = append(s.Consumers, a.consumerOf(s.Time, info))
			}
		}
		s.Leases = append(s.Leases, leases...) // those found before, if there is an error
		s.Dead = append(s.Dead, dead...)
		s.problem(UnreadConsumers, "the consumers of stream "+st.Name, err)
		s.problem(UnreadContent, "the leases and dead letters in stream "+st.Name, err2)
	})
	each(s.Consumers, func(c *Consumer) {
		oldest, err := a.oldest(ctx, c)
		mu.Lock()
		defer mu.Unlock()
		c.Oldest = oldest
		c.Warning = stall(s.Time, c)
		s.problem(UnreadOldest, fmt.Sprintf("the oldest message of consumer %s of stream %s", c.Name, c.Stream), err)
	})
	slices.SortFunc(s.Consumers, func(x, y Consumer) int {
		return cmp.Or(cmp.Compare(x.Stream, y.Stream), cmp.Compare(x.Name, y.Name))
	})
	slices.SortFunc(s.Leases, func(x, y Lease) int {
		return cmp.Or(cmp.Compare(x.Bucket, y.Bucket), cmp.Compare(x.Key, y.Key))
	})
	slices.SortFunc(s.Dead, func(x, y Dead) int { return cmp.Compare(x.Subject, y.Subject) })
	slices.SortFunc(s.Problems, func(x, y Problem) int { return cmp.Compare(x.Text, y.Text) })
	s.Problems = slices.Compact(s.Problems)
}

// problem notes what could not be read. What was deleted meanwhile is no problem.
func (s *Snapshot) problem(kind Unread, what string, err error) {
	if err == nil || errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrMsgNotFound) ||
		errors.Is(err, context.Canceled) {
		return
	}
	p := Problem{Kind: kind, Text: fmt.Sprintf("%s cannot be read: %v", what, explain(err))}
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		p.refused = refused.Subject
	}
	s.Problems = append(s.Problems, p)
}

// explain says what to do about an error of nats.go that does not.
func explain(err error) error {
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("the server has no JetStream; start it with JetStream (-js), or set --domain: %w", err)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("the account has no JetStream; enable it for the account, or use another user: %w", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fmt.Errorf("the server did not answer within %v: %w", readTimeout, err)
	}
	return err
}

// each calls f for all, several at a time.
func each[T any](all []T, f func(*T)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(&all[i])
		})
	}
	wg.Wait()
}

func (a *Account) readServer(s *Snapshot) error {
	nc := a.client.Conn()
	if !nc.IsConnected() {
		why := ""
		if health := a.client.Health(); health.LastError != "" {
			why = ": " + health.LastError
		}
		return fmt.Errorf("there is no connection to the server%s", why)
	}
	rtt, err := nc.RTT()
	if err != nil {
		return fmt.Errorf("the server does not answer a ping: %w", err)
	}
	s.Server = Server{
		Name: nc.ConnectedServerName(), Version: nc.ConnectedServerVersion(), Cluster: nc.ConnectedClusterName(),
		URL: nc.ConnectedUrlRedacted(), RTT: float64(rtt.Microseconds()) / 1000,
	}
	return nil
}

func (a *Account) readStreams(ctx context.Context) (all []*jetstream.StreamInfo, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	err = a.ask(ctx, "STREAM.LIST", func(ctx context.Context) error {
		list := a.js.ListStreams(ctx)
		for info := range list.Info() {
			all = append(all, info)
		}
		return list.Err()
	})
	return all, err
}

func (a *Account) readConsumers(ctx context.Context, stream *jetstream.StreamInfo) (all []*jetstream.ConsumerInfo, err error) {
	if stream.State.Consumers == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	name := stream.Config.Name
	return all, a.ask(ctx, "STREAM.INFO."+name, func(ctx context.Context) error {
		st, err := a.js.Stream(ctx, name)
		if err != nil {
			return err
		}
		return a.ask(ctx, "CONSUMER.LIST."+name, func(ctx context.Context) error {
			list := st.ListConsumers(ctx)
			for info := range list.Info() {
				all = append(all, info)
			}
			return list.Err()
		})
	})
}

// part is what was found in the content of a stream. It is read again when the stream
// has changed.
type part struct {
	created       time.Time
	lastSeq, msgs uint64
	leases        []Lease
	dead          []Dead
}

func (a *Account) readContent(ctx context.Context, info *jetstream.StreamInfo) ([]Lease, []Dead, error) {
	now := part{created: info.Created, lastSeq: info.State.LastSeq, msgs: info.State.Msgs}
	a.mu.Lock()
	p, ok := a.known[info.Config.Name]
	a.mu.Unlock()
	if ok && p.created.Equal(now.created) && p.lastSeq == now.lastSeq && p.msgs == now.msgs {
		return p.leases, p.dead, nil
	}
	var err, deadErr error
	now.leases, err = a.readLeases(ctx, info)
	if now.dead, deadErr = a.readDead(ctx, info); err == nil {
		err = deadErr
	}
	if err != nil {
		return p.leases, p.dead, err
	}
	a.mu.Lock()
	a.known[info.Config.Name] = now
	a.mu.Unlock()
	return now.leases, now.dead, nil
}

func (a *Account) streamOf(now time.Time, info *jetstream.StreamInfo) Stream {
	cfg, state := &info.Config, &info.State
	return Stream{
		Name: cfg.Name, Subjects: cfg.Subjects, Retention: strings.ToLower(cfg.Retention.String()),
		Messages: state.Msgs, Bytes: state.Bytes, Consumers: state.Consumers, Replicas: max(cfg.Replicas, 1),
		LastSeq: state.LastSeq,
		Rate:    a.rate("stream "+cfg.Name, sample{now, state.LastSeq, info.Created}),
		info:    info,
	}
}

func (a *Account) consumerOf(now time.Time, info *jetstream.ConsumerInfo) Consumer {
	cfg := &info.Config
	c := Consumer{
		Stream: info.Stream, Name: info.Name, Durable: cfg.Durable != "", Filters: filtersOf(cfg),
		Lag: info.NumPending + uint64(max(info.NumAckPending, 0)), Pending: info.NumPending,
		InFlight: info.NumAckPending, MaxInFlight: cfg.MaxAckPending, Redelivered: info.NumRedelivered,
		Waiting: info.NumWaiting, LastDelivered: info.Delivered.Last, LastSettled: info.AckFloor.Last,
		Rate: a.rate("consumer "+info.Stream+" "+info.Name, sample{now, info.Delivered.Consumer, info.Created}),
		info: info,
	}
	if cfg.AckPolicy == jetstream.AckNonePolicy {
		c.Lag, c.InFlight = info.NumPending, 0
	}
	return c
}

func filtersOf(cfg *jetstream.ConsumerConfig) []string {
	if cfg.FilterSubject != "" {
		return []string{cfg.FilterSubject}
	}
	return cfg.FilterSubjects
}

// oldest returns when the oldest message was stored that a consumer has not settled.
func (a *Account) oldest(ctx context.Context, c *Consumer) (*time.Time, error) {
	if c.Lag == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	filters := c.Filters
	if len(filters) == 0 {
		filters = []string{">"}
	}
	var oldest *time.Time
	err := a.ask(ctx, "STREAM.MSG.GET."+c.Stream, func(ctx context.Context) error {
		stream, err := a.js.Stream(ctx, c.Stream)
		if err != nil {
			return err
		}
		for _, filter := range filters[:min(len(filters), maxFilters)] {
			msg, err := stream.GetMsg(ctx, c.info.AckFloor.Stream+1, jetstream.WithGetMsgSubject(filter))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if oldest == nil || msg.Time.Before(*oldest) {
				oldest = &msg.Time
			}
		}
		return nil
	})
	return oldest, err
}

// forget drops the samples of what is gone.
func (a *Account) forget(now time.Time) {
	for name, s := range a.last {
		if s.at.Before(now) {
			delete(a.last, name)
		}
	}
}

package schedule

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/subject"
)

// Each calls yield for each schedule of a stream, until it returns false.
func (k *Keeper) Each(ctx context.Context, stream string, yield func(Schedule) bool) error {
	if err := k.namesStream(stream); err != nil {
		return err
	}
	all, err := k.all(ctx, stream)
	if err != nil {
		return err
	}
	for _, s := range all {
		if !yield(s.Schedule) {
			return nil
		}
	}
	return nil
}

// all returns the schedules of a stream, in the order in which they were made.
//
// The IDs come first, then what each of them holds by now: from one consumer, and what
// it does not bring one by one. Going through the stream by sequence misses schedules
// that are replaced meanwhile.
func (k *Keeper) all(ctx context.Context, stream string) ([]held, error) {
	left := map[string]bool{}
	var cfg jetstream.StreamConfig
	err := k.API.EachSubject(ctx, stream, durable.Holders(stream), func(p *jsapi.SubjectPage, s string) {
		left[s], cfg = true, p.Config
	})
	if err != nil {
		return nil, err
	}
	var brought []held
	for holder, one := range k.bulk(ctx, cfg, len(left)) {
		brought = append(brought, one)
		delete(left, holder)
	}
	all, err := k.contents(ctx, stream, slices.Collect(maps.Keys(left)))
	all = append(all, brought...)
	slices.SortFunc(all, func(a, b held) int { return cmp.Compare(a.sequence, b.sequence) })
	return all, err
}

// readers is how many requests are under way at once.
const readers = 64

// contents reads what holders with these subjects hold. Those that have gone are left
// out.
func (k *Keeper) contents(ctx context.Context, stream string, subjects []string) (all []held, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work := make(chan string)
	var mu sync.Mutex // guards all and err
	var busy sync.WaitGroup
	for range min(readers, len(subjects)) {
		busy.Go(func() {
			for s := range work {
				one, failed := k.current(ctx, stream, s)
				mu.Lock()
				switch {
				case errors.Is(failed, jetstream.ErrMsgNotFound):
				case failed != nil && err == nil:
					err = failed
					cancel()
				case failed == nil:
					all = append(all, one)
				}
				mu.Unlock()
			}
		})
	}
	for _, s := range subjects {
		work <- s
	}
	close(work)
	busy.Wait()
	return all, err
}

// current reads what a holder holds, from the stream's leader.
func (k *Keeper) current(ctx context.Context, stream, holder string) (held, error) {
	m, err := k.API.LeaderGet(ctx, stream, map[string]any{"last_by_subj": holder})
	if err != nil {
		return held{}, err
	}
	return read(stream, m)
}

// Remove ends a schedule.
func (k *Keeper) Remove(ctx context.Context, stream, id string) error {
	if err := k.namesStream(stream); err != nil {
		return err
	}
	if err := k.validateID("id", id); err != nil {
		return err
	}
	filter := map[string]string{"filter": holderSubject(stream, id)}
	if err := k.API.Query(ctx, "STREAM.PURGE."+stream, filter, &struct{}{}); err != nil {
		return fmt.Errorf("natty: end schedule %q of stream %q: %w", id, stream, err)
	}
	return nil
}

// namesStream refuses what cannot be a stream's name.
func (k *Keeper) namesStream(stream string) error {
	if reason := subject.InvalidName(stream); stream == "" || reason != "" {
		return k.Invalid("stream", stream,
			"names no stream; give the name of the stream that keeps the schedules", nil)
	}
	return nil
}

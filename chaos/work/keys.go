package work

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/history"
)

// Linear is the bucket whose histories are checked for linearizability.
const Linear = "linear"

// The operations on keys. See is an operation that found the key at another revision, or
// found none.
const (
	Put     = "put"
	Create  = "create"
	Update  = "update"
	Refresh = "refresh"
	Remove  = "remove"
	Read    = "read"
	See     = "see"
)

// How an operation ended.
const (
	OK       = "ok"
	Exists   = "exists"
	Stale    = "stale"    // Want is the revision asked for, Seq the one found
	NotFound = "notfound" // there is no key
	NotDone  = "notdone"  // it is certain that nothing was written
	InDoubt  = "indoubt"  // it may be done, or may be later
	OKOnce   = "ok-once"  // it is done, and was sent only once
)

// often lists operations as often as they are to be chosen.
var often = []string{Put, Create, Create, Update, Update, Update, Update, Refresh, Remove, Read, Read}

// keyEvery is how long each set of keys is used: a long history takes too long to check.
const keyEvery = 5 * time.Second

// keysOf is how many keys a set has.
const keysOf = 4

// keyClient does operations one after the other.
type keyClient struct {
	w     *worker
	known *sync.Map     // a late revision of each key
	count *atomic.Int64 // of operations
}

func useKeys(ctx context.Context, w *worker) error {
	var clients sync.WaitGroup
	known, count := &sync.Map{}, &atomic.Int64{}
	for range 3 {
		clients.Go(func() {
			k := keyClient{w: w, known: known, count: count}
			w.each(ctx, 80*time.Millisecond, func(int) { k.once(ctx) })
		})
	}
	clients.Wait()
	w.drained(ctx)
	return nil
}

func (k *keyClient) once(ctx context.Context) {
	n := k.count.Add(1)
	set := history.Now() / int64(keyEvery)
	e := history.Event{
		Op:  often[rand.IntN(len(often))],
		Key: fmt.Sprintf("k%d.%d", set, rand.IntN(keysOf)),
		ID:  k.w.id(int(n)),
		N:   k.value(n),
	}
	if revision, ok := k.known.Load(e.Key); ok && e.Op == Update {
		e.Want, _ = revision.(uint64)
	}
	limit := attempt
	switch rand.IntN(10) {
	case 0:
		limit = rand.N(20 * time.Millisecond)
	case 1:
		limit = time.Second
	}
	brief, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	k.do(brief, e)
}

// value is unique in the run.
func (k *keyClient) value(n int64) int64 {
	number := int64(k.w.Name[len(k.w.Name)-1] - '0')
	return (number*1000+int64(k.w.Life))*1_000_000 + n
}

// atMostOnce is the time within which an operation is not sent a second time.
const atMostOnce = 500 * time.Millisecond

func (k *keyClient) do(ctx context.Context, e history.Event) {
	e.What, e.At = history.Call, history.Now()
	k.w.log.Add(e)
	nc, reconnects := k.w.c.Conn(), k.w.c.Conn().Stats().Reconnects
	e.What, e.From = history.Return, e.At
	err := k.run(ctx, &e)
	e.At = history.Now()
	once := e.At-e.From < int64(atMostOnce) && nc == k.w.c.Conn() && nc.Stats().Reconnects == reconnects
	k.judge(&e, err, once)
	if e.Seq != 0 {
		k.known.Store(e.Key, e.Seq)
	}
	k.w.log.Add(e)
}

// judge sets how an operation ended.
func (k *keyClient) judge(e *history.Event, err error, once bool) {
	var stale *natty.RevisionError
	switch {
	case err == nil && once:
		e.Text = OKOnce
	case err == nil:
		e.Text = OK
	case errors.Is(err, natty.ErrOutcomeUnknown):
		e.Text = InDoubt
	case errors.As(err, &stale):
		e.Text, e.Want, e.Seq = Stale, stale.Want, stale.Have
	case e.Op == Create && errors.Is(err, jetstream.ErrKeyExists):
		e.Text = Exists
	case errors.Is(err, jetstream.ErrKeyNotFound):
		e.Text = NotFound
	default:
		e.Text = NotDone
		if ctxErr := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled); !ctxErr {
			k.w.report("key", err)
		}
	}
}

var errOnlyLooking = errors.New("only looking")

// run does an operation, and writes what it finds into e.
func (k *keyClient) run(ctx context.Context, e *history.Event) (err error) {
	c, data := k.w.c, strconv.AppendInt(nil, e.N, 10)
	switch e.Op {
	case Put:
		return c.Put(ctx, Linear, e.Key, data)
	case Create:
		return c.Create(ctx, Linear, e.Key, data)
	case Update:
		if e.Want == 0 {
			e.Want = math.MaxUint64 // it is refused, and says which revision there is
		}
		e.Seq, err = c.Update(ctx, Linear, e.Key, data, e.Want)
		return err
	case Refresh:
		return c.Refresh(ctx, Linear, e.Key)
	case Remove:
		return c.Delete(ctx, Linear, e.Key)
	}
	e.N = 0
	b, err := natty.NewBucket[int64](c, natty.BucketConfig{Bucket: Linear})
	if err != nil {
		return err
	}
	// Modify reads from the bucket's leader, as Get does not.
	err = b.Modify(ctx, e.Key, func(v int64) (int64, error) { e.N = v; return 0, errOnlyLooking })
	if errors.Is(err, errOnlyLooking) {
		return nil
	}
	return err
}

package schedule

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
)

const (
	// bulkFrom is how many schedules make a consumer cheaper than a request each.
	bulkFrom = 64
	// bulkBatch is how many of them come for one request.
	bulkBatch = 1000
	// bulkPatience bounds the wait for the next of them.
	bulkPatience = 2 * time.Second
)

// bulk reads many holders with one consumer, which it removes. What does not come, for
// whatever reason, is not in the result: contents then reads it one by one.
//
// Only the one server that keeps the stream may be believed: a consumer of a replicated
// stream can be on a replica that lags behind. A WorkQueue allows no such consumer.
func (k *Keeper) bulk(ctx context.Context, cfg jetstream.StreamConfig, n int) map[string]held {
	if n < bulkFrom || cfg.Replicas > 1 || cfg.Retention != jetstream.LimitsPolicy {
		return nil
	}
	found := make(map[string]held, n)
	// The error does not matter: a permission or a limit, or a connection that is lost.
	_ = k.readBulk(ctx, cfg.Name, n, func(h held, holder string) { found[holder] = h })
	return found
}

func (k *Keeper) readBulk(ctx context.Context, stream string, n int, take func(h held, holder string)) error {
	name, filter := k.Pub.IDs.Next(), durable.Holders(stream)
	config := map[string]any{
		"name": name, "deliver_policy": "last_per_subject", "filter_subject": filter, "ack_policy": "none",
		"replay_policy": "instant", "mem_storage": true, "inactive_threshold": 10 * bulkPatience,
	}
	create, cancel := context.WithTimeout(ctx, bulkPatience)
	defer cancel()
	_, err := k.API.Call(create, "CONSUMER.CREATE."+stream+"."+name+"."+filter,
		map[string]any{"stream_name": stream, "config": config, "action": "create"})
	if err != nil {
		return err
	}
	of := stream + "." + name
	defer func() { _ = k.API.NC.Publish(k.API.Prefix+"CONSUMER.DELETE."+of, nil) }() // or it ends by itself

	inbox := k.API.NC.NewInbox() + "."
	answers := make(chan *nats.Msg, bulkBatch+1)
	sub, err := k.API.NC.ChanSubscribe(inbox+"*", answers)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only on a closed connection
	body, err := json.Marshal(map[string]any{"batch": bulkBatch, "no_wait": true})
	if err != nil {
		return err
	}
	for request, got := 0, 0; got < n; request++ {
		to := inbox + strconv.Itoa(request)
		if err := k.API.NC.PublishRequest(k.API.Prefix+"CONSUMER.MSG.NEXT."+of, to, body); err != nil {
			return err
		}
		came, err := receiveBulk(ctx, stream, answers, take)
		if err != nil {
			return err
		}
		got += came
	}
	return nil
}

// receiveBulk takes the messages of one request. An error says that no more will come.
func receiveBulk(
	ctx context.Context, stream string, answers <-chan *nats.Msg, take func(h held, holder string),
) (came int, err error) {
	silence := time.NewTimer(bulkPatience)
	defer silence.Stop()
	for came < bulkBatch {
		select {
		case m := <-answers:
			meta, err := m.Metadata()
			if err != nil { // a status: there is nothing more
				return came, err
			}
			one := parse(stream, &jsapi.StoredMsg{
				Subject: m.Subject, Sequence: meta.Sequence.Stream, Time: meta.Timestamp, Data: m.Data,
			}, m.Header)
			take(one, m.Subject)
			came++
			silence.Reset(bulkPatience)
		case <-silence.C:
			return came, errSilent
		case <-ctx.Done():
			return came, ctx.Err()
		}
	}
	return came, nil
}

var errSilent = errors.New("the server sends no more schedules")

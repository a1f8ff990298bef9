package publish

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/respmux"
)

// batchAttempt is one attempt to store a batch.
type batchAttempt struct {
	b       *batch
	waiters []*respmux.Waiter // for the answer to each message sent; nil once it is there
	tokens  []uint64
}

func (a *batchAttempt) send(m *nats.Msg) error {
	w, token, reply := a.b.pub.API.Mux.Expect(m.Subject, 0)
	a.waiters, a.tokens = append(a.waiters, w), append(a.tokens, token)
	m.Reply = reply
	if err := a.b.pub.API.NC.PublishMsg(m); err != nil {
		return &sendError{err}
	}
	return nil
}

// await waits for the answer to message i. Why the server finds a batch incomplete is
// in its answer to the message that it refused.
func (a *batchAttempt) await(ctx context.Context, i int, timeout time.Duration) error {
	answer, err := a.b.pub.listen(ctx, a.waiters[i], timeout)
	if err != nil {
		return err
	}
	a.waiters[i].Free()
	a.waiters[i] = nil
	err = a.read(answer, i == len(a.b.msgs)-1)
	if jsapi.Code(err) != jsapi.CodeBatchIncomplete {
		return err
	}
	for j, w := range a.waiters {
		if w == nil {
			continue
		}
		early, ok := a.b.pub.API.Mux.Abandon(w, a.tokens[j])
		a.waiters[j] = nil
		if !ok {
			continue
		}
		if reason := a.read(early, false); reason != nil && jsapi.Code(reason) != jsapi.CodeBatchIncomplete {
			return fmt.Errorf("msgs[%d] (%q): %w", j, a.b.msgs[j].Subject, reason)
		}
	}
	return err
}

// read returns the error in an answer, and keeps the ack of a commit. The server accepts
// a message that is not the last one with an empty answer.
func (a *batchAttempt) read(answer respmux.Answer, commit bool) error {
	switch {
	case answer.Err != nil:
		return answer.Err
	case !commit && len(answer.Msg.Data) == 0 && !respmux.NoResponders(answer.Msg):
		return nil
	}
	ack, err := respmux.ParseAck(answer.Msg)
	if commit {
		a.b.ack = ack
	}
	return err
}

// abandon stops waiting for answers.
func (a *batchAttempt) abandon() {
	for i, w := range a.waiters {
		if w != nil {
			a.b.pub.API.Mux.Abandon(w, a.tokens[i])
		}
	}
}

// abort frees the place that an uncommitted attempt would take for ten seconds at the
// server. An unknown kind of commit, with a sequence beyond the batch, ends the attempt.
func (b *batch) abort(id string) {
	m := nats.NewMsg(b.msgs[0].Subject)
	m.Header = nats.Header{
		headerBatchID: {id}, headerBatchSequence: {strconv.Itoa(len(b.msgs) + 2)}, headerBatchCommit: {"none"},
	}
	_ = b.pub.API.NC.PublishMsg(m) // without a connection the server finds out by itself
}

// listen waits for an answer until the server has been silent for timeout. The time that
// a slow network needs to bring the server what was sent does not count: whatever is
// sent again in that time waits behind it. Halfway listen therefore asks the server
// whether it has read everything.
func (pub *Publisher) listen(ctx context.Context, w *respmux.Waiter, timeout time.Duration) (
	answer respmux.Answer, err error,
) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := GetTimer(timeout / 2)
	defer PutTimer(timer)
	var isRead chan struct{} // closed once the server has read it, or the connection is lost
	asked := false
	for {
		select {
		case answer = <-w.Answer:
			return answer, nil
		case <-ctx.Done():
			return answer, ctx.Err()
		case <-isRead:
			isRead = nil
			timer.Reset(timeout / 2)
		case <-timer.C:
			if asked {
				return answer, errSilent
			}
			asked, isRead = true, make(chan struct{})
			go func(isRead chan struct{}) { // ends with ctx, unless a write blocks nats.go
				defer close(isRead)
				_ = pub.API.NC.FlushWithContext(ctx)
			}(isRead)
		}
	}
}

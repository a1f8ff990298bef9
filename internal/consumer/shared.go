package consumer

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/mutant"
	"github.com/natty-go/natty/internal/pull"
)

// shared is the mode of consumers whose instances share the work.
type shared struct {
	*supervision
	hoarding bool          // see hoards
	brief    time.Duration // how long the last brief request waits
}

// start subscribes and starts the workers.
func (m *shared) start() (err error) {
	c := m.c
	wish := pull.Request{
		MaxBytes: pullBytes, Expires: max(c.pace.expiry, 2*c.cfg.Heartbeat), Heartbeat: c.cfg.Heartbeat,
	}
	onMsg := c.receive
	if c.cfg.OrderBy != nil {
		onMsg = c.intake.add
	}
	if c.puller, err = c.newPuller(wish, onMsg, c.wakeIfRoom); err != nil {
		return err
	}
	c.queue.Limit(c.most(), pullBytes+c.byteBudget(), c.cfg.Concurrency)
	work := c.work
	if c.Batch != nil {
		work = c.workBatches
	}
	for range c.cfg.Concurrency {
		go callback.Loop(work)
	}
	return nil
}

// receive takes a message from the puller.
func (c *Consumer) receive(msg *nats.Msg) {
	d, consumerSeq, _ := dispatch.ParseReply(msg.Reply)
	c.noticeSequence(consumerSeq)
	if d.Attempt > 1 {
		c.removals.redelivered(d.Sequence)
		c.cameAgain(d)
	}
	m := c.newMessage(c.handlerCtx, msg, d)
	c.lastMessage.Store(c.puller.Heard.Load())
	if m.Others {
		c.send(msg.Reply, ack)
		return
	}
	if c.isForeign(msg.Subject) {
		c.returnForeign(msg, d)
		return
	}
	m.Epoch = c.epoch.Load()
	m.Delivery.Last = c.isLastOf(m)
	m.Quarantined, m.Doubtful = c.mayBePoison(m), c.cfg.MaxDeliver > 0 && d.Attempt > c.cfg.MaxDeliver
	if c.cfg.OrderBy == nil {
		c.push(m)
	} else {
		c.pushByKey(m)
	}
}

func (c *Consumer) push(m *dispatch.Message) {
	if c.queue.Push(m) == dispatch.Refused {
		c.returnNow(m)
	}
}

// work handles the next message. It returns false when there are no more.
func (c *Consumer) work() (more bool) {
	m, ok := c.queue.Next()
	if ok {
		c.handle(m)
	}
	return ok && !mutant.Stalls
}

func (m *shared) step(ctx context.Context, up bool) error {
	if m.wantsLook(up) {
		m.look(ctx, nil)
	}
	if !up || !m.mayPull() || !m.c.puller.Idle() {
		return nil
	}
	n := m.c.room()
	m.c.queue.ExpectMore(n > 0)
	switch {
	case m.c.cfg.OrderBy == nil:
		m.pull(n)
	case m.c.quiet():
		// With nothing to return, the consumer can stop without waiting for the end of
		// this request. The first message ends it.
		m.pull(min(n, 1))
	default:
		m.pullBriefly(n, m.briefly()) // see awaitPullEnd
	}
	return nil
}

// quiet reports that nothing is held, and the last request brought nothing.
func (c *Consumer) quiet() bool {
	held, _, _ := c.queue.Load()
	return held == 0 && c.broughtNothing()
}

// broughtNothing reports that no message has come since the last request.
func (c *Consumer) broughtNothing() bool { return c.lastMessage.Load() < c.puller.Sent.UnixNano() }

// briefly returns how long the next brief request is to wait. While handlers run, no
// message waits for one, and none comes, each request waits for longer than the last.
func (m *shared) briefly() time.Duration {
	held, _, _ := m.c.queue.Load()
	if m.brief = min(2*m.brief, pull.MaxBrief); m.brief == 0 || held > m.c.queue.Running() || !m.c.broughtNothing() {
		m.brief = pull.Brief
	}
	return m.brief
}

// onConnection reacts to a loss or a new connection. Messages that were on their way
// with the old one come after AckWait, behind those that follow them.
func (m *shared) onConnection(ctx context.Context, up bool) error {
	m.supervision.onConnection(up)
	if !up {
		return nil
	}
	m.c.reportProgress()
	m.c.sendUnsent()
	m.askAnew()
	m.suspect(ctx)
	return nil
}

// askAnew forgets the request that may still wait at the server.
func (m *shared) askAnew() {
	if m.c.puller.Renew() != nil {
		m.pause() // the connection has just been lost
	}
}

func (m *shared) onPullEnd(ctx context.Context) {
	end := m.c.puller.TakeEnd()
	if end.Refusal != nil {
		m.onRefusedPull(end.Refusal)
	} else if lossy := m.onEnd(ctx, end); lossy && m.c.cfg.OrderBy != nil {
		m.askAnew() // whoever ended the request, no other server may still have it
		m.suspect(ctx)
	}
}

func (m *shared) onTick(ctx context.Context) error {
	m.c.reportProgress()
	m.c.sendUnsent()
	now, why := m.due()
	switch {
	case why != nil:
		m.askAnew()
		m.investigate(ctx, troubleAway, why)
		m.suspect(ctx)
	case now, m.hoards():
		m.look(ctx, nil)
	}
	return nil
}

func (m *shared) onFound(ctx context.Context, f finding) error {
	err := m.supervision.onFound(ctx, f)
	if err == nil && f.err == nil && ctx.Err() == nil {
		m.share(f.durable)
	}
	return err
}

func (m *shared) role() State { return stateRunning }

func (m *shared) load() (held, handling int) {
	held, _, _ = m.c.queue.Load()
	return held, m.c.queue.Running()
}

func (m *shared) oldest() time.Time { return m.c.queue.Oldest() }

// byteBudget is the size of a request in bytes, large enough for any one message.
func (c *Consumer) byteBudget() int {
	const overhead = 64 << 10 // subjects
	return max(pullBytes, int(c.api.NC.MaxPayload())+overhead)
}

package consumer

import (
	"time"

	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
)

// Limits of what is held ahead of the handlers. None of them keeps a free handler idle.
const (
	// prefetchTime is how long the handlers take for the messages that wait for them.
	// So they never wait for the network, and an idle instance still finds messages.
	prefetchTime = time.Second
	maxPrefetch  = 2000
	// pullBytes bounds one request. None is sent while as much waits, unless a handler
	// is free: 16 MiB in all, beside the messages that handlers have.
	pullBytes = 8 << 20
	// hoardTime is how long the handlers may take for what waits before an idle instance
	// gets it.
	hoardTime = 4 * prefetchTime
)

// wakeIfRoom wakes the supervision if it should ask for more messages. A batch must also
// know when no more are asked for.
func (c *Consumer) wakeIfRoom() {
	if c.puller.Idle() && (c.Batch != nil || c.room() > 0) {
		c.wake()
	}
}

// room returns how many messages to ask for now; zero if no request is worth it.
func (c *Consumer) room() int {
	f, most := c.queue.Flow(), c.most()
	if n, _ := c.intake.load(); n > 0 {
		f.Held, f.Ready = f.Held+n, f.Ready+n // as far as anybody knows yet
	}
	capacity := c.capacity(f)
	if f.RestingBytes >= pullBytes {
		return 0
	}
	// What rests takes no handler's place. A free one gets a message whatever waits, up
	// to the most that may be held.
	if free := min(c.cfg.Concurrency, most) - f.Running - f.Ready; free > 0 {
		return max(min(max(capacity-f.Held, free), most-f.Held), 0)
	}
	if c.Batch != nil && f.Ready == 0 {
		return max(capacity-f.Held, 0) // a worker may be free: batches differ in size
	}
	return roomBeside(f.Held, f.AheadBytes, capacity)
}

// roomBeside is how many messages to ask for while n are held, of which some bytes wait.
func roomBeside(n, bytes, capacity int) int {
	room := capacity - n
	// No request for every message that leaves, unless there is room for one alone.
	if bytes >= pullBytes || room < capacity/4 && n > 0 {
		return 0
	}
	return max(room, 0)
}

// capacity is how many messages to hold at the pace of the handlers.
func (c *Consumer) capacity(f dispatch.Flow) int {
	workers := c.workers()
	capacity := workers // until the first handler shows how long it takes
	if pace := c.perMessage(f); pace > 0 {
		perWorker := max(int(prefetchTime/pace), 1)
		if most := maxPrefetch; perWorker < most {
			capacity = max(workers, min(most, workers*perWorker))
		} else {
			capacity = max(workers, most)
		}
	}
	return min(capacity, c.most())
}

// workers is how many messages the handlers take at once. One batch fills up behind each
// that is being handled.
func (c *Consumer) workers() int {
	if c.Batch != nil {
		return c.cfg.Concurrency * 2 * min(c.Batch.Size, durable.MaxAckPending)
	}
	return c.cfg.Concurrency
}

// most is the most messages to hold, whatever the pace.
func (c *Consumer) most() int {
	most := max(maxPrefetch, c.workers())
	if m := c.cfg.MaxPollRecords; m > 0 {
		most = min(most, m)
	}
	if l := int(c.ackLimit.Load()); l > 0 {
		most = min(most, l) // the server delivers no more
	}
	return most
}

// perMessage is how long a handler takes for a message, 0 before that is known. When all
// handlers are busy, the time since the last of them began counts too: handlers that
// turn slow are noticed before they end.
func (c *Consumer) perMessage(f dispatch.Flow) time.Duration {
	if f.PerMsg == 0 || f.Running < c.cfg.Concurrency {
		return f.PerMsg
	}
	return max(f.PerMsg, f.SinceBegun/time.Duration(max(f.Running/c.cfg.Concurrency, 1)))
}

// hoards reports that the handlers have turned so slow that they need much longer than
// planned for what waits here. It does so once; then every look at the durable shares.
func (m *shared) hoards() (began bool) {
	before := m.hoarding
	m.hoarding = m.c.excess() > 0
	return m.hoarding && !before && m.checked == nil
}

// excess is how many of the waiting messages are too many for the pace of the handlers.
func (c *Consumer) excess() int {
	f := c.queue.Flow()
	keep := max(c.capacity(f)-f.Running, 0)
	if c.cfg.OrderBy != nil || f.Ready <= int(hoardTime/prefetchTime)*max(keep, c.workers()) {
		return 0
	}
	return f.Ready - keep
}

// share returns messages that would wait here for long, if an instance waits for some.
func (m *shared) share(d durable.Durable) {
	c := m.c
	others := d.Requests
	if !c.puller.Idle() {
		others--
	}
	n := c.excess()
	if n == 0 || d.Waiting > 0 || others <= 0 {
		return
	}
	f := c.queue.Flow()
	back := c.queue.Excess(f.Ready - n)
	for _, b := range back {
		c.returnNow(b)
	}
	if len(back) > 0 {
		c.client.Log.Info("natty: returned messages that an idle instance can handle sooner",
			"stream", d.Stream, "durable", d.Name, "messages", len(back))
	}
}

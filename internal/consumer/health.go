package consumer

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/natty-go/natty/internal/dispatch"
)

// State is what a consumer is doing; see natty.ConsumerState.
type State string

const (
	stateStarting     State = "starting"
	stateRunning      State = "running"
	stateStandby      State = "standby"
	stateDeposed      State = "deposed"
	stateUnsupported  State = "unsupported"
	stateDisconnected State = "disconnected"
	stateStopping     State = "stopping"
	stateStopped      State = "stopped"
)

// Snapshot is how a consumer is; see natty.ConsumerHealth.
type Snapshot struct {
	Stream, Durable           string
	State                     State
	Since                     time.Time
	LastMessage               time.Time
	AckFloor, Pending         uint64
	AckPending, MaxAckPending int
	Held, Handling            int
	BlockedBy                 string
	Blocked                   int
	Removed                   uint64
	Replicas                  int
	Warning, LastError        string
	LastErrorAt               time.Time
	OldestHandling            time.Time
}

// Snapshot returns how the consumer is now.
func (c *Consumer) Snapshot() Snapshot {
	held, handling := c.mode.load()
	key, blocked := c.queue.Blocking()
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.health
	h.Held, h.Handling, h.BlockedBy, h.Blocked = held, handling, key, blocked
	h.OldestHandling = c.mode.oldest()
	warnings := c.warnings
	if why := c.pullTrouble.Load(); why != nil {
		warnings[warnRefused] = *why
	}
	warnings[warnAcks] = c.ackTrouble.warning()
	h.Warning = warnings.text()
	if ns := c.lastMessage.Load(); ns != 0 {
		h.LastMessage = time.Unix(0, ns)
	}
	return h
}

func (c *Consumer) setState(s State) { c.enterState(s, nil) }

// enterState notes what the consumer is doing now, and the error that is the reason.
func (c *Consumer) enterState(s State, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.health.State != s {
		c.health.State, c.health.Since = s, time.Now()
		c.observeLocked(why)
	}
	if s == stateStopped {
		c.ended = true
		c.warnings = warnings{}
		c.health.LastError, c.health.LastErrorAt = "", time.Time{}
		if why != nil {
			c.health.LastError, c.health.LastErrorAt = why.Error(), time.Now()
		}
	}
}

// observeLocked sends an event to the Observer. c.mu must be held, so that events come
// in the order of the changes. None comes after stateStopped.
func (c *Consumer) observeLocked(err error) {
	if c.cfg.Observe != nil && !c.ended {
		c.cfg.Observe(c.health.Stream, c.health.Durable, c.health.State, err)
	}
}

// report gives an error to OnError, the Observer, the log and Health. A handler that
// outlives its consumer can still fail: that is only logged.
func (c *Consumer) report(err error) { c.reportAs(slog.LevelWarn, "natty: consumer", err) }

// reportAs is report with the level and the text of the log's entry, and more of its
// keys.
func (c *Consumer) reportAs(level slog.Level, text string, err error, keys ...slog.Attr) {
	c.mu.Lock()
	ended, stream := c.ended, c.health.Stream
	if !ended {
		c.health.LastError, c.health.LastErrorAt = err.Error(), time.Now()
		c.observeLocked(err)
	}
	c.mu.Unlock()
	keys = append(c.logKeys(stream), append(keys, slog.Any("error", err))...)
	c.client.Log.LogAttrs(context.Background(), level, text, keys...) //nolint:sloglint // the callers' are constants
	if !ended {
		c.reports.Add(err)
	}
}

// reportFailure reports a message that its handler did not accept. A retry is routine.
// What is given up needs somebody, and so does what should be given up and cannot.
func (c *Consumer) reportFailure(
	subject string, d dispatch.Delivery, stack []byte, final bool, outcome dispatch.Outcome, err error,
) {
	level, text := slog.LevelInfo, "natty: a handler failed, its message runs again"
	switch {
	case final:
		level, text = slog.LevelError, "natty: a message failed for good"
	case errors.Is(err, errKept):
		level, text = slog.LevelWarn, "natty: a message cannot be dead-lettered yet"
	}
	keys := []slog.Attr{
		slog.String("subject", subject), slog.Uint64("sequence", d.Sequence), slog.Int("attempt", d.Attempt),
	}
	if final {
		letter := "none" // no DeadLetter, or the handler has settled the message itself
		if outcome == dispatch.DeadLettered {
			letter = c.cfg.DeadLetter
		}
		keys = append(keys, slog.String("dead_letter", letter))
	}
	if stack != nil {
		keys = append(keys, slog.String("stack", string(stack)))
	}
	c.reportAs(level, text, c.client.Failed(subject, d, stack, final, err), keys...)
}

// logKeys says which consumer it is.
func (c *Consumer) logKeys(stream string) []slog.Attr {
	keys := []slog.Attr{slog.String("durable", c.cfg.Durable)}
	if stream != "" { // it may have to be looked up first
		keys = append(keys, slog.String("stream", stream))
	}
	return keys
}

// log logs an event in the life of the consumer.
func (c *Consumer) log(text string, keys ...slog.Attr) {
	c.mu.Lock()
	stream := c.health.Stream
	c.mu.Unlock()
	keys = append(c.logKeys(stream), keys...)
	c.client.Log.LogAttrs(context.Background(), slog.LevelInfo, text, keys...) //nolint:sloglint // as above
}

// logDrain logs how many handlers run when the consumer begins to stop, and how many
// messages it has handed back to the server.
func (c *Consumer) logDrain(running, handedBack int) {
	c.log("natty: consumer drains", slog.Int("running", running), slog.Int("returned", handedBack))
}

// logEnd logs how the consumer ended.
func (c *Consumer) logEnd(err error) {
	if err == nil {
		c.log("natty: consumer stopped")
		return
	}
	c.mu.Lock()
	keys := append(c.logKeys(c.health.Stream), slog.Any("error", err))
	c.mu.Unlock()
	c.client.Log.LogAttrs(context.Background(), slog.LevelError, "natty: consumer ended", keys...)
}

// noteError shows an error in Health only: what it is about was reported before.
func (c *Consumer) noteError(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.health.LastError, c.health.LastErrorAt = err.Error(), time.Now()
}

// clearError takes the last error out of Health: it is over.
func (c *Consumer) clearError() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.health.LastError, c.health.LastErrorAt = "", time.Time{}
}

// The sources of warnings in Health.
const (
	warnDurable = iota // what the durable itself says
	warnGone           // the durable or its stream is gone
	warnLost           // messages may be lost on their way
	warnPulls          // nobody pulls
	warnRefused        // the server refuses requests or their answers
	warnAcks           // acknowledgements have no effect
	warnKinds
)

// warnings are what keeps messages from being delivered now, by source.
type warnings [warnKinds]string

func (w *warnings) text() string {
	var all []string
	for _, one := range w {
		if one != "" {
			all = append(all, one)
		}
	}
	return strings.Join(all, "; ")
}

// warn sets the warning of a source, or takes it back if text is empty. It reports
// whether the source begins to warn.
func (c *Consumer) warn(source int, text string) (news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	news = text != "" && c.warnings[source] == ""
	c.warnings[source] = text
	return news
}

package account

import (
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// quiet is how long a consumer may not move before that is odd.
const quiet = time.Minute

// stall says why a consumer's messages are not handled, or "".
func stall(now time.Time, c *Consumer) string {
	info, cfg := c.info, &c.info.Config
	full := cfg.MaxAckPending > 0 && info.NumAckPending >= cfg.MaxAckPending
	switch {
	case info.Paused:
		return fmt.Sprintf("paused for another %v", info.PauseRemaining.Round(time.Second))
	case full:
		return fmt.Sprintf("in flight are %d, which is max_ack_pending; nothing more is delivered", info.NumAckPending)
	case info.NumPending > 0 && info.NumAckPending == 0 && info.NumWaiting == 0 && !info.PushBound:
		return "messages wait, and nobody asks for them"
	case silent(now, info):
		return fmt.Sprintf("in flight are %d, and nothing was delivered or settled for %v",
			info.NumAckPending, now.Sub(lastActive(info)).Round(time.Second))
	case hangs(now, c):
		return fmt.Sprintf("in flight are %d, and none was settled for %v, though more are delivered",
			info.NumAckPending, now.Sub(lastSettled(c)).Round(time.Second))
	case info.NumRedelivered > 0:
		return fmt.Sprintf("of %d in flight, %d were delivered more than once", info.NumAckPending, info.NumRedelivered)
	}
	return ""
}

func lastActive(info *jetstream.ConsumerInfo) time.Time {
	last := info.Created
	for _, t := range []*time.Time{info.Delivered.Last, info.AckFloor.Last} {
		if t != nil && t.After(last) {
			last = *t
		}
	}
	return last
}

// hangs reports whether messages are delivered, and their handlers do not end. Those that
// fail end, and are delivered again.
func hangs(now time.Time, c *Consumer) bool {
	return c.info.NumAckPending > 0 && !failing(c.info) && c.Oldest != nil &&
		now.Sub(lastSettled(c)) > patience(c.info)
}

// lastSettled is when a message was settled, or when the oldest was stored that could
// have been since.
func lastSettled(c *Consumer) time.Time {
	last := c.info.Created
	if t := c.info.AckFloor.Last; t != nil && t.After(last) {
		last = *t
	}
	if c.Oldest != nil && c.Oldest.After(last) {
		last = *c.Oldest
	}
	return last
}

// failing reports whether most of what is in flight is delivered again.
func failing(info *jetstream.ConsumerInfo) bool {
	return info.NumRedelivered > 0 && info.NumRedelivered >= max(info.NumAckPending/2, 1)
}

// silent reports whether messages are in flight, and nothing happens to them.
func silent(now time.Time, info *jetstream.ConsumerInfo) bool {
	return info.NumAckPending > 0 && now.Sub(lastActive(info)) > patience(info)
}

// patience is how long messages in flight may show no sign of life.
func patience(info *jetstream.ConsumerInfo) time.Duration { return max(quiet, 5*info.Config.AckWait) }

// Finding is something that is wrong, or soon may be.
type Finding struct {
	// Level is "error" when messages are not handled or can be lost now, and "warning"
	// when that may come.
	Level string `json:"level"`
	// About names the stream, consumer or subject.
	About string `json:"about"`
	// Problem says what is wrong, and Remedy what to do.
	Problem string `json:"problem"`
	Remedy  string `json:"remedy"`
}

const (
	levelError   = "error"
	levelWarning = "warning"
)

// findings collects them.
type findings []Finding

func (f *findings) add(level, about, problem, remedy string, args ...any) {
	*f = append(*f, Finding{level, about, problem, fmt.Sprintf(remedy, args...)})
}

func nameOf(stream, consumer string) string { return "consumer " + consumer + " of stream " + stream }

// stalled reports consumers whose messages are not handled.
func (f *findings) stalled(now time.Time, c *Consumer) {
	info, cfg := c.info, &c.info.Config
	about := nameOf(c.Stream, c.Name)
	edit := "nats consumer edit " + c.Stream + " " + c.Name
	switch {
	case info.Paused:
		f.add(levelWarning, about, c.Warning, "resume it with: nats consumer resume %s %s", c.Stream, c.Name)
	case cfg.MaxAckPending > 0 && info.NumAckPending >= cfg.MaxAckPending:
		f.add(levelError, about, c.Warning,
			"find out why handlers do not settle (Health shows the oldest), or raise it with: %s --max-pending N", edit)
	case info.NumPending > 0 && info.NumAckPending == 0 && info.NumWaiting == 0 && !info.PushBound:
		f.add(levelError, about, fmt.Sprintf("%s (%d pending)", c.Warning, info.NumPending),
			"start an instance of the service; if nothing uses the consumer any more: nats consumer rm %s %s", c.Stream, c.Name)
	case silent(now, info) || hangs(now, c):
		remedy := "see what the handlers wait for (natty's Health has oldest_handling); restart the instance that hangs"
		if info.NumWaiting == 0 && info.NumPending == 0 && !info.PushBound { // an instance with room would ask
			remedy = "if no instance of the service runs, start one; else " + remedy
		}
		f.add(levelError, about, c.Warning, "%s", remedy)
	case failing(info):
		f.add(levelWarning, about, c.Warning,
			"read the service's log for the error that its handler returns, or for instances that ask for different subjects; "+
				"set MaxDeliver and DeadLetter so that such messages end")
	}
}

// limits reports limits of a consumer with which messages are lost silently.
func (f *findings) limits(c *Consumer, service bool) {
	cfg := &c.info.Config
	about := nameOf(c.Stream, c.Name)
	if cfg.MaxDeliver > 0 && !service {
		f.add(levelWarning, about,
			fmt.Sprintf("max_deliver is %d: after that many deliveries the server drops a message silently", cfg.MaxDeliver),
			"let the service decide: set MaxDeliver and DeadLetter in natty, which takes the server's limit off; or: nats consumer edit %s %s --max-deliver=-1",
			c.Stream, c.Name)
	}
	if cfg.InactiveThreshold > 0 && c.Durable {
		f.add(levelWarning, about,
			fmt.Sprintf("inactive_threshold is %v: the server deletes the durable, and its position, when nobody uses it for that long", cfg.InactiveThreshold),
			"set it to 0 for a durable that must survive an outage: nats consumer edit %s %s --inactive-threshold=0s", c.Stream, c.Name)
	}
	if cfg.AckPolicy == jetstream.AckNonePolicy && c.Durable {
		f.add(levelWarning, about, "its ack policy is none: a message is gone once it is delivered, also when its handler fails",
			"make a durable with the ack policy explicit, and delete this one: nats consumer rm %s %s", c.Stream, c.Name)
	}
	if cfg.MemoryStorage && c.Durable {
		f.add(levelWarning, about, "its position is kept in memory, and lost when the server restarts",
			"make the durable anew with file storage: nats consumer rm %s %s", c.Stream, c.Name)
	}
}

// stream reports limits of a stream with which messages are lost.
func (f *findings) stream(s *Snapshot, st *Stream, letters bool) {
	cfg, state := &st.info.Config, &st.info.State
	about := "stream " + st.Name
	if s.Server.Cluster != "" && st.Replicas == 1 {
		f.add(levelWarning, about, "has one replica in cluster "+s.Server.Cluster+": while its server is down it cannot be used",
			"give it three: nats stream edit %s --replicas=3", st.Name)
	}
	if cl := st.info.Cluster; cl != nil {
		for _, r := range cl.Replicas {
			if !r.Current || r.Offline {
				f.add(levelError, about, "its replica on "+r.Name+" is behind or offline", "look after server %s: nats server report jetstream", r.Name)
			}
		}
	}
	if cfg.NoAck {
		f.add(levelWarning, about, "acknowledges no publish (no_ack), so that nobody knows whether a message is stored",
			"nats stream edit %s --ack", st.Name)
	}
	f.full(about, st.Name, "max_msgs", cfg.Discard, float64(state.Msgs), float64(cfg.MaxMsgs))
	f.full(about, st.Name, "max_bytes", cfg.Discard, float64(state.Bytes), float64(cfg.MaxBytes))
	if left := cfg.MaxAge - s.Time.Sub(state.FirstTime); letters && cfg.MaxAge > 0 && left < cfg.MaxAge/2 {
		f.add(levelWarning, about, fmt.Sprintf("max_age is %v, and removes the oldest dead letter in %v", cfg.MaxAge, left.Round(time.Second)),
			"redrive or purge them in time, or raise it: nats stream edit %s --max-age=…", st.Name)
	}
}

// full reports a limit of which nine tenths are used.
func (f *findings) full(about, stream, limit string, discard jetstream.DiscardPolicy, have, most float64) {
	if most <= 0 || have < 0.9*most {
		return
	}
	level, what := levelError, "then publishing fails"
	if discard == jetstream.DiscardOld {
		level, what = levelWarning, "the oldest messages are removed, handled or not"
	}
	f.add(level, about, fmt.Sprintf("%.0f%% of %s are used; %s", 100*have/most, limit, what),
		"raise the limit, or find out why messages stay: nats stream info %s", stream)
}

package natty

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/schedule"
)

// Publish stores data in the stream that holds subject. See PublishMsg.
func (c *Client) Publish(
	ctx context.Context, subject string, data []byte, opts ...jetstream.PublishOpt,
) error {
	return c.pub.Publish(ctx, subject, data, opts...)
}

// PublishMsg stores msg in the stream that holds its subject. A nil error means that the
// server acknowledged it. msg and its headers are not written to; its Reply is not sent.
// Nor are Nats-Batch-Id, -Sequence and -Commit, Nats-Scheduler and Nats-Schedule-Next: a
// handler that passes on the headers of its message has them from a batch or a schedule.
// It passes on the message's id, too, which makes a duplicate of a message for the same
// stream. The Nats-Rollup of a message with Nats-Marker-Reason is not sent either.
//
// The message gets a Nats-Msg-Id unless the caller set one (in the headers, or with
// jetstream.WithMsgID). If the outcome of an attempt is unknown, because the connection
// was lost or no answer came, PublishMsg sends the message again with the same id until
// ctx ends (Config.PublishTimeout when ctx has no deadline), and the server stores it
// once. It does not send again beyond the stream's duplicate window, which it asks the
// server for: without permission for $JS.API.STREAM.NAMES and $JS.API.STREAM.INFO.* it
// does not send again at all. PubAck.Duplicate says that the stream already had a
// message with the caller's id. When this call had to send more than once, that message
// may be its own.
//
// Every error is a *PublishError. It matches ErrOutcomeUnknown if the message may be
// stored all the same. Final answers are returned at once: ErrNoStream, ErrTooLarge,
// ErrStreamFull, ErrClosed, nats.ErrPermissionViolation, a *ConfigError for a subject
// that cannot be published to or a stream that does not acknowledge, and the server's
// error for an expectation that does not hold (jetstream.WithExpectLastSequence and the
// like). jetstream.WithRetryAttempts and WithRetryWait have no effect.
func (c *Client) PublishMsg(
	ctx context.Context, msg *nats.Msg, opts ...jetstream.PublishOpt,
) (*jetstream.PubAck, error) {
	if msg == nil {
		return nil, &PublishError{Err: invalid("msg", "", "is nil; give a message", nil)}
	}
	return c.pub.PublishMsg(ctx, publish.Clone(msg), opts)
}

// PublishBatch stores all of msgs or none of them, in their order and with nothing in
// between. A nil error means that the server has stored all. An empty batch does nothing.
//
// The messages may have different subjects of one stream, which needs AllowAtomicPublish;
// 1,000 are the most. PublishBatch does not write to the messages or their headers, and
// does not send their Reply. Each gets a Nats-Msg-Id unless it has one. If an outcome is
// unknown, the batch is sent again with the same ids until ctx ends
// (Config.PublishTimeout when ctx has no deadline), but not beyond the stream's duplicate
// window: it is stored once. It needs the permissions that PublishMsg needs to retry, and
// for batches with ids of the caller $JS.API.STREAM.MSG.GET.*.
//
// Every error is a *PublishError with the subject and the id of the message that is to
// blame, or of the first one. If it does not match ErrOutcomeUnknown, nothing is
// stored. To be able to repeat a batch whose outcome is unknown, give its messages ids
// of your own: an id that the stream has already fails the whole batch. Beside the
// errors of PublishMsg, a *ConfigError names what is wrong with the batch or its stream
// before anything is sent, and ErrUnsupported a server before version 2.12.
func (c *Client) PublishBatch(ctx context.Context, msgs []*nats.Msg) error {
	return c.pub.PublishBatch(ctx, msgs)
}

// WriterConfig is how a Writer works. The zero value is a good one.
type WriterConfig struct {
	// MaxPending is the window: how many messages are on their way at once. Default
	// 4096; at most 1<<24.
	MaxPending int
	// MaxPendingBytes is the window in bytes (data, headers and subject). Default 64 MiB;
	// at most 1 TiB. Write refuses a message that is larger by itself.
	MaxPendingBytes int
	// Timeout is how long the Writer tries to store a message, from when it first sent
	// it. Default one minute, enough to detect and replace a frozen connection, to
	// elect a leader, or to restart a server.
	Timeout time.Duration
	// AtLeastOnce sends no message ids, which is faster. A message may then be stored
	// twice when the connection is lost, or when no answer came for some seconds.
	AtLeastOnce bool
	// OnError is called once for each message that failed, with a *PublishError. The
	// message is a copy that OnError may keep, with the message id that it was sent
	// with: a Write of it is safe within the stream's duplicate window. Calls never
	// overlap; a panic is logged. A failed message keeps its place in the window until
	// OnError has returned. A slow or blocked OnError therefore makes Write wait, and
	// nothing else: within OnError do not Write without a deadline, and do not Close.
	OnError func(*nats.Msg, error)
}

const (
	defaultMaxPending      = 4096
	defaultMaxPendingBytes = 64 << 20
	defaultWriterTimeout   = time.Minute
	// Larger windows count as these. Nobody has so much memory, and sums of them fit.
	mostPending      = 1 << 24
	mostPendingBytes = 1 << 40
)

// Writer publishes many messages without waiting for each. Its methods may be called
// from many goroutines. Make one with NewWriter and Close it.
//
// Messages are stored in the order of their Writes while nothing fails. One that has to
// be sent again (its connection was lost, its stream has no leader) may be stored
// behind others that were written up to a window later.
type Writer struct{ w *publish.Writer }

// NewWriter returns a Writer. The Client's Close closes it.
func (c *Client) NewWriter(cfg WriterConfig) (*Writer, error) {
	for field, n := range map[string]int{"MaxPending": cfg.MaxPending, "MaxPendingBytes": cfg.MaxPendingBytes} {
		if n < 0 {
			return nil, invalid(field, strconv.Itoa(n), "is negative; give a limit, or 0 for the default", nil)
		}
	}
	if cfg.Timeout < 0 {
		return nil, invalid("Timeout", cfg.Timeout.String(),
			"is negative; give a duration, or 0 for the default", nil)
	}
	cfg.MaxPending = min(cmp.Or(cfg.MaxPending, defaultMaxPending), mostPending)
	cfg.MaxPendingBytes = min(cmp.Or(cfg.MaxPendingBytes, defaultMaxPendingBytes), mostPendingBytes)
	cfg.Timeout = min(cmp.Or(cfg.Timeout, defaultWriterTimeout), longest)
	w := &Writer{}
	w.w = c.pub.NewWriter(publish.WriterConfig(cfg), func() { c.writers.leave(w) })
	if c.link.IsGone() {
		return w, fmt.Errorf("natty: %w", ErrClosed)
	}
	return w, c.writers.enter(w, w.w.Open)
}

// Write sends msg and returns without waiting for the acknowledgement. Flush and Close
// say whether messages are stored, and OnError reports those that are not. While the
// window is full, or there is no connection, Write waits until ctx ends. It does not
// write to msg or its headers, and the caller may use msg, its headers and its Data
// again when Write has returned. Its Reply is not sent.
//
// The Writer resolves unknown outcomes as PublishMsg does, with the message id, within
// WriterConfig.Timeout. It waits for room in a full stream for as long. Errors that
// PublishMsg returns at once are reported by OnError and Flush.
//
// An error of Write is a *PublishError and means that msg was not sent: ctx's error,
// ErrClosed, ErrTooLarge, or a *ConfigError for no message or a subject that cannot be
// published to. Neither OnError nor Flush reports such a message. ErrTooLarge is about
// the window and the server's limit; only the stream knows its own MaxMsgSize, and
// OnError reports it.
func (w *Writer) Write(ctx context.Context, msg *nats.Msg) error { return w.w.Write(ctx, msg) }

// Flush waits until every message written before has an outcome, whatever others write
// meanwhile. It returns the failures since the last Flush, joined: the first twenty,
// and how many more there were. nil means that all are stored. Of several Flushes at
// once each returns what failed while it waited. OnError may be called a little later.
//
// If ctx ends first, the error says how many messages are still on their way, and the
// failures are left for the next Flush.
func (w *Writer) Flush(ctx context.Context) error { return w.w.Flush(ctx) }

// Close ends the Writer: Write returns ErrClosed from now on, messages on their way get
// their outcome, as in Flush, and Close then waits for OnError. If ctx ends first, every
// message without an outcome fails with ctx's error, and OnError reports it too; it
// matches ErrOutcomeUnknown unless it is known not to be stored. Close returns the
// failures that no Flush has returned. It may be called again, and then returns the same.
func (w *Writer) Close(ctx context.Context) error { return w.w.Close(ctx) }

// WriterHealth is a snapshot of one Writer that is not closed.
type WriterHealth struct {
	// Pending is how many messages are in the window. A message stays in it until it has
	// an outcome, and a failed one until OnError returns.
	Pending int `json:"pending"`
	// PendingBytes is the size of the messages in the window.
	PendingBytes int `json:"pending_bytes"`
	// MaxPending is how many messages fit into the window.
	MaxPending int `json:"max_pending"`
	// MaxPendingBytes is how many bytes fit into the window.
	MaxPendingBytes int `json:"max_pending_bytes"`
	// Failed counts the messages that failed.
	Failed uint64 `json:"failed,omitempty"`
	// LastError says why the last message that failed did.
	LastError string `json:"last_error,omitempty"`
}

func (w *Writer) snapshot() WriterHealth { return WriterHealth(w.w.State()) }

// Schedule is a message that the server publishes later, once or repeatedly. Exactly
// one of At, Every and Cron says when.
type Schedule struct {
	// ID names the schedule within its stream: letters, digits, - and _ are fine, dots,
	// spaces and wildcards are not.
	ID string
	// At is when the message is published, once. A time in the past means at once.
	At time.Time
	// Every is the pause between two messages: whole seconds, at least one, at most ten
	// years. The server counts from full seconds, so that the first may come up to half a
	// second earlier or later.
	Every time.Duration
	// Cron has six fields, of which the first is the second, or is @hourly, @daily,
	// @weekly, @monthly or @yearly. It is read in TimeZone.
	Cron string
	// TimeZone is a name of the IANA database such as "Europe/Berlin". Default UTC. See
	// Schedule about zones that change their clocks.
	TimeZone string
	// TTL removes each published message after this time: whole seconds, at most a
	// hundred years, and a stream with AllowMsgTTL. 0: never.
	TTL time.Duration
	// Msg is the message to publish, on its own subject. Headers that begin with Nats-
	// belong to the server and are not kept; nor is Reply. The published message also
	// has the server's Nats-Scheduler and Nats-Schedule-Next, and no message id.
	Msg *nats.Msg
}

// Schedule lets the server publish s.Msg when s says, in the stream that holds its
// subject. A schedule with the same ID is replaced, whoever made it, so that any number
// of instances may make the same one. One that is there already just as s says stays as
// it is, and Every goes on from its last message. Nothing else has to run: the stream
// keeps the schedule, which survives restarts of clients and servers. The server
// publishes a message not before its time, and up to a quarter of a second after it,
// which is how often the server looks (2.15). If the server was down then, it publishes
// the message once when it is back.
//
// If the old schedule is due at the moment when it is replaced, the server may still
// publish its message. The new schedule takes effect in any case: Schedule then takes a
// second longer to make sure that the server keeps it. If the new message is due within
// that second, it may be published up to two seconds late. Schedule also takes that
// second if it cannot know when the old schedule is due, as for one with Cron that has
// not published a message yet.
//
// The stream needs AllowMsgSchedules, given to EnsureStream, which also gives it the
// subject that natty keeps schedules on. Schedules count as messages of the stream: its
// limits on messages and bytes may remove them. Its MaxAge may not: a stream with MaxAge
// takes only schedules with At that are due within half of it, because a server that
// starts removes older messages (2.15). With AllowMsgTTL and SubjectDeleteMarkerTTL, or
// with AllowMsgTTL and memory storage, it takes all. EnsureStream refuses a MaxAge that
// would remove schedules.
//
// In a TimeZone that changes its clocks the server goes by the clock on the wall (2.15):
//   - A time that the clocks skip is skipped: 02:30 in Europe/Berlin on the last Sunday
//     of March, and @daily on the one day without a midnight in Africa/Cairo,
//     America/Santiago and Asia/Beirut.
//   - A time that the clocks show twice is published twice: 02:30 in Europe/Berlin on the
//     last Sunday of October. Hours given as * or */2 count hours on the wall, too.
//   - Where clocks go forward at midnight, the server may also skip a later hour of that
//     day, and of the first fitting day behind it: noon on Sundays in America/Santiago,
//     noon on 20 September every year. If it would skip all times of the next five years,
//     Schedule refuses the pattern, for which the server would end the schedule silently.
//
// Without TimeZone nothing is skipped or doubled.
//
// A *ConfigError says what cannot work: a setting of s, a message that is too large with
// the headers that the server adds, a stream without schedules, an Interest or NoAck
// stream, one whose subject transform moves schedules, and a WorkQueue stream with a
// consumer that would receive the schedules themselves. A server before version 2.12,
// with Every and Cron before 2.14, gives ErrUnsupported. Other errors are those of
// PublishMsg; after ErrOutcomeUnknown call it again. Without permission to publish to
// $JS.API.STREAM.MSG.GET.<stream> it replaces a schedule without a look at the old one,
// and a schedule that replaces one which is due just then may be lost.
func (c *Client) Schedule(ctx context.Context, s Schedule) error {
	if err := c.schedules.Validate(schedule.Schedule(s)); err != nil {
		return err
	}
	ctx, cancel := jsapi.WithTimeout(ctx, c.cfg.PublishTimeout)
	defer cancel()
	if err := c.link.Wait(ctx, time.Time{}); err != nil {
		return fmt.Errorf("natty: schedule %q: %w", s.ID, err)
	}
	return c.schedules.Put(ctx, schedule.Schedule(s))
}

// Schedules iterates over the schedules that a stream has now, whoever made them, in
// the order in which they were made, and then ends. It reads all from the stream's
// leader before the first one is handed out. A schedule that is there throughout is
// listed once, also if it is replaced meanwhile. One that has ended is not there any
// more. An error ends the iteration.
func (c *Client) Schedules(ctx context.Context, stream string) iter.Seq2[Schedule, error] {
	return func(yield func(Schedule, error) bool) {
		each := func(s schedule.Schedule) bool { return yield(Schedule(s), nil) }
		if err := c.schedules.Each(ctx, stream, each); err != nil {
			yield(Schedule{}, jsapi.About(fmt.Sprintf("schedules of stream %q", stream), err))
		}
	}
}

// Unschedule ends a schedule. Messages that it has published stay. A schedule that is
// not there is no error.
func (c *Client) Unschedule(ctx context.Context, stream, id string) error {
	return c.schedules.Remove(ctx, stream, id)
}

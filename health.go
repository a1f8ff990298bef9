package natty

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/natty-go/natty/internal/consumer"
	"github.com/natty-go/natty/internal/jsapi"
)

// Health is a snapshot of a Client, for a health endpoint. It marshals to JSON, holds
// no secret, and is made without a request to the server.
type Health struct {
	// Connected says whether there is a connection now.
	Connected bool `json:"connected"`
	// Since is from when on Connected is so.
	Since time.Time `json:"since"`
	// Server is the URL last connected to, without credentials.
	Server string `json:"server,omitempty"`
	// Reconnects is how often a lost connection was restored.
	Reconnects int `json:"reconnects"`
	// LastError is the last error of the connection. While there is no connection, it
	// says why.
	LastError string `json:"last_error,omitempty"`
	// Closed says that there will be no connection any more: Close was called, or the
	// connection was lost with Config.DisableReconnect.
	Closed bool `json:"closed,omitempty"`
	// ServerVersion is that of the server last connected to.
	ServerVersion string `json:"server_version,omitempty"`
	// Cluster is the name of that server's cluster; empty without a cluster.
	Cluster string `json:"cluster,omitempty"`
	// Consumers are those that run, and those that ended with an error until their
	// durable is consumed again.
	Consumers []ConsumerHealth `json:"consumers,omitempty"`
	// Elections are the running calls of Lead and AsLeader.
	Elections []ElectionHealth `json:"elections,omitempty"`
	// Writers are those that are not closed, oldest first.
	Writers []WriterHealth `json:"writers,omitempty"`
	// EventsDropped counts the events that were lost because the Observer was too slow.
	EventsDropped uint64 `json:"events_dropped,omitempty"`
}

// ConsumerState is what a consumer is doing.
type ConsumerState string

// The states of a consumer.
const (
	// ConsumerStarting waits for a server, looks up the stream or creates the durable.
	ConsumerStarting ConsumerState = "starting"
	// ConsumerRunning pulls.
	ConsumerRunning ConsumerState = "running"
	// ConsumerStandby is Exclusive and not the active instance: another one is, or none
	// is because there was no message for half a minute. It also waits in this state,
	// with a message at hand, until a former active instance has surely ended.
	ConsumerStandby ConsumerState = "standby"
	// ConsumerDeposed is Exclusive, is no longer the active instance, and waits for its
	// handler, which has not noticed yet that its ctx has ended. Another instance may be
	// active beside it.
	ConsumerDeposed ConsumerState = "deposed"
	// ConsumerUnsupported is Exclusive and stands still, because the server was replaced
	// by one that is too old for it. It goes on when the server is upgraded again.
	ConsumerUnsupported ConsumerState = "unsupported"
	// ConsumerDisconnected waits for the connection.
	ConsumerDisconnected ConsumerState = "disconnected"
	// ConsumerStopping waits for handlers.
	ConsumerStopping ConsumerState = "stopping"
	// ConsumerStopped has ended. No other state follows.
	ConsumerStopped ConsumerState = "stopped"
)

// ConsumerHealth is a snapshot of one consumer. One that ended with an error stays listed
// as ConsumerStopped, with its error, until its durable is consumed again.
type ConsumerHealth struct {
	// Stream is what is consumed.
	Stream string `json:"stream"`
	// Durable is the name of the consumer on the server.
	Durable string `json:"durable"`
	// State is what the consumer is doing.
	State ConsumerState `json:"state"`
	// Since is from when on State is so.
	Since time.Time `json:"since"`
	// LastMessage is when the last message arrived.
	LastMessage time.Time `json:"last_message,omitzero"`
	// AckFloor is the sequence up to which every message is settled. AckFloor, Pending,
	// AckPending and MaxAckPending are the server's view of the whole group, sampled
	// every 10 to 20 seconds while the group works, and every two minutes while nothing
	// is pending or in flight.
	AckFloor uint64 `json:"ack_floor"`
	// Pending is how many messages are not delivered yet.
	Pending uint64 `json:"pending"`
	// AckPending is how many messages are delivered and not settled.
	AckPending int `json:"ack_pending"`
	// MaxAckPending is how large AckPending can be: then the server delivers no more.
	MaxAckPending int `json:"max_ack_pending"`
	// Held is how many messages are buffered here or being handled.
	Held int `json:"held"`
	// Handling is how many messages are being handled here.
	Handling int `json:"handling"`
	// OldestHandling is when the handler was called that has run for longest.
	OldestHandling time.Time `json:"oldest_handling,omitzero"`
	// BlockedBy is the OrderBy key with the most messages waiting behind a failed one.
	BlockedBy string `json:"blocked_by,omitempty"`
	// Blocked is how many messages wait behind the failed one of BlockedBy.
	Blocked int `json:"blocked,omitempty"`
	// Removed counts the messages that the stream removed before they were handled, as
	// far as the consumer noticed.
	Removed uint64 `json:"removed,omitempty"`
	// Replicas is how many copies of the stream the servers keep.
	Replicas int `json:"replicas,omitempty"`
	// Warning says what keeps messages from being delivered, or soon will: AckPending at
	// 80% of MaxAckPending, a durable that somebody has paused, a durable or stream that
	// is gone, an OrderBy consumer that waits for messages in flight, and messages that
	// nobody pulls.
	Warning string `json:"warning,omitempty"`
	// LastError is the last error that was reported. Trouble with the server is taken
	// out when it is over. What ended the consumer stays.
	LastError string `json:"last_error,omitempty"`
	// LastErrorAt is when LastError was reported.
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
}

// ElectionHealth is a snapshot of one running call of Lead or AsLeader.
type ElectionHealth struct {
	// Bucket holds the election.
	Bucket string `json:"bucket"`
	// Key names the election.
	Key string `json:"key"`
	// NodeName is the name of this candidate.
	NodeName string `json:"node_name"`
	// Leading says whether this candidate leads or stands by.
	Leading bool `json:"leading"`
	// Since is from when on Leading is so.
	Since time.Time `json:"since"`
	// Token is the term's while this candidate leads.
	Token uint64 `json:"token,omitempty"`
	// LastError is the last error since it was elected: why it lost the leadership, or
	// what keeps it from being elected again.
	LastError string `json:"last_error,omitempty"`
	// Warning says why a standby cannot hear of the end of the leader's lease: it reads
	// the key twice a second instead.
	Warning string `json:"warning,omitempty"`
}

// Health returns the Client's present state.
func (c *Client) Health() Health {
	conn := c.link.State()
	h := Health{
		Connected:  conn.Up,
		Since:      conn.Since,
		Server:     conn.Server,
		Reconnects: conn.Reconnects,

		Closed: c.link.IsGone(), ServerVersion: conn.Version, Cluster: conn.Cluster,
		EventsDropped: c.events.Count(),
	}
	if conn.LastErr != nil {
		h.LastError = conn.LastErr.Error()
	}
	h.Consumers = c.ended.all()
	ended := len(h.Consumers)
	for _, e := range c.running.all() {
		one := healthOf(e.Snapshot())
		if one.State == ConsumerStopped && slices.Contains(h.Consumers[:ended], one) {
			continue // it is about to leave
		}
		h.Consumers = append(h.Consumers, one)
	}
	sortConsumers(h.Consumers)
	for _, e := range c.elections.all() {
		h.Elections = append(h.Elections, e.snapshot())
	}
	sortElections(h.Elections)
	for _, w := range c.writers.all() {
		h.Writers = append(h.Writers, w.snapshot())
	}
	return h
}

// Live returns nil, or an error that says in words why the process should be restarted:
// there will be no connection any more, or a consumer has ended with an error. A
// connection that is lost is no reason, because the Client reconnects by itself.
func (h Health) Live() error {
	var all []error
	if h.Closed {
		all = append(all, because("the connection is gone for good", h.LastError))
	}
	for _, c := range h.Consumers {
		if c.State == ConsumerStopped && c.LastError != "" {
			all = append(all, because(c.name()+" has ended", c.LastError))
		}
	}
	return errors.Join(all...)
}

// Ready returns nil, or an error that says in words why this instance should get no
// traffic yet, or no longer: there is no connection, or a consumer is not at work. A
// standby is ready. Warnings are no reason; Explain lists them.
func (h Health) Ready() error {
	var all []error
	switch {
	case h.Closed:
		all = append(all, because("the connection is gone for good", h.LastError))
	case !h.Connected:
		all = append(all, because("not connected since "+h.Since.Format(time.RFC3339), h.LastError))
	}
	for _, c := range h.Consumers {
		switch c.State {
		case ConsumerRunning, ConsumerStandby:
		case ConsumerDisconnected:
			if h.Connected {
				all = append(all, because(c.name()+" is "+string(c.State), c.LastError))
			}
		default:
			all = append(all, because(c.name()+" is "+string(c.State), c.LastError))
		}
	}
	return errors.Join(all...)
}

// because is an error with a reason, if there is one.
func because(what, why string) error {
	if why == "" {
		return errors.New("natty: " + what)
	}
	return fmt.Errorf("natty: %s: %s", what, strings.TrimPrefix(why, "natty: "))
}

func (h ConsumerHealth) name() string {
	return fmt.Sprintf("consumer %q on stream %q", h.Durable, cmp.Or(h.Stream, "(not known yet)"))
}

// longHandling is for how long a handler runs before Explain mentions it.
const longHandling = time.Minute

// Explain says in words what is out of the ordinary, one sentence for each: what Live
// and Ready return, warnings, handlers that run for more than a minute, messages that are
// in flight elsewhere, streams with one replica in a cluster, and a server that lacks
// features. It is empty if there is nothing to say. Not all of it is wrong.
func (h Health) Explain() []string {
	var all []string
	add := func(on bool, format string, args ...any) {
		if on {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	for _, err := range []error{h.Live(), h.Ready()} {
		if err == nil {
			continue
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			line = strings.TrimPrefix(line, "natty: ")
			add(!slices.Contains(all, line), "%s", line)
		}
	}
	if h.ServerVersion != "" {
		err := jsapi.RepeatingSchedules.MissingFrom(h.ServerVersion)
		add(err != nil, "the server is %s; exclusive consumers and schedules with Every or Cron need 2.14, "+
			"other schedules and atomic batches 2.12, and keys with a TTL of their own 2.11", h.ServerVersion)
	}
	for _, c := range h.Consumers {
		c.explain(h, add)
	}
	for _, e := range h.Elections {
		name := fmt.Sprintf("election %q in bucket %q", e.Key, e.Bucket)
		add(e.Warning != "", "%s: %s", name, e.Warning)
		add(e.LastError != "", "%s: %s", name, e.LastError)
	}
	for _, w := range h.Writers {
		add(w.Failed > 0, "%d messages of a Writer failed; the last one: %s", w.Failed, w.LastError)
		add(w.Pending >= w.MaxPending || 10*w.PendingBytes >= 9*w.MaxPendingBytes,
			"the window of a Writer is full: %d messages of %d bytes have no answer", w.Pending, w.PendingBytes)
	}
	add(h.EventsDropped > 0, "the Observer is too slow: %d events were dropped", h.EventsDropped)
	return all
}

// explain adds what is out of the ordinary with a consumer.
func (h ConsumerHealth) explain(of Health, add func(on bool, format string, args ...any)) {
	name := h.name()
	add(h.Warning != "", "%s: %s", name, h.Warning)
	add(h.Blocked > 0, "%s: %d messages of the key %q wait behind one that failed", name, h.Blocked, h.BlockedBy)
	if !h.OldestHandling.IsZero() {
		took := time.Since(h.OldestHandling)
		add(took >= longHandling, "%s: the oldest of %d running handlers runs for %v",
			name, h.Handling, took.Round(time.Second))
	}
	add(h.AckPending > 0 && h.Held == 0 && h.State == ConsumerRunning,
		"%s: %d messages are in flight, and none of them here: other instances have them, they wait for a retry, "+
			"or their instance died and the server waits for AckWait", name, h.AckPending)
	add(h.Removed > 0, "%s: the stream removed %d messages before they were handled", name, h.Removed)
	add(h.Replicas == 1 && of.Cluster != "", "%s: the stream has one replica in cluster %q: while its server is down, "+
		"nothing can be published or delivered", name, of.Cluster)
	add(h.LastError != "" && h.State != ConsumerStopped, "%s: last error, at %s: %s",
		name, h.LastErrorAt.Format(time.RFC3339), h.LastError)
}

// HealthHandler answers requests about the health of Clients and Services, by the last
// element of their path:
//
//   - /livez: 200, or 503 with what Live says;
//   - /readyz: 200, or 503 with what Ready says;
//   - anything else: 200 and everything as JSON, what Explain says included.
//
// It asks no server, and works before the first connection. Whoever may reach it can read
// names of streams and durables, and errors; it shows no secret.
func HealthHandler(of ...interface{ Health() Health }) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		all := make([]Health, len(of))
		for i, one := range of {
			all[i] = one.Health()
		}
		switch path.Base(r.URL.Path) {
		case "livez":
			answer(w, all, Health.Live)
		case "readyz":
			answer(w, all, Health.Ready)
		default:
			writePage(w, all)
		}
	})
}

// answer writes whether all are well.
func answer(w http.ResponseWriter, all []Health, check func(Health) error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	text := verdictOf(all, check)
	if text != "ok" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = fmt.Fprintln(w, text)
}

// verdictOf is "ok", or what is wrong.
func verdictOf(all []Health, check func(Health) error) string {
	errs := make([]error, len(all))
	for i, h := range all {
		errs[i] = check(h)
	}
	if err := errors.Join(errs...); err != nil {
		return err.Error()
	}
	return "ok"
}

func writePage(w http.ResponseWriter, all []Health) {
	page := struct {
		Live    string   `json:"live"`
		Ready   string   `json:"ready"`
		Explain []string `json:"explain"`
		Health  []Health `json:"health"`
	}{verdictOf(all, Health.Live), verdictOf(all, Health.Ready), []string{}, all}
	for _, h := range all {
		page.Explain = append(page.Explain, h.Explain()...)
	}
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(page) // the client is gone, or gets all
}

func sortConsumers(all []ConsumerHealth) {
	slices.SortFunc(all, func(a, b ConsumerHealth) int {
		return strings.Compare(a.Stream+"."+a.Durable, b.Stream+"."+b.Durable)
	})
}

func sortElections(all []ElectionHealth) {
	slices.SortFunc(all, func(a, b ElectionHealth) int {
		return strings.Compare(a.Bucket+"."+a.Key+"."+a.NodeName, b.Bucket+"."+b.Key+"."+b.NodeName)
	})
}

func healthOf(s consumer.Snapshot) ConsumerHealth {
	return ConsumerHealth{
		Stream: s.Stream, Durable: s.Durable,
		State: ConsumerState(s.State), Since: s.Since, LastMessage: s.LastMessage,
		AckFloor: s.AckFloor, Pending: s.Pending, AckPending: s.AckPending, MaxAckPending: s.MaxAckPending,
		Held: s.Held, Handling: s.Handling, BlockedBy: s.BlockedBy, Blocked: s.Blocked,
		Removed: s.Removed, Warning: s.Warning, LastError: s.LastError, LastErrorAt: s.LastErrorAt,
		OldestHandling: s.OldestHandling, Replicas: s.Replicas,
	}
}

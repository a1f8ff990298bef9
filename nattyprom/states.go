package nattyprom

import (
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/natty-go/natty"
)

const (
	group    = " Of the whole group, by the server: take max by (stream, durable), not sum."
	instance = " Of this instance."
)

var (
	ofClient   = []string{"client"}
	ofConsumer = []string{"client", "stream", "durable"}
	ofElection = []string{"client", "bucket", "key", "node"}
)

// states are the descriptions of what Health says.
var states []*prometheus.Desc

func describe(name, help string, labels []string, more ...string) *prometheus.Desc {
	d := prometheus.NewDesc(name, help, append(slices.Clip(labels), more...), nil)
	states = append(states, d)
	return d
}

var (
	live  = describe("natty_live", "1 unless a restart would help, as /livez says."+instance, ofClient)
	ready = describe("natty_ready", "1 if this instance may get traffic, as /readyz says."+instance, ofClient)
	up    = describe("natty_connection_up", "1 if there is a connection to a server."+instance, ofClient)

	reconnects = describe("natty_connection_reconnects_total",
		"How often the connection was restored."+instance, ofClient)
	dropped = describe("natty_observer_dropped_events_total",
		"Events that were lost because the Observer was too slow."+instance, ofClient)

	pending = describe("natty_consumer_pending_messages",
		"Messages that are not delivered yet."+group, ofConsumer)
	ackPending = describe("natty_consumer_ack_pending_messages",
		"Messages that are delivered and not settled."+group, ofConsumer)
	maxAckPending = describe("natty_consumer_max_ack_pending_messages",
		"At how many messages that are delivered and not settled the server delivers nothing more."+group, ofConsumer)
	held = describe("natty_consumer_held_messages",
		"Messages that are buffered or in a handler."+instance, ofConsumer)
	inHandlers = describe("natty_consumer_handling_messages",
		"Messages that are in a handler."+instance, ofConsumer)
	oldest = describe("natty_consumer_oldest_handling_seconds",
		"For how long the handler runs that was called first; 0 if none runs."+instance, ofConsumer)
	blocked = describe("natty_consumer_blocked_messages",
		"Messages that wait behind a failed one of the same OrderBy key."+instance, ofConsumer)
	removed = describe("natty_consumer_removed_messages_total",
		"Messages that the stream removed before they were handled, as far as noticed."+instance, ofConsumer)
	lastMessage = describe("natty_consumer_last_message_timestamp_seconds",
		"When the last message arrived; 0 if none has."+instance, ofConsumer)
	warning = describe("natty_consumer_warning",
		"1 while Health warns that something keeps messages from being delivered, or soon will."+instance, ofConsumer)
	state = describe("natty_consumer_state",
		"1 for the state that the consumer is in, 0 for the others."+instance, ofConsumer, "state")

	leading = describe("natty_election_leading", "1 if this instance leads, 0 if it stands by.", ofElection)

	writing = describe("natty_writer_pending_messages",
		"Messages of Writers that have no outcome yet."+instance, ofClient)
	writerFailed = describe("natty_writer_failed_messages",
		"Messages that failed of the Writers that are open now."+instance, ofClient)
)

var consumerStates = []natty.ConsumerState{
	natty.ConsumerStarting, natty.ConsumerRunning, natty.ConsumerStandby, natty.ConsumerDeposed,
	natty.ConsumerUnsupported, natty.ConsumerDisconnected, natty.ConsumerStopping, natty.ConsumerStopped,
}

// sample sends what a Health says.
type sample struct {
	ch     chan<- prometheus.Metric
	client string
}

func (s sample) send(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
	all := append([]string{s.client}, labels...)
	for i, l := range all {
		all[i] = strings.ToValidUTF8(l, "�") // names of nodes may be anything
	}
	s.ch <- prometheus.MustNewConstMetric(d, t, v, all...)
}

func (s sample) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.send(d, prometheus.GaugeValue, v, labels...)
}

func (s sample) counter(d *prometheus.Desc, v float64, labels ...string) {
	s.send(d, prometheus.CounterValue, v, labels...)
}

func (s sample) all(h natty.Health) {
	s.gauge(live, oneIf(h.Live() == nil))
	s.gauge(ready, oneIf(h.Ready() == nil))
	s.gauge(up, oneIf(h.Connected))
	s.counter(reconnects, float64(h.Reconnects))
	s.counter(dropped, float64(h.EventsDropped))
	for _, c := range merged(h.Consumers) {
		s.consumer(c)
	}
	elections := map[[3]string]bool{}
	for _, e := range h.Elections {
		name := [3]string{e.Bucket, e.Key, e.NodeName}
		elections[name] = elections[name] || e.Leading
	}
	for name, leads := range elections {
		s.gauge(leading, oneIf(leads), name[:]...)
	}
	unanswered, failed := 0, uint64(0)
	for _, w := range h.Writers {
		unanswered += w.Pending
		failed += w.Failed
	}
	s.gauge(writing, float64(unanswered))
	s.gauge(writerFailed, float64(failed))
}

func (s sample) consumer(c natty.ConsumerHealth) {
	of := []string{c.Stream, c.Durable}
	s.gauge(pending, float64(c.Pending), of...)
	s.gauge(ackPending, float64(c.AckPending), of...)
	s.gauge(maxAckPending, float64(c.MaxAckPending), of...)
	s.gauge(held, float64(c.Held), of...)
	s.gauge(inHandlers, float64(c.Handling), of...)
	running := 0.0
	if !c.OldestHandling.IsZero() {
		running = time.Since(c.OldestHandling).Seconds()
	}
	s.gauge(oldest, running, of...)
	s.gauge(blocked, float64(c.Blocked), of...)
	s.counter(removed, float64(c.Removed), of...)
	arrived := 0.0
	if !c.LastMessage.IsZero() {
		arrived = float64(c.LastMessage.UnixMilli()) / 1000
	}
	s.gauge(lastMessage, arrived, of...)
	s.gauge(warning, oneIf(c.Warning != ""), of...)
	for _, one := range consumerStates {
		s.gauge(state, oneIf(c.State == one), c.Stream, c.Durable, string(one))
	}
}

// merged makes one of the consumers of a durable that one Client runs several times.
// The state is that of one that does not work, if there is one.
func merged(all []natty.ConsumerHealth) []natty.ConsumerHealth {
	var out []natty.ConsumerHealth
	at := map[[2]string]int{}
	for _, c := range all {
		name := [2]string{c.Stream, c.Durable}
		i, known := at[name]
		if !known {
			at[name] = len(out)
			out = append(out, c)
			continue
		}
		m := &out[i]
		m.Pending, m.AckPending = max(m.Pending, c.Pending), max(m.AckPending, c.AckPending)
		m.MaxAckPending = max(m.MaxAckPending, c.MaxAckPending)
		m.Held, m.Handling, m.Blocked = m.Held+c.Held, m.Handling+c.Handling, m.Blocked+c.Blocked
		m.Removed += c.Removed
		if m.OldestHandling.IsZero() || !c.OldestHandling.IsZero() && c.OldestHandling.Before(m.OldestHandling) {
			m.OldestHandling = c.OldestHandling
		}
		if c.LastMessage.After(m.LastMessage) {
			m.LastMessage = c.LastMessage
		}
		m.Warning += c.Warning
		if m.State == natty.ConsumerRunning || m.State == natty.ConsumerStandby {
			m.State = c.State
		}
	}
	return out
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

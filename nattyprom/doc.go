// Package nattyprom tells Prometheus what a natty.Client does. A Collector is a
// prometheus.Collector: it shows what Health says, and counts and measures messages as
// a natty.Tracer.
//
//	m := nattyprom.New()
//	prometheus.MustRegister(m)
//	c, err := natty.Connect(ctx, cfg, natty.WithTracer(m))
//	m.Watch("orders", c)
//
// # Which gauges are the group's
//
// The server counts for the durable, which all instances share. Every instance shows the
// same number, up to two minutes old, so take max by (stream, durable), not sum:
//
//	natty_consumer_pending_messages
//	natty_consumer_ack_pending_messages
//	natty_consumer_max_ack_pending_messages
//
// All others are those of one instance: take sum. The help text of each says so.
//
// # Labels
//
// client is the name given to Watch. destination is the first token of a subject and ">",
// unless WithDestination says more. result is "ok", or the kind of error. outcome is a
// natty.Outcome. All have few values.
//
// The dashboard in docs/grafana.json and the alerts in docs/alerts.yml are made for these
// metrics.
package nattyprom

// Package nattyotel tells OpenTelemetry what a natty.Client does: traces from a publish
// to the handler of its message, and metrics. It follows the semantic conventions for
// messaging (semconv v1.43.0), with messaging.system "nats".
//
//	tel, err := nattyotel.New()
//	c, err := natty.Connect(ctx, cfg, natty.WithTracer(tel))
//	stop, err := tel.Watch(c)
//
// # Traces
//
// Each message that is published has a span "send <destination>", whose context goes
// along in the message's headers (traceparent and tracestate of the W3C, in lower case,
// unless WithPropagator says otherwise). Each call of a Handler has a span "process
// <filter>" in the same trace. So a redelivery, the dead letter and its redrive are in
// the trace of the first publish. A message that already carries a context keeps it.
//
// A call of a BatchHandler has a trace of its own, with a link to each message's. So have
// messages of a schedule that repeats, which would otherwise make one endless trace.
//
// # Metrics
//
// Those of the conventions:
//
//	messaging.client.sent.messages       messages published, with error.type if they failed
//	messaging.client.operation.duration  how long a publish took, until its outcome was known
//	messaging.client.consumed.messages   deliveries to handlers
//	messaging.process.duration           how long handlers took
//
// and natty's own, for each stream and durable:
//
//	natty.consumer.retries          deliveries that failed, and run again
//	natty.consumer.dead_letters     messages that went to the dead letters
//	natty.consumer.terminated       messages that failed for good, without a dead letter
//
// With Watch also, from Health:
//
//	natty.consumer.pending          not delivered yet; of the group: take max, not sum
//	natty.consumer.ack_pending      delivered and not settled; of the group: take max
//	natty.consumer.held             buffered or in a handler, of this instance
//	natty.consumer.handling         in a handler, of this instance
//	natty.consumer.oldest_handling  for how long the oldest handler runs, of this instance
//	natty.consumer.working          1: it runs or stands by; 0: it does not
//	natty.election.leading          1: this instance leads; 0: it stands by
//	natty.connection.up             1: connected; 0: not, or one of several that are watched is not
//	natty.connection.reconnects     how often it was connected again
//	natty.writer.pending            messages of Writers without an outcome
//
// # Names
//
// Names of spans and attributes of metrics have few values. A handler's is the filter of
// its consumer (natty.Delivery.Filter). A publish's is the first token of the subject and
// ">", unless WithDestination says more. A span has the whole subject in
// messaging.destination.name.
package nattyotel

// Package nattywatermill is a Watermill Publisher and Subscriber on NATS JetStream, by
// natty. Both use one natty.Client, which you make and close.
//
//	client, err := natty.Connect(ctx, natty.Config{Name: "billing"})
//	…
//	pub, err := nattywatermill.NewPublisher(client, nattywatermill.PublisherConfig{})
//	…
//	cfg := nattywatermill.SubscriberConfig{Group: "billing"}
//	sub, err := nattywatermill.NewSubscriber(client, cfg)
//
// A topic is a NATS subject, and a stream must hold it: make the stream with
// Client.EnsureStream. A group on a topic is a durable consumer on the server, which is
// made when it is missing and never deleted.
//
// Delivery is at least once. Ack acknowledges a message. Nack lets the server redeliver
// it after a backoff; see SubscriberConfig.OnNack. The UUID of a message is its identity
// when it is published: see PublisherConfig.MessageID.
package nattywatermill

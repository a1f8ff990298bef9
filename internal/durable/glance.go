package durable

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/subject"
)

// Glance is Refresh with one request instead of two: what the server knows about the
// durable, and nothing new about its stream. If the durable was made anew, the stream
// may have been as well, and Glance reads both.
func (c *Manager) Glance(ctx context.Context, d *Durable) error {
	info, err := c.API.ConsumerInfo(ctx, d.Stream, d.Name)
	if err != nil {
		return err
	}
	if !info.Created.Equal(d.Created) {
		return c.Refresh(ctx, d)
	}
	d.read(info)
	return nil
}

// read takes over what the server says about the durable.
func (d *Durable) read(info *jetstream.ConsumerInfo) {
	d.Config, d.Created, d.Read = info.Config, info.Created, info.TimeStamp
	d.Floor, d.FloorCount = info.AckFloor.Stream, info.AckFloor.Consumer
	d.Delivered, d.Deliveries = info.Delivered.Stream, info.Delivered.Consumer
	d.Unacked, d.Waiting, d.Requests = info.NumAckPending, info.NumPending, info.NumWaiting
	d.Pin, d.Leader = pin(info), ""
	if info.Cluster != nil {
		d.Leader = info.Cluster.Leader
	}
	d.Whole = subject.CoverAll(d.Filters(), d.stored)
}

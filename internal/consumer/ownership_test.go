package consumer

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/pull"
)

func quiet() *Client {
	api := &jsapi.Client{Link: conn.NewLink()}
	return &Client{Manager: durable.Manager{API: api}, Log: slog.New(slog.DiscardHandler)}
}

// owned is an ownership with a puller, and how messages are delivered to it.
func owned(t *testing.T) (*ownership, *deliveries) {
	t.Helper()
	c := New(quiet(), Config{Spec: durable.Spec{Exclusive: true}}, nil)
	c.handlerCtx = t.Context()
	o := newOwnership(c, "me", "pin", time.Hour)
	t.Cleanup(func() { o.lose(nil) })
	o.counted = true
	o.puller.Store(&pull.Puller{})
	return o, &deliveries{o: o}
}

func delivered(pin string, consumerSeq, streamSeq int) *nats.Msg {
	return &nats.Msg{
		Reply:  fmt.Sprintf("$JS.ACK.S.d.1.%d.%d.1.0", streamSeq, consumerSeq),
		Header: nats.Header{headerPin: {pin}},
	}
}

func TestHandledMessageDoesNotRunAgainUnlessSomebodyElseResetTheDurable(t *testing.T) {
	t.Parallel()
	o, _ := owned(t)
	o.handled = 7
	o.resume(5)
	assert.EqualValues(t, 7, o.handled)
	o.resetByOther.Store(true)
	o.resume(5)
	assert.Zero(t, o.handled)
	o.handled = 9
	o.resume(4)
	assert.Zero(t, o.handled, "the floor went back")
}

// A look can end between the grant of a pin and the first reset.
func TestCountThatIsTooHighBeforeTheFirstResetIsNoMatter(t *testing.T) {
	t.Parallel()
	o, d := owned(t)
	x := o.c.mode.(*exclusive)
	x.c.puller, x.s.resume, x.s.cancelLook, x.ttl = &pull.Puller{}, time.NewTimer(time.Hour), func() {}, 0
	x.owner.Store(o)
	x.lookOwner, x.lookEpoch = o, o.epoch.Load()
	server := jetstream.ConsumerConfig{Metadata: map[string]string{"_nats.ver": "2.15.3"}}
	found := finding{durable: durable.Durable{Pin: o.pin, FloorCount: 5, Config: server}}
	require.NoError(t, x.onFound(t.Context(), found))
	assert.False(t, o.lost(), "%v", context.Cause(o.ctx))
	x.deliveries = d
	require.NoError(t, x.onFound(t.Context(), found))
	assert.True(t, d.broken.Load(), "after it, the durable is reset again")
}

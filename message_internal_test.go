package natty

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDeliveryIsReadFromEveryFormOfReply(t *testing.T) {
	t.Parallel()
	want := Delivery{Stream: "ORDERS", Durable: "svc", Sequence: 77, Attempt: 3, Time: time.Unix(0, 1795198076095073048)}
	for _, reply := range []string{
		"$JS.ACK.ORDERS.svc.3.77.90.1795198076095073048.12",
		"$JS.ACK._.hash.ORDERS.svc.3.77.90.1795198076095073048.12",
		"$JS.ACK.hub.hash.ORDERS.svc.3.77.90.1795198076095073048.12.x7G",
	} {
		got, ok := parseDelivery(reply)
		require.True(t, ok, reply)
		assert.Equal(t, want, got, reply)
		// nats.go reads the same.
		meta, err := (&nats.Msg{Reply: reply, Sub: &nats.Subscription{}}).Metadata()
		if err == nil {
			assert.Equal(t, meta.Sequence.Stream, got.Sequence)
			assert.Equal(t, meta.NumDelivered, uint64(got.Attempt))
			assert.True(t, meta.Timestamp.Equal(got.Time))
		}
	}
}

func TestReplyThatIsNoDeliveryIsRefused(t *testing.T) {
	t.Parallel()
	for _, reply := range []string{
		"", "_INBOX.x", "$JS.ACK.", "$JS.ACK.a.b.c.d.e.f.g", "$JS.ACK.S.c.1.2.3", "$JS.ACK.S.c.1.-2.3.4.5", "$JS.ACK.S.c.1.2.3.x.5",
	} {
		_, ok := parseDelivery(reply)
		assert.False(t, ok, reply)
	}
}

func FuzzParseDelivery(f *testing.F) {
	f.Add("$JS.ACK.ORDERS.svc.3.77.90.1795198076095073048.12")
	f.Add("$JS.ACK.hub.hash.ORDERS.svc.3.77.90.1795198076095073048.12.x7G")
	f.Fuzz(func(t *testing.T, reply string) {
		if d, ok := parseDelivery(reply); !ok {
			assert.Zero(t, d)
		}
	})
}

func TestDeliveryTravelsWithTheCtxAndOtherValues(t *testing.T) {
	t.Parallel()
	_, ok := DeliveryFrom(t.Context())
	assert.False(t, ok)
	type key struct{}
	ctx := WithDelivery(context.WithValue(t.Context(), key{}, "v"), Delivery{Attempt: 2})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d, ok := DeliveryFrom(ctx)
	assert.True(t, ok)
	assert.Equal(t, 2, d.Attempt)
	assert.Equal(t, "v", ctx.Value(key{}))
}

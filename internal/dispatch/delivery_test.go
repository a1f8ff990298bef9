package dispatch

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
		got, consumerSeq, ok := ParseReply(reply)
		require.True(t, ok, reply)
		assert.Equal(t, want, got, reply)
		assert.EqualValues(t, 90, consumerSeq)
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
		_, _, ok := ParseReply(reply)
		assert.False(t, ok, reply)
	}
}

// FuzzParseReply: what is read of a reply subject is what nats.go reads of it.
func FuzzParseReply(f *testing.F) {
	f.Add("$JS.ACK.ORDERS.svc.3.77.90.1795198076095073048.12")
	f.Add("$JS.ACK.hub.hash.ORDERS.svc.3.77.90.1795198076095073048.12.x7G")
	f.Add("$JS.ACK._.hash.ORDERS.svc.3.77.90.1795198076095073048.12")
	f.Add("$JS.ACK.....1.1.1.1.")
	f.Add("$JS.ACK.S.c.9223372036854775807.1.1.1.1")
	f.Add("$JS.ACK.a.b.9223372036854775807.9223372036854775808.1.1.1")
	f.Fuzz(func(t *testing.T, reply string) {
		d, consumerSeq, ok := ParseReply(reply)
		if !ok {
			assert.Zero(t, consumerSeq)
			assert.Zero(t, d)
			return
		}
		assert.GreaterOrEqual(t, d.Attempt, 0)
		meta, err := (&nats.Msg{Reply: reply, Sub: &nats.Subscription{}}).Metadata()
		if err != nil {
			return
		}
		assert.Equal(t, meta.Stream, d.Stream)
		assert.Equal(t, meta.Consumer, d.Durable)
		assert.Equal(t, meta.Sequence.Stream, d.Sequence)
		assert.Equal(t, meta.Sequence.Consumer, consumerSeq)
		assert.Equal(t, meta.NumDelivered, uint64(d.Attempt))
		assert.True(t, meta.Timestamp.Equal(d.Time))
	})
}

func TestDeliveryTravelsWithTheCtxAndOtherValues(t *testing.T) {
	t.Parallel()
	_, ok := DeliveryOf(t.Context())
	assert.False(t, ok)
	type key struct{}
	ctx := WithDelivery(context.WithValue(t.Context(), key{}, "v"), Delivery{Attempt: 2})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d, ok := DeliveryOf(ctx)
	assert.True(t, ok)
	assert.Equal(t, 2, d.Attempt)
	assert.Equal(t, "v", ctx.Value(key{}))
}

func TestNoMessageIsOfTheSameConsumer(t *testing.T) {
	t.Parallel()
	for reply, want := range map[string]string{
		"$JS.ACK.S.c.1.2.3.4.5":            "$JS.ACK.S.c.1.9223372036854775807.3.4.5",
		"$JS.ACK.hub.hash.S.c.1.2.3.4.5":   "$JS.ACK.hub.hash.S.c.1.9223372036854775807.3.4.5",
		"$JS.ACK.hub.hash.S.c.1.2.3.4.5.x": "$JS.ACK.hub.hash.S.c.1.9223372036854775807.3.4.5.x",
		"$JS.ACK.S.c":                      "$JS.ACK.S.c",
	} {
		assert.Equal(t, want, NoMessage(reply))
	}
}

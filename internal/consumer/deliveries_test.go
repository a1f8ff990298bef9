package consumer

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDeliveriesThatDoNotFollowAreRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		next         *nats.Msg
		broken       bool
		resetByOther bool
		held         int
	}{
		"the next one":               {delivered("pin", 3, 9), false, false, 3},
		"a redelivery":               {delivered("pin", 3, 5), false, false, 2},
		"a gap":                      {delivered("pin", 4, 9), true, false, 2},
		"somebody reset the durable": {delivered("pin", 1, 2), true, true, 2},
		"for another pin":            {delivered("other", 3, 9), true, false, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, d := owned(t)
			d.receive(delivered("pin", 1, 2))
			d.receive(delivered("pin", 2, 5))
			d.receive(test.next)
			assert.Equal(t, test.broken, d.broken.Load())
			assert.Equal(t, test.resetByOther, o.resetByOther.Load())
			n, _, _ := o.load()
			assert.Equal(t, test.held, n)
			d.receive(delivered("pin", 4, 10))
			n, _, _ = o.load()
			if test.broken {
				assert.Equal(t, test.held, n, "nothing is taken after that")
			} else {
				assert.Equal(t, test.held+1, n)
			}
		})
	}
}

func TestDroppedMessagesAreNotHandled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, d := owned(t)
		d.receive(delivered("pin", 1, 2))
		next := deliveries{o: o, epoch: o.drop()}
		d.receive(delivered("pin", 2, 3))
		n, _, _ := o.load()
		assert.Zero(t, n)
		next.receive(delivered("pin", 1, 2))
		m := o.next()
		require.NotNil(t, m)
		assert.EqualValues(t, 2, m.Delivery.Sequence)
		assert.NotContains(t, m.Msg.Header, headerPin, "the handler does not see it")
		o.lose(errDeposed)
		assert.Nil(t, o.next())
		assert.ErrorIs(t, context.Cause(m.Ctx()), errDeposed)
	})
}

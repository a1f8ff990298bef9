package consumer

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/internal/dispatch"
)

func TestNoTracerCostsNoAllocation(t *testing.T) { // not parallel: AllocsPerRun counts those of all goroutines
	c := New(&Client{}, Config{}, nil)
	m := dispatch.NewMessage(t.Context(), &nats.Msg{}, dispatch.Delivery{})
	batch := []*dispatch.Message{m, m}
	assert.Zero(t, testing.AllocsPerRun(1000, func() {
		c.follow(m.Ctx(), m)
		c.follow(m.Ctx(), batch...)
		c.followed(m, dispatch.Acked, nil, 0)
		c.letterCtx(m)
	}))
}

package natty

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// Nothing tells of a change that was before the supervision began to watch.
func TestConsumerThatLosesItsConnectionAsItBeginsSaysSo(t *testing.T) {
	t.Parallel()
	for _, cfg := range []ConsumerConfig{{}, {Exclusive: true}} {
		e := newEngine(&Client{link: newLink()}, cfg, nil)
		e.puller = &puller{}
		s := supervision{e: e}
		e.c.link.setUp("")
		e.setState(e.role())
		e.c.link.setDown()
		up, changed := s.begin(t.Context())
		assert.False(t, up)
		assert.Equal(t, ConsumerDisconnected, e.health.State)
		e.c.link.setUp("")
		<-changed

		e.setState(ConsumerDisconnected)
		up, _ = s.begin(t.Context())
		assert.True(t, up)
		assert.Equal(t, e.role(), e.health.State)
	}
}

package consumer

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/durable"
)

func TestRemovalsAreToldFromDeliveriesAndNewMessages(t *testing.T) {
	t.Parallel()
	const none = -1
	whole := durable.Durable{Whole: true, First: 1, Delivered: 9, Deliveries: 9, Waiting: 50}
	some := durable.Durable{First: 1, Delivered: 9, Deliveries: 5, Waiting: 20}
	for name, test := range map[string]struct {
		before durable.Durable
		change func(d *durable.Durable)
		want   int
	}{
		"nothing happened":               {whole, func(*durable.Durable) {}, none},
		"all was handled, then aged":     {whole, func(d *durable.Durable) { d.First, d.Delivered, d.Deliveries = 60, 59, 59 }, none},
		"removed before delivery":        {whole, func(d *durable.Durable) { d.First = 31 }, 21},
		"removed, then delivered":        {whole, func(d *durable.Durable) { d.First, d.Delivered, d.Deliveries = 31, 40, 19 }, 21},
		"removed after delivery":         {whole, func(d *durable.Durable) { d.First = 8 }, none},
		"deliveries with repetitions":    {whole, func(d *durable.Durable) { d.First, d.Delivered, d.Deliveries = 31, 40, 29 }, 11},
		"purged":                         {whole, func(d *durable.Durable) { d.First, d.Delivered, d.Waiting = 60, 59, 0 }, 50},
		"made again":                     {whole, func(d *durable.Durable) { d.Created, d.Deliveries, d.First = time.Now(), 0, 8 }, none},
		"last per subject skips":         {whole, func(d *durable.Durable) { d.Config.DeliverPolicy, d.First = jetstream.DeliverLastPerSubjectPolicy, 31 }, none},
		"empty stream":                   {whole, func(d *durable.Durable) { d.First = 0 }, none},
		"filtered, others were removed":  {some, func(d *durable.Durable) { d.First, d.Delivered, d.Deliveries, d.Waiting = 31, 49, 25, 0 }, none},
		"filtered, some were removed":    {some, func(d *durable.Durable) { d.First, d.Waiting = 31, 9 }, 11},
		"filtered, too fast to tell":     {some, func(d *durable.Durable) { d.First, d.Waiting = 31, 25 }, 0},
		"filtered in another way":        {some, func(d *durable.Durable) { d.Config.FilterSubject, d.First, d.Waiting = "a", 31, 9 }, none},
		"others acknowledged, WorkQueue": {some, func(d *durable.Durable) { d.Retention, d.First, d.Waiting = jetstream.WorkQueuePolicy, 31, 25 }, none},
		"others acknowledged, Interest":  {some, func(d *durable.Durable) { d.Retention, d.First, d.Waiting = jetstream.InterestPolicy, 31, 25 }, none},
		"removed from a WorkQueue":       {some, func(d *durable.Durable) { d.Retention, d.First, d.Waiting = jetstream.WorkQueuePolicy, 31, 9 }, 11},
		"filtered, deleted one by one":   {some, func(d *durable.Durable) { d.Waiting = 9 }, none},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r removals
			r.begin(test.before)
			now := test.before
			test.change(&now)
			found := r.look(now)
			assert.Empty(t, r.look(now), "each is reported once")
			if test.want == none {
				assert.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			assert.EqualValues(t, test.want, found[0].Count)
			assert.Equal(t, now.First, found[0].First)
		})
	}
}

// A reset begins the count of deliveries anew: what was handled before it is not counted.
func TestNothingIsToldAsRemovedOfADurableThatMayHaveBeenReset(t *testing.T) {
	t.Parallel()
	var r removals
	d := durable.Durable{Whole: true, First: 6, Delivered: 5, Deliveries: 5, Retention: jetstream.WorkQueuePolicy}
	r.begin(d)
	r.recounts = true
	d.First, d.Delivered, d.Deliveries, d.Waiting = 11, 10, 5, 20
	assert.Empty(t, r.look(d))
	d.First, d.Delivered, d.Waiting = 31, 30, 0
	assert.Len(t, r.look(d), 1, "and what is removed from then on is")
	r.recounts = true
	d.First = 41
	assert.Len(t, r.look(d), 1, "and so is what was removed while nothing was delivered")
}

// A look at the durable alone says when the stream is to be read as well.
func TestRemovalsAreSuspectedWithoutTheStream(t *testing.T) {
	t.Parallel()
	whole := durable.Durable{Whole: true, First: 1, Delivered: 9, Deliveries: 9, Waiting: 50}
	for name, test := range map[string]struct {
		change func(d *durable.Durable)
		want   bool
	}{
		"nothing happened":      {func(*durable.Durable) {}, false},
		"delivered":             {func(d *durable.Durable) { d.Delivered, d.Deliveries, d.Waiting = 19, 19, 40 }, false},
		"redelivered":           {func(d *durable.Durable) { d.Deliveries = 12 }, false},
		"new messages":          {func(d *durable.Durable) { d.Waiting = 99 }, false},
		"fewer are pending":     {func(d *durable.Durable) { d.Waiting = 40 }, true},
		"sequences were passed": {func(d *durable.Durable) { d.Delivered, d.Deliveries = 40, 19 }, true},
		"reset":                 {func(d *durable.Durable) { d.Deliveries = 0 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r removals
			r.begin(whole)
			now := whole
			test.change(&now)
			assert.Equal(t, test.want, r.suspects(now))
		})
	}
}

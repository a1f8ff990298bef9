package natty

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRemovalsAreToldFromDeliveriesAndNewMessages(t *testing.T) {
	t.Parallel()
	const none = -1
	whole := durable{whole: true, first: 1, delivered: 9, deliveries: 9, waiting: 50}
	some := durable{first: 1, delivered: 9, deliveries: 5, waiting: 20}
	for name, test := range map[string]struct {
		before durable
		change func(d *durable)
		want   int
	}{
		"nothing happened":              {whole, func(*durable) {}, none},
		"all was handled, then aged":    {whole, func(d *durable) { d.first, d.delivered, d.deliveries = 60, 59, 59 }, none},
		"removed before delivery":       {whole, func(d *durable) { d.first = 31 }, 21},
		"removed, then delivered":       {whole, func(d *durable) { d.first, d.delivered, d.deliveries = 31, 40, 19 }, 21},
		"removed after delivery":        {whole, func(d *durable) { d.first = 8 }, none},
		"deliveries with repetitions":   {whole, func(d *durable) { d.first, d.delivered, d.deliveries = 31, 40, 29 }, 11},
		"purged":                        {whole, func(d *durable) { d.first, d.delivered, d.waiting = 60, 59, 0 }, 50},
		"made again":                    {whole, func(d *durable) { d.created, d.deliveries, d.first = time.Now(), 0, 8 }, none},
		"last per subject skips":        {whole, func(d *durable) { d.config.DeliverPolicy, d.first = jetstream.DeliverLastPerSubjectPolicy, 31 }, none},
		"empty stream":                  {whole, func(d *durable) { d.first = 0 }, none},
		"filtered, others were removed": {some, func(d *durable) { d.first, d.delivered, d.deliveries, d.waiting = 31, 49, 25, 0 }, none},
		"filtered, some were removed":   {some, func(d *durable) { d.first, d.waiting = 31, 9 }, 11},
		"filtered, too fast to tell":    {some, func(d *durable) { d.first, d.waiting = 31, 25 }, 0},
		"filtered in another way":       {some, func(d *durable) { d.config.FilterSubject, d.first, d.waiting = "a", 31, 9 }, none},
		"filtered, deleted one by one":  {some, func(d *durable) { d.waiting = 9 }, none},
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
			assert.Equal(t, now.first, found[0].First)
		})
	}
}

func TestFilterThatReceivesAllIsTold(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		filters, subjects []string
		want              bool
	}{
		{nil, []string{"a.>"}, true},
		{nil, nil, true},
		{[]string{"a.>"}, []string{"a.>"}, true},
		{[]string{">"}, []string{"a.*", "b"}, true},
		{[]string{"a.*", "b"}, []string{"a.x", "b"}, true},
		{[]string{"a.*"}, []string{"a.>"}, false},
		{[]string{"a.x"}, []string{"a.*"}, false},
		{[]string{"a"}, []string{"a", "b"}, false},
		{[]string{"a"}, nil, false}, // a mirror
	} {
		assert.Equal(t, test.want, receivesAll(test.filters, test.subjects), "%v of %v", test.filters, test.subjects)
	}
}

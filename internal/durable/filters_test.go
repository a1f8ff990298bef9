package durable

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
)

func TestFiltersFollowTheStreamAndNotAnInstance(t *testing.T) {
	t.Parallel()
	with, without := []string{"s.>", "t", Holders("S")}, []string{"s.>", "t"}
	for name, test := range map[string]struct {
		subjects, filters []string
		whole             string // the note
		want              []string
		changed           bool
	}{
		"no schedules":                       {without, nil, "", nil, false},
		"switched on":                        {with, nil, "", []string{"s.>", "t"}, true},
		"switched on, everything":            {with, []string{">"}, "", []string{"s.>", "t"}, true},
		"switched on, wildcards":             {with, []string{"*.*.>"}, "", []string{"s.*.>"}, true},
		"kept out":                           {with, []string{"t", "s.>"}, "true", []string{"s.>", "t"}, false},
		"a new subject":                      {with, []string{"s.>"}, "true", []string{"s.>", "t"}, true},
		"a subject less":                     {with, []string{"s.>", "u.>"}, "true", []string{"s.>", "t", "u.>"}, true},
		"a narrower subject":                 {[]string{"s.a", "t", Holders("S")}, []string{"s.*", "t"}, "true", []string{"s.*", "t"}, false},
		"somebody's own filters":             {with, []string{"s.>"}, "", []string{"s.>"}, false},
		"nothing but holders":                {with, []string{Holders("S")}, "", nil, false},
		"a newer instance gave it subjects":  {with, []string{"s.a"}, "", []string{"s.a"}, false},
		"the subject of the holders is gone": {without, []string{"s.>"}, "true", []string{"s.>"}, false},
	} {
		d := Durable{Stream: "S", stored: test.subjects, Config: jetstream.ConsumerConfig{FilterSubjects: test.filters}}
		if test.whole != "" {
			d.Config.Metadata = map[string]string{metaWholeStream: test.whole}
		}
		filters, changed := d.follow()
		assert.ElementsMatch(t, test.want, filters, name)
		assert.Equal(t, test.changed, changed, name)
	}
}

package schedule

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What the server does (2.15.2), and what stands in the documentation of Schedule.
func TestTimesOfCronWhereClocksChange(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, zone, from, pattern string
		want                      []string
	}{
		{"skipped", "Europe/Berlin", "2027-03-27T00:00:00Z", "0 30 2 * * *", []string{"03-27 02:30", "03-29 02:30"}},
		{"twice", "Europe/Berlin", "2027-10-30T20:00:00Z", "0 30 2 * * *", []string{"10-31 02:30", "10-31 02:30", "11-01 02:30"}},
		{"every second hour", "Europe/Berlin", "2027-03-27T22:00:00Z", "0 0 */2 * * *", []string{"03-28 00:00", "03-28 04:00"}},
		{"a day without midnight", "Africa/Cairo", "2027-04-28T22:30:00Z", "0 0 0 * * *", []string{"05-01 00:00"}},
		{"Santiago", "America/Santiago", "2027-09-04T12:00:00Z", "0 0 0 * * *", []string{"09-06 00:00"}},
		{"Beirut", "Asia/Beirut", "2027-03-27T12:00:00Z", "0 0 0 * * *", []string{"03-29 00:00"}},
		{"noon of that day", "America/Santiago", "2027-08-29T20:00:00Z", "0 0 12 * * SUN", []string{"09-12 12:00"}},
		{"names, ranges and steps", "UTC", "2027-01-01T00:00:00Z", "30 5-10/5 8 ? jan-mar/2 mon,3", []string{"01-04 08:05", "01-04 08:10", "01-06 08:05"}},
	} {
		zone, err := time.LoadLocation(test.zone)
		require.NoError(t, err)
		at, err := time.Parse(time.RFC3339, test.from)
		require.NoError(t, err)
		p, ok := parseCron(test.pattern)
		require.True(t, ok, test.name)
		for _, want := range test.want {
			next, found := p.next(at.In(zone))
			require.True(t, found, test.name)
			assert.Equal(t, want, next.Format("01-02 15:04"), test.name)
			at = next
		}
	}
	for _, unreadable := range []string{"@daily", "* * *", "60 * * * * *", "* * * 0 * *", "* * * * foo *", "5-1 * * * * *", "*/0 * * * * *", "a-b * * * * *"} {
		_, ok := parseCron(unreadable)
		assert.False(t, ok, "the server refuses or knows %q", unreadable)
	}
}

func TestCronThatTheServerWouldDropIsRefused(t *testing.T) {
	t.Parallel()
	before := time.Date(2027, 9, 10, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		pattern, zone string
		lost          bool
	}{
		{"0 0 12 20 9 *", "America/Santiago", true}, // the 20th is found now, and never again
		{"0 0 12 20 9 *", "Europe/Berlin", false},
		{"0 0 12 20 9 *", "", false},
		{"0 0 12 20 * *", "America/Santiago", false}, // it misses September
		{"0 0 * 20 9 *", "America/Santiago", false},
		{"0 30 2 * * *", "Europe/Berlin", false},
		{"0 0 0 29 2 *", "Europe/Berlin", false},
		{"0 0 0 30 2 *", "Europe/Berlin", true},
		{"* * * * * *", "America/Santiago", false},
	} {
		reason := Schedule{Cron: test.pattern, TimeZone: test.zone}.lost(before)
		assert.Equal(t, test.lost, reason != "", "%s in %s: %s", test.pattern, test.zone, reason)
	}
	assert.Contains(t, Schedule{Cron: "0 0 12 20 9 *", TimeZone: "America/Santiago"}.lost(before), "2027-09-20T12:00:00")
}

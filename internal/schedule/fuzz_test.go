package schedule

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/jsapi"
)

// FuzzCron reads any pattern in any zone. A time that is found is later, and fits.
func FuzzCron(f *testing.F) {
	for _, pattern := range []string{
		"* * * * * *", "0 30 2 * * *", "0 0 */2 * * *", "30 5-10/5 8 ? jan-mar/2 mon,3", "0 0 0 30 2 *", "0 0 0 29 2 *", "@daily",
		"60 * * * * *", "*/9223372036854775807 * * * * *", "1/9223372036854775807 1 1 1 1 *", "-1 * * * * *", "5-1 * * * * *",
		"* * * * * 0-6/0", "0 0 12 20 9 *", ",,,,, * * * * *", "+5 * * * * *", "0 0 0 1-31/9 * SAT,SUN",
	} {
		for _, zone := range []string{"UTC", "America/Santiago", "Europe/Berlin", "Africa/Cairo"} {
			f.Add(pattern, zone, int64(1_820_000_000))
		}
	}
	f.Fuzz(func(t *testing.T, pattern, name string, unix int64) {
		zone, err := time.LoadLocation(name)
		p, ok := parseCron(pattern)
		if err != nil || !ok {
			t.Skip()
		}
		for _, field := range []struct {
			field
			least, most int
		}{{p.second, 0, 59}, {p.minute, 0, 59}, {p.hour, 0, 23}, {p.day, 1, 31}, {p.month, 1, 12}, {p.weekday, 0, 6}} {
			assert.NotZero(t, field.allowed, "%q allows nothing", pattern)
			assert.Zero(t, field.allowed&^(1<<uint(field.most+1)-1<<uint(field.least)), "%q allows what is not there", pattern)
		}
		at := time.Unix(unix%5_000_000_000, 0).In(zone)
		begun := time.Now()
		next, found := p.next(at)
		assert.Less(t, time.Since(begun), 5*time.Second, "%q in %s from %v", pattern, name, at)
		if !found {
			return
		}
		assert.True(t, next.After(at), "%q in %s: %v is not after %v", pattern, name, next, at)
		assert.True(t, p.second.has(next.Second()) && p.minute.has(next.Minute()) && p.hour.has(next.Hour()) &&
			p.month.has(int(next.Month())) && p.onDay(next), "%q in %s: %v does not fit", pattern, name, next)
	})
}

// FuzzSchedule: a schedule that is accepted comes back from the message that holds it.
func FuzzSchedule(f *testing.F) {
	f.Add("id", int64(1_800_000_000), int64(0), "", "", int64(0), "s.a", "Trace", "1", []byte("data"))
	f.Add("id", int64(0), int64(5*time.Second), "", "", int64(time.Minute), "s.a", "Nats-TTL", "1s", []byte(nil))
	f.Add("id", int64(0), int64(0), "0 30 2 * * *", "Europe/Berlin", int64(0), "s.a", "", "\r\n", []byte{0})
	f.Add("id", int64(0), int64(0), "@hourly", "", int64(0), "s.>", "a b", " x ", []byte("x"))
	f.Add("a.b", int64(0), int64(0), "@every 5s", "Local", int64(-1), "$NATTY.schedule.S.x", "Nats-Schedule", "@at", []byte("x"))
	f.Add("\xff", int64(0), int64(0), "* * * * * *\r\n", "", int64(1), "a b", "é", "\xff", []byte("x"))
	k := &Keeper{Invalid: func(field, value, reason string, cause error) error {
		return errors.Join(errors.New(field+" "+value+" "+reason), cause)
	}}
	f.Fuzz(func(t *testing.T, id string, at, every int64, cron, zone string, ttl int64, subject, name, value string, data []byte) {
		s := Schedule{
			ID: id, Every: time.Duration(every), Cron: cron, TimeZone: zone, TTL: time.Duration(ttl),
			Msg: &nats.Msg{Subject: subject, Header: nats.Header{name: {value}}, Data: data},
		}
		if at != 0 {
			s.At = time.Unix(at, 0).UTC()
		}
		if k.Validate(s) != nil {
			return
		}
		m := s.holder(jetstream.StreamConfig{Name: "S", AllowMsgTTL: true})
		assert.Len(t, strings.Split(m.Subject, "."), 4, "%q", m.Subject)
		back, err := read("S", &jsapi.StoredMsg{Subject: m.Subject, Header: encode(m.Header), Data: m.Data})
		require.NoError(t, err)
		assert.Equal(t, id, back.ID)
		assert.True(t, s.At.Equal(back.At), "%v %v", s.At, back.At)
		assert.Equal(t, s.Every, back.Every)
		assert.Equal(t, strings.TrimSpace(cron), back.Cron)
		assert.Equal(t, zone, back.TimeZone)
		assert.Equal(t, s.TTL, back.TTL)
		assert.Equal(t, subject, back.Msg.Subject)
		for name := range back.Msg.Header {
			assert.False(t, strings.HasPrefix(strings.ToLower(name), "nats-"), name)
		}
	})
}

// FuzzHeldSchedule reads what others wrote where schedules are.
func FuzzHeldSchedule(f *testing.F) {
	for _, header := range []string{
		"", "NATS/1.0\r\n\r\n", "NATS/1.0\r\nNats-Schedule: @every -5s\r\nNats-Schedule-TTL: never\r\n\r\n",
		"NATS/1.0\r\nNats-Schedule: @at 2027-01-01T00:00:00Z\r\nNats-Schedule-Target: a b\r\n\r\n", "NATS/1.0\r\nNats-Schedule\r\n\r\n",
	} {
		f.Add("$NATTY.schedule.S.x", []byte(header), []byte("data"))
	}
	f.Fuzz(func(t *testing.T, subject string, header, data []byte) {
		s, err := read("S", &jsapi.StoredMsg{Subject: subject, Header: header, Data: data})
		if err == nil {
			require.NotNil(t, s.Msg)
			assert.Equal(t, data, s.Msg.Data)
			_ = s.lost(time.Unix(1_800_000_000, 0))
		}
	})
}

// encode is what nats.go sends: it refuses names that cannot be, which are left out here.
func encode(h nats.Header) []byte {
	var b strings.Builder
	b.WriteString("NATS/1.0\r\n")
	for name, values := range h {
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }) {
			continue
		}
		for _, v := range values {
			b.WriteString(name + ": " + strings.NewReplacer("\r", " ", "\n", " ").Replace(strings.TrimSpace(v)) + "\r\n")
		}
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
)

// The jobs beside the reminders. A message's body is the name of its job.
const (
	backup     = "backup"     // every second
	report     = "report"     // each day
	offer      = "offer"      // put off
	newsletter = "newsletter" // cancelled
	oldOffer   = "old offer"  // what the offer was before it was put off
)

const (
	reminders = 8
	timeZone  = "Asia/Kolkata" // half an hour off those of most, and without a summer time
	clock     = "15:04:05.000"
)

// account keeps account of what ran. What is lost is found by looking for every job, not by counting.
type account struct {
	due   map[string]time.Time // the jobs that are to run once, and from when on
	never []string             // jobs that are not to run

	mu       sync.Mutex // guards what follows: the handler and what prints trouble run at once
	out      io.Writer
	ran      map[string]map[uint64]time.Time // by job and sequence: when the server published it
	twice    int                             // handled again
	once     int                             // of those that are due, how many have run
	halfDone func()
}

// newPlan makes the schedules, in the order in which they are to be made, and the account that expects them.
func newPlan(start time.Time, subject string, out io.Writer) ([]natty.Schedule, *account, error) {
	zone, err := time.LoadLocation(timeZone)
	if err != nil {
		return nil, nil, err
	}
	message := func(body string) *nats.Msg { return &nats.Msg{Subject: subject, Data: []byte(body)} }
	daily := start.Add(4 * time.Second).Truncate(time.Second).In(zone) // today in about four seconds
	putOff := start.Add(3500 * time.Millisecond)
	a := &account{
		due:   map[string]time.Time{report: daily, offer: putOff},
		never: []string{newsletter, oldOffer},
		out:   out,
		ran:   map[string]map[uint64]time.Time{},
	}
	pattern := fmt.Sprintf("%d %d %d * * *", daily.Second(), daily.Minute(), daily.Hour())
	plan := []natty.Schedule{
		{ID: report, Cron: pattern, TimeZone: timeZone, Msg: message(report)},
		{ID: backup, Every: time.Second, Msg: message(backup)},
		{ID: newsletter, At: start.Add(3 * time.Second), Msg: message(newsletter)},
		{ID: offer, At: start.Add(3 * time.Second), Msg: message(oldOffer)},
	}
	for i := range reminders {
		name := fmt.Sprint("reminder-", i+1)
		a.due[name] = start.Add(500*time.Millisecond + time.Duration(i)*350*time.Millisecond)
		plan = append(plan, natty.Schedule{ID: name, At: a.due[name], Msg: message(name)})
	}
	return append(plan, natty.Schedule{ID: offer, At: putOff, Msg: message(offer)}), a, nil
}

// whenHalf calls f when half of the jobs that are due have run.
func (a *account) whenHalf(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.halfDone = f
}

// handle is the handler. How late a job is, it takes from the server's time of the message: a job that waits for a consumer is
// not the schedule's fault. The server looks four times a second at most, and then publishes all that is due.
func (a *account) handle(ctx context.Context, msg *nats.Msg) error {
	delivery, _ := natty.DeliveryFrom(ctx)
	name := string(msg.Data)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ran[name] == nil {
		a.ran[name] = map[uint64]time.Time{}
	}
	if _, known := a.ran[name][delivery.Sequence]; known { // the same message: its acknowledgement was lost
		a.twice++
		return nil
	}
	a.ran[name][delivery.Sequence] = delivery.Time
	late := ""
	if due, ok := a.due[name]; ok {
		late = fmt.Sprintf(", %d ms late", delivery.Time.Sub(due).Milliseconds())
		a.once++
	}
	fmt.Fprintf(a.out, "   %-10s  %s%s\n", name, delivery.Time.Local().Format(clock), late)
	if a.once == len(a.due)/2 {
		a.halfDone()
	}
	return nil
}

// recurred reports whether those that would go on for ever have run: one every second more than once, and the daily one today.
func (a *account) recurred() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.ran[backup]) > 1 && len(a.ran[report]) > 0
}

// say prints a line between those of the handler.
func (a *account) say(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fmt.Fprintln(a.out, text)
}

// printTrouble prints what went wrong while the consumer ran.
func (a *account) printTrouble(err error) { a.say("   " + err.Error()) }

// print writes the account. Its error names what was lost, and what ran that should not have, or not yet, or not again.
func (a *account) print() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var lost, wrong []string
	var latest time.Duration
	once, early := 0, 0
	for _, name := range slices.Sorted(maps.Keys(a.due)) {
		due := a.due[name]
		switch len(a.ran[name]) {
		case 0:
			lost = append(lost, name)
		case 1:
			once++
		default:
			wrong = append(wrong, name+" ran again")
		}
		for _, published := range a.ran[name] {
			latest = max(latest, published.Sub(due))
			if published.Before(due) {
				early++
				wrong = append(wrong, name+" ran early")
			}
		}
	}
	for _, name := range a.never {
		if len(a.ran[name]) > 0 {
			wrong = append(wrong, name+" ran")
		}
	}
	if len(a.ran[backup]) < 2 {
		lost = append(lost, backup)
	}
	fmt.Fprintf(a.out, "\nwith a time        %4d\nran once           %4d\nran early          %4d\nlate at most, ms   %4d\n",
		len(a.due), once, early, latest.Milliseconds())
	fmt.Fprintf(a.out, "every second, ran  %4d\nput off, ran       %4d\ncancelled, ran     %4d\nhandled twice      %4d\nlost               %4d\n",
		len(a.ran[backup]), len(a.ran[oldOffer]), len(a.ran[newsletter]), a.twice, len(lost))
	switch {
	case len(wrong) > 0:
		return fmt.Errorf("%d jobs went wrong: %s", len(wrong), strings.Join(wrong, ", "))
	case len(lost) > 0:
		return fmt.Errorf("%d jobs did not run: %s", len(lost), strings.Join(lost, ", "))
	}
	return nil
}

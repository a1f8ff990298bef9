package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
)

// job is the body of one message.
type job struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
}

var (
	errMailServer = errors.New("the mail server does not answer")
	errNoPage     = errors.New("the scan has no page")
)

// office does the jobs, and keeps account of each: what is lost is found by looking for every job that was submitted, not
// by counting.
type office struct {
	submitted []job

	mu     sync.Mutex // guards what follows: three workers call handle
	jobs   map[string]bool
	mailed bool // the mail server answers
}

// newOffice has sixty jobs to submit, of which three scans can never be done, and six mails not until mend is called.
func newOffice() *office {
	o := &office{jobs: map[string]bool{}}
	for i := range 60 {
		j := job{ID: fmt.Sprintf("J-%02d", i+1), Kind: "print"}
		switch {
		case i%10 == 4:
			j.Kind = "mail"
		case i%20 == 7:
			j.Kind = "scan"
		}
		o.submitted = append(o.submitted, j)
	}
	return o
}

// handle is the handler. Returning nil takes the job off the queue. After an error it comes again, up to MaxDeliver times;
// a Permanent one is not tried again.
func (o *office) handle(ctx context.Context, msg *nats.Msg) error {
	var j job
	if err := json.Unmarshal(msg.Data, &j); err != nil {
		return natty.Permanent(err)
	}
	switch {
	case j.Kind == "scan":
		return natty.Permanent(errNoPage) // it will not get better
	case j.Kind == "mail" && !o.mended():
		return errMailServer
	}
	select { // the work
	case <-time.After(10 * time.Millisecond):
	case <-ctx.Done(): // the consumer has waited for us long enough
		return ctx.Err()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.jobs[j.ID] = true
	return nil
}

func (o *office) mend() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mailed = true
}

func (o *office) mended() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mailed
}

func (o *office) done() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.jobs)
}

// print writes the account. Its error names what was lost: neither done nor a dead letter.
func (o *office) print(out io.Writer, dead, redriven int, still []natty.DeadLetter) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	known := map[string]bool{}
	for id := range o.jobs {
		known[id] = true
	}
	for _, letter := range still {
		var j job
		if err := json.Unmarshal(letter.Data, &j); err != nil {
			return err
		}
		known[j.ID] = true
	}
	var lost []string
	for _, j := range o.submitted {
		if !known[j.ID] {
			lost = append(lost, j.ID)
		}
	}
	fmt.Fprintf(out, "\nsubmitted      %4d\ndone           %4d\ndead-lettered  %4d\nredriven       %4d\nstill dead     %4d\nlost           %4d\n",
		len(o.submitted), len(o.jobs), dead, redriven, len(still), len(lost))
	if len(lost) == 0 {
		return nil
	}
	return fmt.Errorf("%d jobs were lost: %s", len(lost), strings.Join(lost, ", "))
}

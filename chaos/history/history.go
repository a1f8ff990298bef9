// Package history holds what the processes of a chaos run write down, as lines of JSON.
// Checkers and the timeline read nothing else.
package history

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Event is one line of a history. At and From are in nanoseconds of CLOCK_MONOTONIC,
// which all processes of a machine share.
type Event struct {
	At   int64  `json:"at"`
	From int64  `json:"from,omitempty"` // when what ends at At began
	Who  string `json:"who"`
	Life int    `json:"life,omitempty"` // grows with each restart of the process
	What What   `json:"what"`

	ID      string `json:"id,omitempty"`      // of a message or an operation
	Subject string `json:"subject,omitempty"` // of a message
	Key     string `json:"key,omitempty"`     // of a bucket, or the target of a fault
	Op      string `json:"op,omitempty"`      // the kind of operation or fault
	Seq     uint64 `json:"seq,omitempty"`     // a message's sequence, a key's revision, a token
	Want    uint64 `json:"want,omitempty"`    // the revision that an operation asks for
	N       int64  `json:"n,omitempty"`       // a value, a count or an attempt
	Text    string `json:"text,omitempty"`    // an error, or a value

	*Sample
}

// What is the kind of an Event.
type What string

// The kinds. Those of one group are written by one kind of worker.
const (
	Started What = "started" // the process is connected
	Ended   What = "ended"   // the process ends in good order
	Sampled What = "sample"
	Report  What = "report" // to OnError

	Sent    What = "sent"
	Acked   What = "acked"
	Unknown What = "unknown" // the message may be stored
	Refused What = "refused" // the message is not stored

	Begun    What = "begun"
	Done     What = "done"
	Failed   What = "failed"
	Fatal    What = "fatal" // the handler returned Permanent
	Distrust What = "distrust"

	Call   What = "call"
	Return What = "return"

	Own   What = "own"   // a leadership or a lock begins
	Disow What = "disow" // its ctx ended
	Wrote What = "wrote" // a term's write is stored: Seq is its revision, N the token

	Stored   What = "stored"   // a message that the stream has at the end
	Redriven What = "redriven" // the same for a message that was put back N times
	Letter   What = "letter"   // a dead letter at the end
	Mirrored What = "mirrored" // a key of a cache or a watch at the end
	Bucket   What = "bucket"   // the key in the bucket at the end

	Fault What = "fault"
	Phase What = "phase" // N: see the constants below
)

// Phases of a run.
const (
	Chaos  = "chaos"  // faults happen
	Healed = "healed" // no fault is left, and nothing more is published
	Calm   = "calm"   // with rivals: no fault has been there for a while, and nothing more is published
	Quiet  = "quiet"  // everything is handled
	Over   = "over"   // processes are told to end
)

// Sample is what a process is at a moment.
type Sample struct {
	Goroutines int    `json:"goroutines,omitempty"`
	Heap       uint64 `json:"heap,omitempty"`
	Out        uint64 `json:"out,omitempty"` // messages sent by the connection
	Health     string `json:"health,omitempty"`
}

// Now is the time of Events.
func Now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // fails for an unknown clock only
	return ts.Nano()
}

// FromWall returns the time of Events at which the wall clock showed t.
func FromWall(t time.Time) int64 { return Now() - int64(time.Since(t.Round(0))) }

// Log writes the Events of one process. Each is one write, so that a killed process
// leaves whole lines.
type Log struct {
	who  string
	life int

	mu sync.Mutex // guards w
	w  io.Writer
}

// NewLog returns a Log for the process who, in its life-th life.
func NewLog(w io.Writer, who string, life int) *Log { return &Log{w: w, who: who, life: life} }

// Add writes an Event down. It happens now unless e says otherwise.
func (l *Log) Add(e Event) {
	if err := l.add(e); err != nil {
		fmt.Fprintln(os.Stderr, "history:", err)
		os.Exit(1) // a history with gaps proves nothing
	}
}

func (l *Log) add(e Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.At == 0 {
		e.At = Now()
	}
	if e.Who == "" {
		e.Who, e.Life = l.who, l.life
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = l.w.Write(append(line, '\n'))
	return err
}

// Read returns the Events of files, in the order of time. The last line of a file may
// be cut off.
func Read(files ...string) (all []Event, err error) {
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		in := bufio.NewScanner(bytes.NewReader(data))
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			var e Event
			if json.Unmarshal(in.Bytes(), &e) == nil && e.What != "" {
				all = append(all, e)
			}
		}
		if err := in.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	Sort(all)
	return all, nil
}

// Sort puts Events in the order of time.
func Sort(all []Event) {
	slices.SortStableFunc(all, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
}

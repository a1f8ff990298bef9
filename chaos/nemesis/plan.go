// Package nemesis plans faults from a seed, and makes them happen.
package nemesis

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is what goes wrong.
type Kind string

// Faults of a worker: its process, then its links.
const (
	Kill    Kind = "kill"
	Pause   Kind = "pause"
	Restart Kind = "restart" // in good order
	Cut     Kind = "cut"
	Freeze  Kind = "freeze"
	Deafen  Kind = "deafen" // answers are held; requests arrive
	Mute    Kind = "mute"   // requests are held; answers arrive
	Slow    Kind = "slow"
	Lose    Kind = "lose" // requests arrive, answers are lost
	// Downgrade restarts a worker with an older program, and then with its own again.
	Downgrade Kind = "downgrade"
)

// Faults of servers. Those that break the quorum are bounded to a few seconds.
const (
	KillServer    Kind = "kill-server"
	PauseServer   Kind = "pause-server"
	RestartServer Kind = "restart-server"
	Rolling       Kind = "rolling"     // one server after the other
	KillAll       Kind = "kill-all"    // breaks the quorum
	PauseTwo      Kind = "pause-two"   // breaks the quorum
	StepDown      Kind = "step-down"   // leaders of streams
	StepAside     Kind = "step-aside"  // leaders of consumers
	Isolate       Kind = "isolate"     // one server and the others do not hear each other
	MuteServer    Kind = "mute-server" // the others do not hear one server, which hears them
	Rotate        Kind = "rotate"      // certificates, their authority, and the user's key
)

// Faults of what is stored.
const (
	DeleteDurable Kind = "delete-durable"
	ResetDurable  Kind = "reset-durable"
	RemakeBucket  Kind = "remake-bucket"
	Fill          Kind = "fill" // a stream refuses messages
)

// Fault is one thing that goes wrong.
type Fault struct {
	N      int // its number in the plan
	At     time.Duration
	For    time.Duration
	Kind   Kind
	Target string
	Delay  time.Duration // with Slow
}

func (f Fault) String() string {
	return fmt.Sprintf("%2d %6.1fs %-14s %-9s %.1fs", f.N, f.At.Seconds(), f.Kind, f.Target, f.For.Seconds())
}

// Cast names what faults can happen to.
type Cast struct {
	Servers, Workers, Durables []string
	// Streams are those that refuse messages while they are full.
	Streams []string
	// Old says that there is an older program.
	Old bool
}

// quick and slow are bounds of a fault's time.
type span struct{ min, max time.Duration }

func (s span) draw(r *rand.Rand) time.Duration {
	return s.min + time.Duration(r.Int64N(int64(s.max-s.min)))
}

type choice struct {
	kind   Kind
	weight int
	span   span
}

const second = time.Second

var (
	ofWorkers = []choice{
		{Kill, 4, span{second / 5, 3 * second}},
		{Pause, 4, span{second / 2, 14 * second}},
		{Restart, 2, span{second / 5, second}},
		{Cut, 2, span{second / 5, second}},
		{Freeze, 4, span{second, 14 * second}},
		{Deafen, 2, span{second, 8 * second}},
		{Mute, 2, span{second, 8 * second}},
		{Slow, 2, span{2 * second, 8 * second}},
		{Lose, 4, span{second / 4, second}},
	}
	ofVersions = []choice{{Downgrade, 3, span{2 * second, 10 * second}}} // with an older program
	ofServers  = []choice{
		{KillServer, 4, span{second / 2, 5 * second}},
		{PauseServer, 3, span{second, 8 * second}},
		{RestartServer, 2, span{second / 2, 2 * second}},
		{Rolling, 1, span{second / 2, second}},
		{KillAll, 1, span{second / 2, 4 * second}},
		{PauseTwo, 1, span{2 * second, 6 * second}},
		{StepDown, 3, span{second / 10, second / 5}},
		{StepAside, 3, span{second / 10, second / 5}},
		{Isolate, 2, span{second, 8 * second}},
		{MuteServer, 2, span{second, 8 * second}},
		{Rotate, 2, span{second, 4 * second}},
	}
	ofData = []choice{
		{DeleteDurable, 2, span{second / 10, second / 5}},
		{ResetDurable, 2, span{second / 10, second / 5}},
		{RemakeBucket, 2, span{second / 5, 2 * second}},
	}
	ofStreams = []choice{{Fill, 1, span{3 * second, 9 * second}}}
)

// pick chooses by weight.
func pick(r *rand.Rand, choices []choice) choice {
	sum := 0
	for _, c := range choices {
		sum += c.weight
	}
	n := r.IntN(sum)
	for _, c := range choices {
		if n -= c.weight; n < 0 {
			return c
		}
	}
	return choices[0]
}

// some returns the choices of some kinds; no kinds are all.
func some(choices []choice, kinds []string) (these []choice) {
	for _, c := range choices {
		if len(kinds) == 0 || slices.Contains(kinds, string(c.kind)) {
			these = append(these, c)
		}
	}
	return these
}

func one(r *rand.Rand, names []string) string {
	return names[r.IntN(len(names))]
}

// track plans faults of one kind of target, one after the other.
func track(r *rand.Rand, until time.Duration, gap span, choices []choice, targets []string) (faults []Fault) {
	if len(choices) == 0 || len(targets) == 0 {
		return nil
	}
	for at := gap.draw(r); ; at += gap.draw(r) {
		c := pick(r, choices)
		f := Fault{At: at, For: c.span.draw(r), Kind: c.kind, Target: one(r, targets)}
		if c.kind == Slow {
			f.Delay = 10*time.Millisecond + time.Duration(r.Int64N(int64(200*time.Millisecond)))
		}
		if f.At+f.For > until {
			return faults
		}
		faults = append(faults, f)
	}
}

// New plans the faults of a run. The same seed, duration and cast give the same plan.
// With kinds it is of these alone.
func New(seed uint64, duration time.Duration, cast Cast, kinds ...string) []Fault {
	ofServers, ofWorkers := some(ofServers, kinds), some(ofWorkers, kinds)
	ofData, ofStreams := some(ofData, kinds), some(ofStreams, kinds)
	if cast.Old {
		ofWorkers = append(ofWorkers, some(ofVersions, kinds)...)
	}
	r := func(n uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, n)) }
	faults := track(r(1), duration, span{3 * second, 9 * second}, ofServers, cast.Servers)
	for i := range uint64(2) {
		faults = append(faults, track(r(2+i), duration, span{second / 2, 4 * second}, ofWorkers, cast.Workers)...)
	}
	faults = append(faults, track(r(4), duration, span{5 * second, 15 * second}, ofData, cast.Durables)...)
	for i := range cast.Streams { // also both at once
		gap := span{10 * second, 20 * second}
		faults = append(faults, track(r(uint64(5+i)), duration, gap, ofStreams, cast.Streams[i:i+1])...)
	}
	for i := range faults {
		faults[i].N = i + 1
	}
	return faults
}

// Only returns the faults with these numbers, and all for nil.
func Only(faults []Fault, numbers []int) (some []Fault) {
	if numbers == nil {
		return faults
	}
	for _, f := range faults {
		for _, n := range numbers {
			if f.N == n {
				some = append(some, f)
			}
		}
	}
	return some
}

// Numbers are the numbers of faults, for the option that repeats them.
func Numbers(faults []Fault) string {
	var all []string
	for _, f := range faults {
		all = append(all, fmt.Sprint(f.N))
	}
	return strings.Join(all, ",")
}

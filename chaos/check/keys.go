package check

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// keyState is a key as somebody who sees all would describe it.
type keyState struct {
	value    int64  // each is written once; 0: the key is not there
	revision uint64 // 0: not known, since nobody was told or has asked yet
	floor    uint64 // what is written from now on gets a greater revision
}

// write sets the value; revision is 0 where the writer was not told.
func (k keyState) write(value int64, revision uint64) (bool, keyState) {
	return revision == 0 || revision > k.floor,
		keyState{value: value, revision: revision, floor: max(k.floor, revision)}
}

// at is the key if it is at the revision that somebody has seen; 0: it is not there.
func (k keyState) at(revision uint64) (bool, keyState) {
	switch {
	case revision == 0 || k.value == 0:
		return revision == 0 && k.value == 0, k
	case k.revision == 0 && revision > k.floor:
		return true, keyState{value: k.value, revision: revision, floor: revision}
	}
	return k.revision == revision, k
}

// keyModel is a key. Operations are Events; one in doubt may do nothing.
var keyModel = porcupine.Model{
	Init: func() any { return keyState{} },
	Step: func(state, input, _ any) (bool, any) {
		before, e := state.(keyState), input.(history.Event)
		ok, after := step(before, e)
		if !ok && e.Text == work.InDoubt {
			return true, before
		}
		return ok, after
	},
}

func step(k keyState, e history.Event) (bool, keyState) {
	switch e.Op {
	case work.Put:
		return k.write(e.N, 0)
	case work.Remove:
		return k.write(0, 0)
	case work.Create:
		if exists := e.Text == work.Exists; k.value != 0 || exists {
			return k.value != 0 && exists, k
		}
		return k.write(e.N, 0)
	case work.Update:
		ok, k := k.at(e.Want)
		if !ok {
			return false, k
		}
		return k.write(e.N, e.Seq)
	case work.Refresh:
		ok, after := k.write(k.value, 0)
		return ok && k.value != 0, after
	case work.See:
		return k.at(e.Seq)
	case work.Read:
		return k.value == e.N, k
	}
	return false, k
}

const never = math.MaxInt64

// patience bounds the check of one key: the time grows exponentially with the number of
// operations that are in doubt at once.
const patience = 10 * time.Second

// Keys finds keys whose history no order of the operations explains.
func Keys(h *History) (problems []Problem) {
	byKey := map[string][]porcupine.Operation{}
	var keys []string
	for _, o := range h.keyOperations() {
		key := o.Input.(history.Event).Key
		if byKey[key] == nil {
			keys = append(keys, key)
		}
		byKey[key] = append(byKey[key], o)
	}
	for _, key := range keys {
		ops := byKey[key]
		if h.illegal(keyModel, ops, "key "+key) {
			text := fmt.Sprintf("no order explains the %d operations on key %s", len(ops), key)
			problems = append(problems, Problem{At: ops[0].Call, ID: key, Text: text})
		}
	}
	return problems
}

// illegal reports that no order explains the operations. What takes too long is undecided.
func (h *History) illegal(model porcupine.Model, ops []porcupine.Operation, of string) bool {
	result := porcupine.CheckOperationsTimeout(model, ops, patience)
	if result == porcupine.Unknown {
		text := fmt.Sprintf("the %d operations on %s took longer than %v to check", len(ops), of, patience)
		h.undecided = append(h.undecided, text)
	}
	return result == porcupine.Illegal
}

// keyOperations are the calls that may have done something, or have seen something.
func (h *History) keyOperations() (ops []porcupine.Operation) {
	returned := map[string]bool{}
	add := func(e history.Event, from, to int64) {
		ops = append(ops, porcupine.Operation{ClientId: len(ops), Input: e, Call: from, Return: to})
	}
	for _, e := range h.of(history.Return) {
		if e.Key == "" {
			continue
		}
		returned[e.ID] = true
		to := e.At
		switch e.Text {
		case work.NotDone:
			continue // its value must not be seen
		case work.InDoubt:
			to = never
		case work.Stale: // a refresh has read one revision, and found another when it came to write
			if e.Op == work.Refresh {
				seen := e
				seen.Op, seen.Seq = work.See, e.Want
				add(seen, e.From, to)
			}
			e.Op = work.See
		case work.NotFound:
			e.Op, e.Seq = work.See, 0
		}
		add(e, e.From, to)
		if h.maybeTwice(e) {
			e.Text = work.InDoubt
			add(e, e.From, never)
		}
	}
	for _, e := range h.of(history.Call) {
		if e.Key != "" && !returned[e.ID] && e.Op != work.Read { // its process was killed
			e.Text = work.InDoubt
			if e.Op == work.Update && e.Want == 0 {
				continue // it was to be refused
			}
			add(e, e.At, never)
		}
	}
	return ops
}

// restarting are the faults after which a server does not know all message ids: it
// learns those of messages that it still has, and a bucket does not keep values that
// were overwritten.
var restarting = []string{"kill-server", "restart-server", "rolling", "kill-all", "pause-server", "pause-two"}

// catchUp is how long a server takes at most until it knows the ids of what comes.
const catchUp = 15 * second

// maybeTwice reports whether a write may be done a second time: it depends on no
// revision, may have been sent again, and a server restarted meanwhile.
func (h *History) maybeTwice(e history.Event) bool {
	if !slices.Contains([]string{work.Put, work.Create, work.Remove}, e.Op) || e.Text != work.OK {
		return false
	}
	for _, s := range h.during("", restarting...) {
		s.to += catchUp
		if s.overlaps(span{e.From, e.At}) {
			return true
		}
	}
	return false
}

// lockOp is an operation on a lock: somebody takes it, or it ends.
type lockOp struct {
	take  bool
	token uint64
}

// lockState is the token of the owner, or 0, and the highest token so far.
type lockState struct{ owner, highest uint64 }

var lockModel = porcupine.Model{
	Init: func() any { return lockState{} },
	Step: func(state, input, _ any) (bool, any) {
		s, op := state.(lockState), input.(lockOp)
		if op.take {
			return s.owner == 0 && op.token > s.highest, lockState{op.token, op.token}
		}
		return s.owner == op.token, lockState{0, s.highest}
	},
}

// Locks finds a history of the lock that no order of taking and ending explains. The end
// of an ownership is somewhere between its last sign and the next owner.
func Locks(h *History) (problems []Problem) {
	var ops []porcupine.Operation
	owners := h.owners(work.Locking)
	for i, o := range owners {
		if parts := h.withoutPauses(o); len(parts) != 1 || parts[0] != o {
			o.to = o.from // it may have ended while its process was paused
		}
		ops = append(ops,
			porcupine.Operation{ClientId: 2 * i, Input: lockOp{true, o.token}, Call: o.from - 1, Return: o.from},
			porcupine.Operation{ClientId: 2*i + 1, Input: lockOp{false, o.token}, Call: o.to, Return: never})
	}
	if h.illegal(lockModel, ops, "the lock") {
		text := fmt.Sprintf("no order explains the %d ownerships of the lock", len(owners))
		problems = append(problems, Problem{At: owners[0].from, Text: text})
	}
	return problems
}
